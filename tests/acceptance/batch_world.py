"""Batch runs by the command line, watched through their ledger, so that they can be broken."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from orchestrator.bootstrap import Parts
from orchestrator.domain.batch_run import BatchRun, ShardState
from tests.acceptance.conftest import TUTTI, Home, until
from tests.orchestrator.batch.conftest import Files, open_parts


@dataclass
class World:
    """A home with three prompts, an input, how it is cut, and what it gives undisturbed."""

    home: Home
    files: Files
    num_rows: int
    shard_rows: int
    calm: bytes = b""

    def parts(self) -> Parts:
        rest = {name: value for name, value in self.home.settings.items() if name != "TUTTI_HOME"}
        return open_parts(self.home.folder, **rest)

    def start(self, *arguments: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [str(TUTTI), "batch", *map(str, arguments)],
            env=self.home.env,
            cwd=self.files.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, output: str) -> "subprocess.Popen[str]":
        given = ("--input", self.files.source, "--output", output, "--shard-rows", self.shard_rows)
        return self.start("run", *given)

    def ledger(self, output: str) -> tuple[BatchRun, dict[int, int]] | None:
        """The run into an output, and the epochs of its done shards."""
        parts = self.parts()
        try:
            found = [run for run in parts.batches.list() if Path(run.output).name == output]
            if not found:
                return None
            shards = parts.batches.shards(found[0].id)
            done = {each.number: each.epoch for each in shards if each.state == ShardState.DONE}
            return found[0], done
        finally:
            parts.close()

    def reach(self, output: str, num_shards: int) -> tuple[BatchRun, dict[int, int]]:
        """Wait until so many shards are done."""

        def look() -> tuple[BatchRun, dict[int, int]] | None:
            found = self.ledger(output)
            return found if found is not None and len(found[1]) >= num_shards else None

        return until(look, f"{num_shards} shards of {output}")

    def check(self, output: str) -> None:
        assert b"".join(self.files.output(output).values()) == self.calm
        found = self.ledger(output)
        assert found is not None
        assert (found[0].state, found[0].num_answered) == ("succeeded", self.num_rows)
