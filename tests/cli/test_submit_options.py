from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import pytest

from orchestrator.cli.submit_options import DURATION, Moment, read_options
from orchestrator.domain.job import JobOptions
from tests.cli.conftest import Run, open_tutti
from tests.tiny import write_task

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400), ("1h30m", 5400), ("1d1s", 86_401)],
)
def test_a_duration_has_units(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "90", "0s", "-5m", "2 h", "1.5h", "m30", "30m1h", "9" * 30])
def test_what_is_no_duration_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration: write 90s, 30m, 2h"):
        DURATION.convert(text, None, None)


def test_a_time_counts_from_the_database_s_now_or_has_a_zone() -> None:
    later = Moment().convert("+1h30m", None, None)
    options = read_options(lambda: NOW, 0, 3, None, later)
    assert options.not_before == NOW + timedelta(minutes=90)
    assert Moment().convert("2026-01-02T03:04:05Z", None, None) == NOW
    assert Moment().convert("2026-01-02T04:04:05+01:00", None, None) == NOW


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-01-02T03:04:05", "has no time zone"),
        ("2026-01-02", "has no time zone"),
        ("tomorrow", "is not a time"),
        ("+", "is not a duration"),
        ("+10", "is not a duration"),
    ],
)
def test_what_is_no_time_is_told_how_to_write_one(text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=message):
        Moment().convert(text, None, None)


def test_options_come_to_the_job(run: Run, home: Path, tasks: Path) -> None:
    first = run("submit", write_task(tasks, "first"), "--json").json[0]["id"]
    done = run(
        *("submit", write_task(tasks, "one"), "--priority", "-5", "--max-attempts", "7"),
        *("--time-limit", "2h", "--not-before", "2126-01-02T03:04:05Z", "--key", "night"),
        *("--after", first[:10], "--json"),
    )
    (job,) = done.json
    with open_tutti(home) as tutti:
        options = tutti.job(job["id"]).options
    moment = datetime(2126, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert options == JobOptions(-5, 7, 7200.0, moment, (first,), "night")
    again = run("submit", write_task(tasks, "other"), "--key", "night", "--json").json
    assert (again[0]["id"], again[0]["is_new"]) == (job["id"], False)


def test_options_of_a_job_that_is_there_stay(run: Run, home: Path, tasks: Path) -> None:
    spec = write_task(tasks, "one")
    run("submit", spec)
    done = run("submit", spec, "--priority", 3)
    assert done.code == 0
    assert "one: submitted before, its options stay as they were" in done.err


@pytest.mark.parametrize("command", ["submit", "train"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time-limit", "soon"], "'soon' is not a duration"),
        (["--time-limit", "-2h"], "'-2h' is not a duration"),
        (["--max-attempts", "0"], "0 is not in the range"),
        (["--max-attempts", "-1"], "-1 is not in the range"),
        (["--max-attempts", "99999"], "max_attempts is 99999"),
        (["--priority", "high"], "'high' is not a valid integer"),
        (["--priority", "99999999"], "the priority is 99999999"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_and_nothing_is_queued(
    run: Run, home: Path, tasks: Path, command: str, arguments: list[str], message: str
) -> None:
    refuse(run, home, [command, str(write_task(tasks, "one")), *arguments], message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--not-before", "2026-01-02T03:04:05"], "has no time zone"),
        (["--after", "zzz"], "'zzz' is not a job id"),
        (["--after", "abcdef12"], "there is no job abcdef12"),
        (["--key", ""], "the key is"),
        (["--key", "x" * 201], "the key is"),
        (["two.yaml", "--key", "k"], "the key 'k' would make one job of 2 specs"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_ways_to_wait_are_refused_and_nothing_is_queued(
    run: Run, home: Path, tasks: Path, arguments: list[str], message: str
) -> None:
    write_task(tasks, "two")
    refuse(run, home, ["submit", str(write_task(tasks, "one")), *arguments], message)


def test_nothing_waits_for_a_job_that_has_failed(run: Run, home: Path, tasks: Path) -> None:
    first = run("submit", write_task(tasks, "first"), "--json").json[0]["id"]
    run("jobs", "cancel", first)
    done = run("submit", write_task(tasks, "second"), "--after", first)
    assert (done.code, done.out) == (2, "")
    assert f"job {first[:12]} (first) is cancelled: what waits for it would never run" in done.err
    assert f"tutti jobs retry {first[:12]}" in done.err


def refuse(run: Run, home: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
    with open_tutti(home) as tutti:
        assert tutti.jobs() == []
