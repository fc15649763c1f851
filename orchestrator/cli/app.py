"""The `tutti` command: its groups load on first use, so that `tutti --help` answers at once."""

import os
import sys
from importlib import import_module

import click

from orchestrator.code_version import VERSION
from orchestrator.domain.errors import TuttiError

#: command -> (module, what it does in one line)
COMMANDS = {
    "base": ("orchestrator.cli.base", "Add and list frozen base models."),
    "train": ("orchestrator.cli.train", "Train task specs together, here, to completion."),
    "submit": ("orchestrator.cli.submit", "Queue task specs for training, and wait if asked to."),
    "jobs": ("orchestrator.cli.jobs", "See jobs and what happened to them; cancel, retry, pause."),
    "gangs": ("orchestrator.cli.gangs", "See the running gangs, and drain them."),
    "controller": ("orchestrator.cli.controller", "Train what is queued, for as long as it runs."),
    "prompts": ("orchestrator.cli.prompts", "List, show, promote and roll back prompts."),
    "batch": ("orchestrator.cli.batch", "Run files of mixed tasks through many prompts."),
    "evaluate": ("orchestrator.cli.evaluate", "Say which version is better on rows of your own."),
    "mlflow": ("orchestrator.cli.mlflow", "Bring MLflow and the registry together again."),
    "db": ("orchestrator.cli.db", "Upgrade, back up and restore the database."),
    "fsck": ("orchestrator.cli.fsck", "Check the registry against its artifacts and MLflow."),
    "gc": ("orchestrator.cli.gc", "Remove artifacts that nothing names."),
    "access": ("orchestrator.cli.access", "Give and take roles; see what you may do."),
    "doctor": ("orchestrator.cli.doctor", "Check this installation, part by part."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and help, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="tutti")
def tutti() -> None:
    """Tutti: many prompts, one frozen base model, all at once.

    Train prompt encoders together, version and promote them, and run batches with them.
    Start with `make demo`, or with `tutti doctor`.
    """


def main() -> None:
    """Run the command line; a TuttiError becomes its message and its exit code."""
    try:
        tutti(standalone_mode=False, prog_name="tutti")
    except click.exceptions.Abort:
        _leave("interrupted", 1)
    except KeyboardInterrupt:
        _leave("interrupted", 1)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except TuttiError as error:
        _leave(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


def _leave(message: str, code: int) -> None:
    click.echo(f"tutti: {message}", err=True)
    sys.exit(code)
