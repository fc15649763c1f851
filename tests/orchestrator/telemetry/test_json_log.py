import io
import json
import logging

from orchestrator.telemetry.json_log import logged_to


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def log_something(stream: io.StringIO) -> None:
    logger = logging.getLogger("tutti.test")
    with logged_to(stream):
        logger.info("gang is %s", "started", extra={"gang": "gang-1", "jobs": ["a"]})
        try:
            raise ValueError("häßlich")
        except ValueError:
            logger.exception("it broke", extra={"level": 3})
    logger.error("nobody listens any more")


def test_each_line_is_an_object_with_the_extras() -> None:
    stream = io.StringIO()
    log_something(stream)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["time"].endswith("+00:00")
    assert {key: first[key] for key in ("level", "logger", "message", "gang", "jobs")} == {
        "level": "info",
        "logger": "tutti.test",
        "message": "gang is started",
        "gang": "gang-1",
        "jobs": ["a"],
    }
    assert second["level"] == "error"
    assert "ValueError: häßlich" in second["exception"]


def test_a_terminal_gets_readable_lines() -> None:
    stream = Terminal()
    log_something(stream)
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith(" gang is started: gang=gang-1, jobs=['a']")
    assert " error: it broke: level=3" in lines[1]
    assert lines[-1] == "ValueError: häßlich"
