"""How long do real tasks take to a fixed held-out accuracy, with everything included?

Run as `python -m benchmarks.real_tasks`. Each side is a process (opponent A: one a task) that
starts Python, loads the base, trains the tasks of examples/tasks until an evaluation reaches the
target accuracy or the steps run out, and ends. Exits 1 if the sides' first losses differ where
both put the prompt first. Results are written after each part: a run that is cut keeps what it has.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.base_folder import base_name, load_packed, load_plain
from benchmarks.command import new_parser, not_negative, positive, run, share
from benchmarks.comparison import relative_error
from benchmarks.example_tasks import (
    NAMES,
    batches,
    gate_accuracy,
    read_example,
    read_task_data,
    with_prompt_first,
)
from benchmarks.machine import Surroundings
from benchmarks.peft_loss import LEANEST, USUAL, VARIANTS
from benchmarks.peft_script import PeftOrder, PeftTask, open_peft, train
from benchmarks.real_tasks_report import ProcessRun, RealReport
from benchmarks.report import write_results
from benchmarks.tutti_script import TuttiOrder, train_together, until_target
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.training.prompt_module import build_prompt
from orchestrator.training.sharded_base import ShardedBase

NUM_CHECKED_STEPS = 2
MAX_LOSS_ERROR = 1e-3  # of the second step's loss: AdamW turns rounding into steps of full size


@dataclass(frozen=True)
class Contest:
    """The tasks of a run, and the folder that orders are written to."""

    base: Path
    scratch: Path
    threads: int
    every: int
    steps: int | None
    targets: Mapping[str, float]

    def run_tutti(self) -> ProcessRun:
        order = TuttiOrder(str(self.base), self.threads, self.targets, self.every, self.steps)
        return _run("benchmarks.tutti_script", order.write(self.scratch / "tutti.json"))

    def run_peft(self, tasks: Sequence[PeftTask], variant: int) -> ProcessRun:
        order = PeftOrder(str(self.base), self.threads, variant, tasks)
        return _run("benchmarks.peft_script", order.write(self.scratch / "peft.json"))

    def peft_tasks(self) -> list[PeftTask]:
        """The tasks with their prompts first, encoded: neither opponent is charged for that."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self.base, local_files_only=True)
        tokenizer = TextTokenizer.load(self.base)
        return [self._peft_task(name, tokenizer, config) for name in self.targets]

    def spec(self, name: str, steps: int | None = None) -> TaskSpec:
        """The task with its prompt first."""
        spec = with_prompt_first(read_example(name))
        return until_target(spec, self.targets[name], self.every, steps or self.steps)

    def _peft_task(self, name: str, tokenizer: TextTokenizer, config: Any) -> PeftTask:
        spec = self.spec(name)
        training = spec.training
        if training.schedule != "linear" or training.warmup_steps or training.weight_decay:
            raise ValueError(f"{spec.task}: peft_script.py knows a linear schedule alone")
        data = read_task_data(spec, tokenizer, config.max_position_embeddings)
        num_virtual = spec.parsed_template().num_virtual_tokens
        encoder = build_prompt(spec.encoder, num_virtual, config.hidden_size, training.seed)
        weights = self.scratch / f"{spec.task}.safetensors"
        save_file(encoder.state_dict(), weights)
        rows = [(example.context[num_virtual:], example.answer) for example in data.splits["train"]]
        return PeftTask(
            name=spec.task,
            encoder={
                "num_virtual_tokens": num_virtual,
                "encoder_reparameterization_type": spec.encoder.type.upper(),
                "encoder_hidden_size": spec.encoder.hidden_size,
                "encoder_num_layers": spec.encoder.num_layers,
                "encoder_dropout": spec.encoder.dropout,
            },
            weights=str(weights),
            rows=[[rows[i] for i in batch] for batch in batches(len(rows), training)],
            eval_rows=[(e.context[num_virtual:], e.candidate) for e in data.splits["eval"]],
            candidates=data.candidate_ids,
            num_steps=training.steps,
            learning_rate=training.learning_rate,
            max_grad_norm=training.max_grad_norm or float("inf"),
            every=self.every,
            target=self.targets[spec.task],
        )


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    """Check, then run the sides in turn; written as results come."""
    targets = {n: arguments.target or gate_accuracy(read_example(n)) for n in arguments.tasks}
    with tempfile.TemporaryDirectory(prefix="tutti-benchmark-") as scratch:
        contest = Contest(
            folder.absolute(), Path(scratch), arguments.threads, arguments.every, arguments.steps,
            targets,
        )  # fmt: skip
        peft_tasks = contest.peft_tasks()
        error = _largest_error(contest, peft_tasks)
        print(f"relative error of the first {NUM_CHECKED_STEPS} losses, prompt first: {error:.1e}")
        if not error < MAX_LOSS_ERROR:
            print(f"at least {MAX_LOSS_ERROR:g}: not equal")
            return False
        report = RealReport(base_name(folder), targets, arguments.every, arguments.a_steps, error)
        _contend(contest, peft_tasks, report, arguments)
    print(f"\n{report.markdown()}\nwritten to {arguments.output}")
    return True


def _contend(
    contest: Contest, tasks: list[PeftTask], report: RealReport, arguments: argparse.Namespace
) -> None:
    surroundings = Surroundings(arguments.threads)

    def note(what: str, process: ProcessRun) -> None:
        print(f"{what}: {process.wall_s:.1f} s, {process.cpu_s:.1f} s of processors", flush=True)
        report.surroundings = surroundings.facts()
        write_results(arguments.output, "real_tasks", report.facts(), report.markdown())

    for _ in range(arguments.repeats):
        report.tutti.append(contest.run_tutti())
        note("Tutti", report.tutti[-1])
        report.b.append(contest.run_peft(tasks, VARIANTS.index(LEANEST)))
        note("B", report.b[-1])
    for task in tasks if arguments.a_tasks is None else tasks[: arguments.a_tasks]:
        cut = task.rows[: arguments.a_steps] if arguments.a_steps else task.rows
        report.a[task.name] = contest.run_peft([replace(task, rows=cut)], VARIANTS.index(USUAL))
        note(f"A, {task.name}", report.a[task.name])


def _largest_error(contest: Contest, tasks: Sequence[PeftTask]) -> float:
    """Of the losses of the first steps, Tutti's with the prompt first against PEFT's."""
    specs = [contest.spec(name, NUM_CHECKED_STEPS) for name in contest.targets]
    base = ShardedBase(load_packed(contest.base), zero_stage=0)
    ours = train_together(base, TextTokenizer.load(contest.base), specs)
    model = open_peft(load_plain(contest.base), tasks)
    errors = []
    for task in tasks:
        short = replace(task, rows=task.rows[:NUM_CHECKED_STEPS], eval_rows=task.eval_rows[:1])
        theirs = train(model, short, VARIANTS.index(LEANEST))
        pairs = zip(ours[task.name]["losses"], theirs["losses"], strict=False)  # or ended
        errors += [relative_error(*pair) for pair in pairs]
    return max(errors)


def _run(module: str, order: Path) -> ProcessRun:
    """Run a script on an order; what it printed last, and the process's whole time."""
    cpu, clock = _children_seconds(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, str(order)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    wall_s, cpu_s = time.perf_counter() - clock, _children_seconds() - cpu
    if done.returncode:
        raise RuntimeError(f"{module} failed:\n{done.stderr[-4000:]}")
    return ProcessRun(wall_s, cpu_s, **json.loads(done.stdout.splitlines()[-1]))


def _children_seconds() -> float:
    return sum(os.times()[2:4])


def _parse() -> argparse.Namespace:
    parser = new_parser("real_tasks", __doc__)
    add = parser.add_argument
    add("--tasks", nargs="+", default=list(NAMES), choices=NAMES, metavar="TASK",
        help="of examples/tasks (default: all)")  # fmt: skip
    add("--target", type=share, help="held-out accuracy (default: what each task's gate asks for)")
    add("--every", type=positive, default=20, help="steps between two evaluations, on all sides")
    add("--steps", type=positive, help="at most so many of each task (default: the spec's)")
    add("--repeats", type=positive, default=3, help="rounds of Tutti and B; A runs once")
    add("--a-tasks", type=not_negative, help="run A for the first N tasks alone (default: all)")
    add("--a-steps", type=not_negative, default=20, metavar="N",
        help="steps A takes of each task; the others are extrapolated (0: all)")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run(_parse(), measure))
