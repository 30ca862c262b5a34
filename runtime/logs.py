"""Structured logs: one JSON object a line on stderr, or plain lines on a terminal."""

import json
import logging
import sys
import time

FIELDS = ("request_id",)


class JsonFormatter(logging.Formatter):
    """`ts` (UTC), `level`, `logger`, `event`, and the fields that a record carries."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "ts": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name in FIELDS:
            value = getattr(record, name, None)
            if value is not None:
                line[name] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(level: str = "info") -> None:
    """Sets the process's logging up. Raises ValueError for a level that does not exist."""
    numeric = logging.getLevelNamesMapping().get(level.upper())
    if numeric is None:
        raise ValueError(f"unknown log level {level!r}: use debug, info, warning or error")
    handler = logging.StreamHandler(sys.stderr)
    if sys.stderr.isatty():
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s"))
    else:
        handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=numeric, handlers=[handler], force=True)
    # a broker that is away is told once by us, not ten times a second by the client
    logging.getLogger("aiokafka").setLevel(max(numeric, logging.CRITICAL))
