"""The issue's promise: a clear message, exit code 2, no traceback, nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Done, Run, contents, open_tutti
from tests.tiny import colour_rows, write_rows, write_task

Spoil = Callable[[Path], Path]
TRAIN = "data/colour.train.jsonl"


def with_spec(**changes: object) -> Spoil:
    return lambda tasks: write_task(tasks, "colour", **changes)


def with_line(number: int, text: str) -> Spoil:
    """The training data with one line replaced."""

    def spoil(tasks: Path) -> Path:
        spec = write_task(tasks, "colour")
        lines = (tasks / TRAIN).read_text().splitlines()
        lines[number - 1] = text
        (tasks / TRAIN).write_text("\n".join(lines))
        return spec

    return spoil


def with_train(data: bytes | None) -> Spoil:
    def spoil(tasks: Path) -> Path:
        spec = write_task(tasks, "colour")
        (tasks / TRAIN).unlink()
        if data is not None:
            (tasks / TRAIN).write_bytes(data)
        return spec

    return spoil


def with_one_answer(tasks: Path) -> Path:
    spec = write_task(tasks, "colour", data={"train": TRAIN, "eval": TRAIN})
    (tasks / TRAIN).write_text('{"word": "a", "colour": "red"}\n')
    return spec


def with_task_name(tasks: Path) -> Path:
    spec = write_task(tasks, "colour")
    spec.write_text(spec.read_text().replace("task: colour", "task: ../colour"))
    return spec


def with_long_row(tasks: Path) -> Path:
    spec = write_task(tasks, "colour")
    rows = [*colour_rows(4), {"word": "long" * 100, "colour": "red"}]
    write_rows(tasks / TRAIN, rows)
    return spec


def with_text(text: bytes | None) -> Spoil:
    def spoil(tasks: Path) -> Path:
        path = tasks / "colour.yaml"
        if text is not None:
            path.write_bytes(text)
        return path

    return spoil


#: What is wrong -> how to make it, and what the message must say.
BAD_INPUT: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "unknown key": (
        with_spec(trainning={"steps": 3}),
        ("colour.yaml:", "unknown key 'trainning'", "did you mean 'training'?", "allowed are"),
    ),
    "unknown nested key": (
        with_spec(training={"stepz": 3}),
        ("colour.yaml:", "unknown key 'training.stepz'", "did you mean 'steps'?"),
    ),
    "template field the data lacks": (
        with_spec(template="{size}{word}:{prompt:4} {colour}"),
        (f"{TRAIN}:1: ", "lacks the field 'size'", "it has 'word', 'colour'"),
    ),
    "answer not last": (
        with_spec(template="{colour}:{prompt:4} {word}"),
        ("colour.yaml:", "template: ", "{colour} must come last", "move it to the end"),
    ),
    "answer not in the template": (
        with_spec(answer="shade"),
        ("colour.yaml:", "{shade} is not in the template", "it has {word}, {colour}"),
    ),
    "no virtual tokens": (
        with_spec(template="{word}: {colour}"),
        ("colour.yaml:", "has no virtual tokens", "add {prompt:n}"),
    ),
    "missing data file": (
        with_train(None),
        (TRAIN, "no such file", "relative to the spec's folder"),
    ),
    "missing spec": (with_text(None), ("colour.yaml: no such file",)),
    "a line that is no JSON": (
        with_line(3, "{word: a}"),
        (f"{TRAIN}:3: not JSON", "Each line must be one JSON object"),
    ),
    "a line that is no object": (with_line(2, '["a"]'), (f"{TRAIN}:2: ", "this is list")),
    "empty data set": (with_train(b""), (TRAIN, "the data set is empty", "at least one row")),
    "blank data set": (with_train(b"\n\n \n"), (TRAIN, "the data set is empty")),
    "data that is no UTF-8": (with_train(b"\xff\xfe"), (f"{TRAIN}:1: not UTF-8",)),
    "over-long row": (
        with_long_row,
        (f"{TRAIN}:5: the row has 410 tokens", "at most 256 are allowed", "Shorten the row"),
    ),
    "limit beyond the base": (
        with_spec(data={"train": TRAIN, "eval": TRAIN, "max_length": 999}),
        ("data.max_length is 999", "takes at most 256 tokens", "Set data.max_length to 256"),
    ),
    "task name with ../": (
        with_task_name,
        ("colour.yaml:1: ", "'../colour' is not a name", "1 to 100 of a-z"),
    ),
    "unregistered base": (
        with_spec(base="tinny"),
        ("there is no base model 'tinny'", "did you mean 'tiny'?", "tutti base add"),
    ),
    "wrong type": (
        with_spec(training={"steps": "many"}),
        ("colour.yaml:", "training.steps: ", "valid integer", "'many'"),
    ),
    "bad gate": (
        with_spec(promote={"when": "__import__('os').getcwd() > 1"}),
        ("colour.yaml:", "promote.when: ", "is not a metric"),
    ),
    "numeric alias": (
        with_spec(promote={"alias": "7"}),
        ("colour.yaml:", "promote.alias: ", "version's number"),
    ),
    "answer outside the candidates": (
        with_spec(candidates=["red", "green"]),
        (f"{TRAIN}:2: ", "'blue' is not among the spec's candidates ['red', 'green']"),
    ),
    "empty candidate": (
        with_spec(candidates=["red", "blue", ""]),
        ("task colour: ", "'' has no tokens"),
    ),
    "one answer alone": (
        with_one_answer,
        ("the data has 1 distinct answers",),
    ),
    "empty spec": (with_text(b""), ("colour.yaml:1: ", "empty")),
    "no mapping": (with_text(b"- a\n"), ("colour.yaml: a spec is a mapping", "a list")),
    "broken YAML": (with_text(b"task: [a\n"), ("colour.yaml:2: not valid YAML",)),
    "duplicate key": (with_text(b"task: a\ntask: b\n"), ("colour.yaml:2: ", "given twice")),
    "alias bomb": (with_text(b"a: &a [x]\nb: *a\n"), ("colour.yaml:2: YAML aliases",)),
    "python tag": (
        with_text(b"task: !!python/object/apply:os.mkdir [ran]\n"),
        ("colour.yaml:1: task: ", "valid string"),
    ),
    "deep nesting": (with_text(b"task: " + b"[" * 50_000), ("nested deeper than 32",)),
    "spec that is no UTF-8": (with_text(b"\xff\xfe"), ("colour.yaml: cannot be read as UTF-8",)),
}


def assert_refused(done: Done, *messages: str) -> None:
    assert done.code == 2, done.err
    assert done.out == ""
    for message in messages:
        assert message in done.err
    assert "Traceback" not in done.err
    assert "tutti: " in done.err


@pytest.mark.parametrize("command", ["submit", "train"])
@pytest.mark.parametrize("fault", BAD_INPUT)
def test_bad_input_is_refused_and_nothing_is_written(
    run: Run, home: Path, tasks: Path, fault: str, command: str
) -> None:
    spoil, messages = BAD_INPUT[fault]
    good, bad = write_task(tasks, "good"), spoil(tasks)
    before = contents(home), contents(tasks)
    assert_refused(run(command, good, bad), *messages)
    assert (contents(home), contents(tasks)) == before
    with open_tutti(home) as tutti:
        assert tutti.jobs() == []


NEEDS_THE_BASE = {
    "over-long row",
    "limit beyond the base",
    "unregistered base",
    "answer outside the candidates",
    "empty candidate",
    "one answer alone",
}


@pytest.mark.parametrize("fault", sorted(set(BAD_INPUT) - NEEDS_THE_BASE))
def test_a_fault_that_needs_no_base_does_not_even_make_a_data_directory(
    run: Run, new_home: Path, tasks: Path, fault: str
) -> None:
    spoil, messages = BAD_INPUT[fault]
    assert_refused(run("submit", spoil(tasks)), *messages)
    assert not new_home.exists()


def test_an_unregistered_base_in_a_new_home_says_how_to_add_one(
    run: Run, new_home: Path, tasks: Path
) -> None:
    done = run("submit", write_task(tasks, "colour"))
    assert_refused(done, "there is no base model 'tiny'", "there is none yet", "tutti base add")
    assert not (new_home / "artifacts").exists()


def test_a_directory_for_a_spec_is_refused(run: Run, home: Path, tasks: Path) -> None:
    assert_refused(run("submit", tasks), f"{tasks}: cannot be read", "Is a directory")


def test_a_directory_for_data_is_refused(run: Run, home: Path, tasks: Path) -> None:
    spec = write_task(tasks, "colour", data={"train": ".", "eval": TRAIN})
    assert_refused(run("submit", spec), "not a file")


def test_an_oversized_spec_is_refused_unread(run: Run, home: Path, tasks: Path) -> None:
    with (tasks / "big.yaml").open("wb") as file:
        file.truncate(100 << 20)
    assert_refused(run("submit", "big.yaml"), "big.yaml: more than 1048576 bytes")


def test_every_fault_of_every_spec_is_told(run: Run, home: Path, tasks: Path) -> None:
    bad = [write_task(tasks, name, base="nothing") for name in ("one", "two")]
    typo = write_task(tasks, "three", stepz=1)
    done = run("submit", *bad, typo)
    assert_refused(done, "three.yaml", "unknown key 'stepz'")
    assert done.err.count("there is no base model 'nothing'") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["jobs", "show", "zzz"], "'zzz' is not a job id"),
        (["jobs", "show", "abcdef12"], "there is no job abcdef12"),
        (["prompts", "show", "colour"], "there is no task 'colour'"),
        (["prompts", "show", "../x"], "'../x' is not a prompt reference"),
        (["prompts", "show", "colour@"], "TASK@NUMBER or TASK@ALIAS"),
        (["prompts", "promote", "colour@1"], "there is no task 'colour'"),
        (["base", "show", "tinny"], "did you mean 'tiny'?"),
        (["base", "add", "../x", "nothing"], "'../x' is not a name"),
        (["base", "add", "x", "nothing"], "nothing: no such folder"),
        (["base", "add", "x", "."], "config.json is missing"),
        (["base", "add", "x", ".", "--gguf", "nothing.gguf"], "no such file"),
        (["batch", "run", "--input", "no.jsonl", "--output", "o"], "no.jsonl: no such file"),
        (["batch", "run", "--input", ".", "--output", "o"], "no input file is there"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names_and_paths_that_mean_nothing_are_refused(
    run: Run, home: Path, arguments: list[str], message: str
) -> None:
    before = contents(home / "bases"), contents(home / "artifacts")
    assert_refused(run(*arguments), message)
    assert (contents(home / "bases"), contents(home / "artifacts")) == before


@pytest.mark.parametrize("output", [".", "in.jsonl", "in.jsonl/x", "/dev/null", "/proc/x/y"])
def test_an_output_that_cannot_be_written_is_refused_before_the_run(
    run: Run, home: Path, tasks: Path, output: str
) -> None:
    (tasks / "in.jsonl").write_text('{"task": "a", "fields": {}}\n')
    assert_refused(
        run("batch", "run", "--input", "in.jsonl", "--output", output), "cannot be the output"
    )
    assert contents(tasks).keys() == {"in.jsonl"}


def test_an_empty_batch_is_refused(run: Run, home: Path, tasks: Path) -> None:
    (tasks / "in.jsonl").write_bytes(b"")
    done = run("batch", "run", "--input", "in.jsonl", "--output", "o.jsonl")
    assert_refused(done, "in.jsonl: the file is empty", "Give at least one row.")
    assert not (tasks / "o.jsonl").exists()


@pytest.mark.parametrize(
    "arguments",
    [["jobs", "list"], ["submit", "x.yaml"], ["train"], ["prompts", "list"], ["db", "current"]],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("variable", "value"), [("TUTTI_ZERO_STAGE", "7"), ("TUTTI_NUM_WORKERS", "two")]
)
def test_a_wrong_setting_is_named(
    run: Run,
    new_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variable: str,
    value: str,
) -> None:
    monkeypatch.setenv(variable, value)
    assert_refused(run(*arguments), f"{variable}: ", value)
    assert not new_home.exists()


@pytest.mark.parametrize("text", ["broken", "workers = 3", "zero_stage = 7"])
def test_a_wrong_settings_file_is_named(run: Run, new_home: Path, tasks: Path, text: str) -> None:
    (tasks / "tutti.toml").write_text(text)
    assert_refused(run("jobs", "list"), f"{tasks}/tutti.toml: ")


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite:////proc/x/tutti.db", "mysql://a/b", "sqlite://", "postgresql://"]
)
def test_a_database_that_cannot_be_is_told_without_a_traceback(
    run: Run, new_home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("TUTTI_DATABASE_URL", url)
    done = run("jobs", "list")
    assert done.code in (1, 2)
    assert done.err.startswith("tutti: ")
    assert "Traceback" not in done.err


def test_a_home_that_is_a_file_is_told_without_a_traceback(
    run: Run, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tasks / "file").write_text("")
    monkeypatch.setenv("TUTTI_HOME", str(tasks / "file"))
    done = run("jobs", "list")
    assert done.code in (1, 2)
    assert done.err.startswith("tutti: ")
    assert "file" in done.err
