"""A controller's log: a JSON object a line for machines, a readable line on a terminal.

What a caller gives as `extra` becomes the object's own keys.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

LOGGER = "tutti"
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """{"time": ..., "level": ..., "logger": ..., "message": ..., and the extras}"""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            **_extras(record),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class ReadableFormatter(logging.Formatter):
    """12:30:59 gang is started: gang=gang-0a1b, sharding=whole on each worker"""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        extras = ", ".join(f"{name}={value}" for name, value in _extras(record).items())
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        text = f"{time} {level}{record.getMessage()}" + (f": {extras}" if extras else "")
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


@contextmanager
def logged_to(stream: TextIO) -> Iterator[None]:
    """Send what Tutti's parts log to `stream` for as long as the context lasts."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ReadableFormatter() if stream.isatty() else JsonFormatter())
    logger = logging.getLogger(LOGGER)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _extras(record: logging.LogRecord) -> Mapping[str, Any]:
    """What the caller gave; Ray adds names with an underscore."""
    given = {name for name in vars(record) if not name.startswith("_")} - _OWN_FIELDS
    return {name: value for name, value in vars(record).items() if name in given}
