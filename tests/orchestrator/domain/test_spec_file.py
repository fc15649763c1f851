from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import InvalidSpec
from orchestrator.domain.spec_file import MAX_BYTES, parse_spec, read_spec

SPEC = """\
task: country-continent
base: tiny
template: "{country}:{prompt:10} {continent}"
answer: continent
encoder: {type: mlp, hidden_size: 16}
data:
  train: train.jsonl
  eval: eval.jsonl
training: {steps: 80, learning_rate: 1e-2, early_stop: {patience: 3}}
evaluation:
  every: 20
  metric: accuracy
promote: {alias: production, when: "accuracy >= 0.6"}
"""


def refusal(text: str) -> str:
    """The message a spec is refused with; it names the file `x.yaml`."""
    with pytest.raises(InvalidSpec) as caught:
        parse_spec(text, "x.yaml")
    message = str(caught.value)
    assert message.startswith("x.yaml")
    return message


def changed(old: str, new: str) -> str:
    assert SPEC.count(old) == 1
    return SPEC.replace(old, new)


def test_a_whole_spec_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(SPEC, encoding="utf-8")
    spec = read_spec(path)
    assert spec.task == "country-continent"
    assert spec.training.learning_rate == 0.01
    assert spec.training.early_stop is not None
    assert spec.data.files() == {"train": "train.jsonl", "eval": "eval.jsonl"}
    assert spec == parse_spec(SPEC, "elsewhere")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("base: tiny", "base: tiny\nbas: tiny", 3, "unknown key 'bas'; did you mean 'base'?"),
        ("base: tiny", "base: tiny\nzzz: 1", 3, "allowed are answer, base, candidates, chat, data"),
        (
            "steps: 80",
            "stepz: 80",
            9,
            "unknown key 'training.stepz'; did you mean 'steps'? allowed are batch_size, early",
        ),
        ("patience: 3", "patienc: 3", 9, "'training.early_stop.patienc'; did you mean 'patience'?"),
        ("  every: 20", "  evry: 20", 11, "unknown key 'evaluation.evry'"),
        ("steps: 80", "steps: many", 9, "training.steps: Input should be a valid integer"),
        ("steps: 80", "steps: many", 9, "(found 'many')"),
        ("steps: 80", "steps: 0", 9, "greater than or equal to 1 (found 0)"),
        ("steps: 80", "steps: 1.5", 9, "training.steps"),
        ("1e-2", ".nan", 9, "training.learning_rate"),
        ("1e-2", ".inf", 9, "training.learning_rate"),
        ("1e-2", "-1", 9, "greater than 0 (found -1)"),
        ("type: mlp", "type: gru", 5, "encoder.type: Input should be 'mlp', 'lstm' or 'embedding'"),
        ("answer: continent", "answer: no", 4, "answer: Input should be a valid string (found Fal"),
        ("answer: continent", "answer: [a]", 4, "answer: Input should be a valid string (found ["),
        ("base: tiny", "base: 2020-01-01", 2, "base: Input should be a valid string"),
        ("  metric: accuracy", "  metric: f1", 12, "'accuracy', 'exact_match' or 'loss' (found"),
        ("base: tiny\n", "", 1, "the key 'base' is missing"),
        ("  eval: eval.jsonl\n", "", 6, "the key 'data.eval' is missing"),
        ("task: country-continent", "task: ../evil", 1, "'../evil' is not a name: use 1 to 100"),
        ("task: country-continent", "task: a..b", 1, "without '..'"),
        ("task: country-continent", "task: A", 1, "'A' is not a name"),
        ("task: country-continent", 'task: "a\\n"', 1, "is not a name"),
        ("task: country-continent", f"task: {'a' * 101}", 1, "1 to 100 of a-z"),
        ("base: tiny", "base: a/b", 2, "'a/b' is not a name"),
        ("alias: production", "alias: ../x", 13, "'../x' is not a name"),
        ("alias: production", 'alias: "7"', 13, "'7' is a version's number"),
        ("{prompt:10} {continent}", "{prompt:10}", 3, "{continent} is not in the template"),
        ("{prompt:10} {continent}", "{prompt:10} {continent}.", 3, "must come last, and once"),
        ("{prompt:10} {continent}", "{continent}{prompt:10}", 3, "must come last"),
        ("{prompt:10}", "", 3, "has no virtual tokens; add {prompt:n}"),
        ("{prompt:10}", "{prompt}", 3, "{prompt} at character 11"),
        ("{country}", "{country", 3, "an unmatched brace at character 1"),
        ("answer: continent", "answer: contnent", 3, "the answer field {contnent} is not in"),
        ("  every: 20", '  manual_prompt: "{a}"', 11, "evaluation.manual_prompt: the answer"),
        (
            "eval.jsonl\n",
            "e.jsonl\n  truncate: city\n",
            9,
            "data.truncate: the field {city} cannot",
        ),
        ("base: tiny", "base: tiny\nchat: maybe", 3, "chat: Input should be a valid boolean"),
        (
            "  every: 20",
            '  manual_prompt: "{prompt:2}{continent}"',
            11,
            "a manual prompt has no virtual tokens; remove {prompt:n}",
        ),
        (
            "promote:",
            "sweep: {over: {training.learning_rate: {low: 1, hi: 2}}}\npromote:",
            13,
            "'sweep.over.training.learning_rate.range.hi'; did you mean 'high'? allowed are high, ",
        ),
        ("promote:", "sweep:\n  over: {}\n  hlving: {}\npromote:", 15, "did you mean 'halving'?"),
        (
            "promote:",
            "sweep:\n  over: {encoder.typ: [mlp]}\npromote:",
            13,
            "sweep: 'encoder.typ' cannot be swept; did you mean 'encoder.type'? allowed are enc",
        ),
        ("accuracy >= 0.6", "accuracy =< 0.6", 13, "promote.when: cannot read the gate"),
        ("accuracy >= 0.6", "open(1) > 2", 13, "'open(1)' is not a metric"),
        ("answer: continent", "answer: continent\ncandidates: [a]", 5, "candidates"),
        ("answer: continent", "answer: continent\ncandidates: [a, a]", 5, "listed twice"),
        ("answer: continent", "answer: continent\ncandidates: [yes, b]", 5, "found True"),
        ("base: tiny", "base: tiny\ntask: again", 3, "the key 'task' is given twice"),
        ("  every: 20", "  every: 20\n  every: 30", 12, "the key 'every' is given twice"),
        ("base: tiny", "base: *tiny", 2, "YAML aliases (*name) are not allowed"),
        ("base: tiny", "<<: {base: tiny}", 2, "unknown key '<<'"),
        ("base: tiny", "? [base]\n: tiny", 2, "a key must be plain text"),
        ("base: tiny", "base: [tiny", 3, "not valid YAML"),
        ("base: tiny", "\tbase: tiny", 2, "not valid YAML"),
        ("base: tiny", "base: tiny\n---\nbase: tiny", 3, "not valid YAML"),
        ("base: tiny", 'base: "\\ud800"', 2, "cannot read '\\ud800'"),
        ("base: tiny", "base: !!int tiny", 2, "cannot read 'tiny' as tag:yaml.org,2002:int"),
        ("base: tiny", "base: !!python/name:os.system", 2, "cannot read ''"),
        ("base: tiny", "base: !mine tiny", 2, "cannot read 'tiny'"),
    ],
)
def test_a_wrong_spec_is_refused_with_its_line_and_key(
    old: str, new: str, line: int, message: str
) -> None:
    found = refusal(changed(old, new))
    assert f"x.yaml:{line}: " in found
    assert message in found


def test_all_faults_are_told_at_once() -> None:
    text = changed("steps: 80", "stepz: 80").replace("type: mlp", "type: gru")
    found = refusal(text.replace("base: tiny\n", ""))
    assert [line.partition(": ")[0] for line in found.splitlines()] == [
        "x.yaml:1",
        "x.yaml:4",
        "x.yaml:8",
    ]


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [ran]",
        "!!python/object/new:os.mkdir [ran]",
        "!!python/object/apply:os.mkdir {args: [ran]}",
        "!!python/name:os.mkdir",
        "!!python/module:os",
    ],
)
def test_python_tags_run_nothing(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "x.yaml:2" in refusal(changed("base: tiny", f"base: {tag}"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\n\n", "---\n"])
def test_an_empty_file_says_so(text: str) -> None:
    message = refusal(text)
    assert "empty" in message


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b\n", "a list"), ("just text", "text"), ("7", "7")]
)
def test_what_is_no_mapping_is_refused(text: str, kind: str) -> None:
    message = refusal(text)
    assert f"a spec is a mapping of keys, this is {kind}" in message
    assert "country-continent.yaml" in message


def bomb(depth: int) -> str:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(["a0: &a0 [x, x]", *levels])


def test_an_alias_bomb_is_refused_at_its_first_alias() -> None:
    assert refusal(bomb(30)) == "x.yaml:2: YAML aliases (*name) are not allowed"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 50_000, "- " * 40 + "x", "task: " + "[" * 33 + "]" * 33],
    ids=["brackets", "braces", "dashes", "one too many"],
)
def test_deep_nesting_is_refused_before_it_costs_anything(text: str) -> None:
    assert "nested deeper than 32 levels" in refusal(text)


def test_an_oversized_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(InvalidSpec, match=f"more than {MAX_BYTES} bytes"):
        read_spec(path)


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=f"/dev/zero: more than {MAX_BYTES} bytes"):
        read_spec(Path("/dev/zero"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"nothing\.yaml: no such file") as caught:
        read_spec(tmp_path / "nothing.yaml")
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_a_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=f"{tmp_path}: cannot be read"):
        read_spec(tmp_path)


@pytest.mark.parametrize("data", [b"\xff\xfe", "task: é".encode("latin-1"), b"\x80" * 10])
def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    with pytest.raises(InvalidSpec, match=r"x\.yaml: cannot be read as UTF-8 text"):
        read_spec(path)


def test_a_control_character_is_refused() -> None:
    assert "not valid YAML" in refusal("task: a\x00b")


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_refused_with_the_file_named(text: str) -> None:
    assert refusal(text)


@given(st.sampled_from(SPEC.splitlines()), st.text("{}[]:,&*!|>'\"%@`#-? \nab", max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_spoilt_line_is_read_or_refused(line: str, noise: str) -> None:
    key = line.partition(":")[0]
    with suppress(InvalidSpec):
        parse_spec(SPEC.replace(line, f"{key}: {noise}"), "x.yaml")
