"""A metric that nobody fills is a figure that somebody trusts."""

import re
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase

from runtime.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("topics", "producer_api", "consumers", "inferlog")


def test_every_metric_is_filled_somewhere() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    code = "\n".join(path.read_text() for path in files)
    used = set(re.findall(r"\bmetrics\.(\w+)|\b_metrics\.(\w+)", code))
    names = {name for pair in used for name in pair if name}
    declared = {name for name, it in vars(Metrics()).items() if isinstance(it, MetricWrapperBase)}
    assert len(declared) > 40
    assert declared - names == set()
