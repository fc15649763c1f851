import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.app import COMMANDS
from tests.cli.conftest import Run

HEAVY = {"torch", "transformers", "ray", "deepspeed", "mlflow", "sqlalchemy", "alembic", "pydantic"}
SUBCOMMANDS = {
    "base": ("add", "list", "show"),
    "jobs": ("list", "show", "logs", "cancel", "retry", "pause", "resume", "set-priority", "quota"),
    "gangs": ("list", "drain"),
    "prompts": (
        *("list", "show", "promote", "rollback", "history", "at", "approve", "tag", "describe"),
    ),
    "batch": ("run", "list", "show", "resume", "cancel", "report"),
    "mlflow": ("sync",),
    "db": ("upgrade", "current"),
}
EVERY_COMMAND = [
    *([name] for name in COMMANDS),
    *([group, name] for group, names in SUBCOMMANDS.items() for name in names),
]


def modules_after(*commands: list[str]) -> set[str]:
    """The top-level modules a fresh interpreter holds after it ran some commands."""
    code = f"""
import sys
from orchestrator.cli import main
for arguments in {commands!r}:
    sys.argv = ["tutti", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
print("MODULES", *{{name.partition('.')[0] for name in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_help_imports_nothing_heavy() -> None:
    assert not modules_after(["--help"]) & HEAVY


def test_help_and_version_of_every_command_import_nothing_heavy() -> None:
    helps = [[*command, "--help"] for command in EVERY_COMMAND]
    assert not modules_after(["--version"], *helps) & (HEAVY - {"pydantic"})


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
def test_every_command_has_help(run: Run, command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: tutti {' '.join(command)}")
    assert run(*command, "-h").out == done.out


def test_help_lists_every_command_with_its_sentence(run: Run) -> None:
    done = run("--help")
    for name, (_, text) in COMMANDS.items():
        assert f"  {name}" in done.out
        assert text in done.out


@pytest.mark.parametrize("command", ["submit", "train", "doctor"], ids=str)
def test_commands_that_print_data_print_json(run: Run, command: str) -> None:
    assert "--json" in run(command, "--help").out


@pytest.mark.parametrize(
    "command",
    [[group, name] for group, names in SUBCOMMANDS.items() for name in names],
    ids=" ".join,
)
def test_subcommands_print_json(run: Run, command: list[str]) -> None:
    assert "--json" in run(*command, "--help").out


def test_the_version_is_shown(run: Run) -> None:
    from orchestrator import __version__

    assert run("--version").out.strip() == f"tutti, version {__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["--nonsense"],
        ["base"],
        ["base", "nonsense"],
        ["base", "add"],
        ["base", "add", "tiny"],
        ["base", "show"],
        ["submit"],
        ["submit", "--nonsense", "x.yaml"],
        ["train", "--nonsense"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "list", "--limit", "many"],
        ["jobs", "list", "--state", "nonsense"],
        ["jobs", "list", "--watch", "--json"],
        ["jobs", "show"],
        ["jobs", "cancel"],
        ["jobs", "set-priority", "abcdef"],
        ["gangs", "drain"],
        ["controller", "--metrics-port", "-1"],
        ["controller", "--metrics-port", "99999"],
        ["train", "--on-interrupt", "nonsense"],
        ["prompts", "show"],
        ["prompts", "list", "--limit", "-1"],
        ["prompts", "promote"],
        ["prompts", "promote", "colour@1", "--if-current", "-1"],
        ["prompts", "promote", "colour@1", "--if-current", "production"],
        ["prompts", "rollback"],
        ["prompts", "history"],
        ["prompts", "history", "colour", "--limit", "0"],
        ["prompts", "at"],
        ["prompts", "approve"],
        ["prompts", "tag", "colour@1"],
        ["prompts", "describe", "colour@1"],
        ["batch", "run"],
        ["batch", "run", "--input", "x.jsonl"],
        ["batch", "run", "--input", "x", "--output", "y", "--map", "field"],
        ["batch", "run", "--input", "x", "--output", "y", "--map", "a=b", "--map", "a=c"],
        ["batch", "run", "--input", "x", "--output", "y", "--mode", "guess"],
        ["batch", "resume"],
        ["batch", "cancel"],
        ["batch", "list", "--limit", "0"],
        ["batch", "list", "--state", "nonsense"],
        ["db", "nonsense"],
        ["doctor", "nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(run: Run, new_home: Path, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert "Usage:" in done.err
    assert "Traceback" not in done.err
    assert not new_home.exists()


def test_an_unknown_command_is_named(run: Run) -> None:
    assert "No such command 'trian'" in run("trian").err
