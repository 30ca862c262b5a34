"""Every metric stands in the docs as it is declared."""

from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from runtime.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]


def declared() -> dict[str, MetricWrapperBase]:
    """Attribute -> metric, in the order of the code."""
    return {name: it for name, it in vars(Metrics()).items() if isinstance(it, MetricWrapperBase)}


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
