"""What was measured, kept with the machine it was measured on."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Where and when."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def keep(name: str, result: dict[str, Any]) -> None:
    """Writes the result of a run of its own."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")


def keep_row(name: str, figures: dict[str, Any]) -> None:
    """Puts the figures of one row into the file that RESULT names, beside those of other rows."""
    if not (result := os.environ.get("RESULT")):
        return
    path = Path(result)
    rows = json.loads(path.read_text()) if path.exists() else {}
    rows[name] = {**figures, "machine": machine()}
    path.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
