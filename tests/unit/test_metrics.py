"""Every metric is filled somewhere, and stands in the docs as it is declared."""

import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from runtime.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("topics", "producer_api", "consumers", "inferlog")
NOT_YET = {
    # an engine that dies still ends its worker: nobody replaces it in place
    "engine_restarts",
}


def declared() -> dict[str, MetricWrapperBase]:
    """Attribute -> metric, in the order of the code."""
    return {name: it for name, it in vars(Metrics()).items() if isinstance(it, MetricWrapperBase)}


def test_every_metric_is_filled_somewhere() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    code = "\n".join(path.read_text() for path in files)
    used = set(re.findall(r"\bmetrics\.(\w+)|\b_metrics\.(\w+)", code))
    names = {name for pair in used for name in pair if name}
    assert len(declared()) > 40
    assert set(declared()) - names - NOT_YET == set()


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    lines = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| `")] == [
        row(it) for it in declared().values()
    ]


def row(metric: MetricWrapperBase) -> str:
    """One line of the table, as a scrape names the metric."""
    kind = metric._type
    name = f"{metric._name}_total" if kind == "counter" else metric._name
    labels = ", ".join(f"`{it}`" for it in metric._labelnames) or "none"
    return f"| `{name}` | {kind} | {labels} | {metric._documentation} |"
