"""A task spec: what to train, on what, how, and when to promote it. Immutable, stored with its job.

Field names of encoders and training are PEFT's and transformers' where they have one. Unknown keys
are refused. Reading a spec file, with line numbers in its errors, is spec_file.py's work.
"""

import operator
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from encoders.errors import TemplateError
from encoders.text.template import Template
from orchestrator.domain.digest import digest_json
from orchestrator.domain.gate import Gate
from orchestrator.domain.spec_part import SpecPart
from orchestrator.domain.sweep import SweepSpec
from orchestrator.domain.swept_fields import check_paths, read, vary, whole_number_paths

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,99}"
NAME_RULE = "1 to 100 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit"


def check_name(name: str) -> str:
    """Return `name` if it may name a task, base or alias, else raise ValueError with the rule."""
    if not re.fullmatch(NAME_PATTERN, name) or ".." in name:
        raise ValueError(f"{name!r} is not a name: use {NAME_RULE}, without '..'")
    return name


def check_alias(name: str) -> str:
    """Return `name` if it may name an alias: a name that is no number (TASK@7 is a version)."""
    if name.isdigit():
        raise ValueError(f"{name!r} is a version's number; an alias needs a letter")
    return check_name(name)


Name = Annotated[str, AfterValidator(check_name)]
Alias = Annotated[str, AfterValidator(check_alias)]
Metric = Literal["accuracy", "exact_match", "loss"]


def _is_none(value: object) -> bool:
    return value is None


class InitSpec(SpecPart):
    """Where the prompt starts: at a text's embeddings (cut or repeated), or at random tokens'."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: Literal["text", "vocabulary"] = Field(alias="from")
    text: str | None = Field(None, max_length=10_000, exclude_if=operator.not_)

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if (self.source == "text") != bool(self.text and self.text.strip()):
            raise ValueError("give a text that is not blank with `from: text`, and only there")
        return self


class EncoderSpec(SpecPart):
    """The prompt encoder: PEFT's P-tuning MLP or LSTM, or a bare embedding table.

    Without `init` its weights are random numbers and so is the prompt's start.
    """

    type: Literal["mlp", "lstm", "embedding"] = "mlp"
    hidden_size: int | None = Field(None, ge=1, le=65536)
    num_layers: int = Field(2, ge=1, le=16)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    init: InitSpec | None = Field(None, exclude_if=operator.not_)


class DataSpec(SpecPart):
    """JSONL files, relative to the spec. `eval` picks the best step; `test`, if given, is reported.

    `max_length` is the most tokens a row may have, virtual tokens and answer counted (default: the
    base's context length). A longer row is an error, unless `truncate` names a field of the
    template: its last tokens are dropped until the row fits, in training and in inference alike
    (encoders/text/row_encoder.py).
    """

    train: str
    eval: str
    test: str | None = None
    max_length: int | None = Field(None, ge=2)
    truncate: str | None = Field(None, exclude_if=operator.not_)

    def files(self) -> dict[str, str]:
        """The data files by split."""
        splits = {"train": self.train, "eval": self.eval, "test": self.test}
        return {split: path for split, path in splits.items() if path is not None}


class EarlyStop(SpecPart):
    """Stop after `patience` evaluations without an improvement, or when the spec's metric reaches
    `target` (for loss: when it is as low)."""

    patience: int | None = Field(None, ge=1, exclude_if=_is_none)
    target: float | None = Field(None, ge=0, exclude_if=_is_none)

    @model_validator(mode="after")
    def _check_given(self) -> Self:
        if self.patience is None and self.target is None:
            raise ValueError("give a patience, a target, or both")
        return self


class TrainingSpec(SpecPart):
    """The optimisation: one optimizer step per step, on `batch_size` rows of this task alone."""

    steps: int = Field(100, ge=1, le=10_000_000)
    batch_size: int = Field(8, ge=1, le=4096)
    learning_rate: float = Field(1e-2, gt=0)
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    seed: int = Field(0, ge=0, lt=2**32)
    early_stop: EarlyStop | None = None


class EvaluationSpec(SpecPart):
    """How held-out rows are judged, every `every` steps and at the end.

    accuracy: the answer ranks first among the candidates. exact_match: greedy decoding gives the
    answer and stops. loss: mean negative log-likelihood of an answer token. `manual_prompt` is a
    template without virtual tokens: what a person would write, ranked on the same rows.
    """

    every: int = Field(20, ge=1)
    metric: Metric = "accuracy"
    manual_prompt: str | None = None


class PromoteSpec(SpecPart):
    """Move `alias` to the new version when the condition `when` holds (always, if not given)."""

    alias: Alias = "production"
    when: str | None = None


class ShardingSpec(SpecPart):
    """How DeepSpeed holds the frozen base: 0 whole on every worker, 3 split over the workers, null
    as the setting says. With `data_parallel` all workers share the rows of each step: the result is
    one worker's to rounding.
    """

    zero_stage: Literal[0, 3] | None = None
    data_parallel: bool = Field(False, exclude_if=operator.not_)


class TaskSpec(SpecPart):
    """One task's whole specification.

    `chat` puts the template's text, and the manual prompt's, as the user's message of a chat in the
    base's own markup. Keys that came later are left out where unset: digests stay what they were.
    """

    task: Name
    base: Name
    template: str = Field(max_length=100_000)
    answer: str
    chat: bool = Field(False, exclude_if=operator.not_)
    candidates: tuple[str, ...] | None = Field(None, min_length=2)
    encoder: EncoderSpec = EncoderSpec()
    data: DataSpec
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    promote: PromoteSpec | None = None
    sharding: ShardingSpec | None = None
    sweep: SweepSpec | None = Field(None, exclude_if=operator.not_)

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        for key, parse in {
            "template": self.parsed_template,
            "data.truncate": self._check_truncate,
            "evaluation.manual_prompt": self.parsed_manual_prompt,
            "promote.when": self.gate,
            "training.early_stop.target": self._check_target,
            "sweep": self._check_sweep,
        }.items():
            try:
                parse()
            except (TemplateError, ValueError) as error:
                raise ValueError(f"{key}: {error}") from error
        if self.candidates and len(set(self.candidates)) < len(self.candidates):
            raise ValueError("candidates: an answer is listed twice")
        return self

    def parsed_template(self) -> Template:
        return Template.parse(self.template, self.answer)

    def _check_truncate(self) -> None:
        if self.data.truncate is not None:
            self.parsed_template().check_truncate(self.data.truncate)

    def parsed_manual_prompt(self) -> Template | None:
        text = self.evaluation.manual_prompt
        if text is None:
            return None
        manual = Template.parse(text, self.answer, needs_prompt=False)
        if manual.num_virtual_tokens:
            raise TemplateError("a manual prompt has no virtual tokens; remove {prompt:n}")
        return manual

    def gate(self) -> Gate | None:
        return Gate.parse(self.promote.when) if self.promote and self.promote.when else None

    def _check_target(self) -> None:
        stop, metric = self.training.early_stop, self.evaluation.metric
        if stop and stop.target is not None and stop.target > 1 and metric != "loss":
            raise ValueError(f"{metric} is at most 1, so it never reaches {stop.target:g}")

    def trials(self) -> dict[str, "TaskSpec"]:
        """The trainings of this task by key: itself, or its sweep's, each once and in order."""
        if self.sweep is None:
            return {self.task: self}
        draws = self.sweep.draw(whole_number_paths(self._swept_parts))
        trials = dict.fromkeys(self._trial(values) for values in draws)
        return {f"{self.task}/{index}": trial for index, trial in enumerate(trials)}

    def swept_values(self, trial: "TaskSpec") -> dict[str, Any]:
        """A trial's values of the fields that the sweep is over, as JSON."""
        return read(trial._swept_parts, sorted(self.sweep.over) if self.sweep else ())

    @property
    def _swept_parts(self) -> Mapping[str, SpecPart]:
        return {"encoder": self.encoder, "training": self.training}

    def _trial(self, values: Mapping[str, Any]) -> "TaskSpec":
        """This task with other values, without its sweep; ValueError if it cannot be trained."""
        try:
            parts = vary(self._swept_parts, values)
            trial = self.model_copy(update={**parts, "sweep": None})
            trial._check_target()
        except ValueError as error:
            given = ", ".join(f"{path}: {value}" for path, value in values.items())
            raise ValueError(f"the trial with {{{given}}}: {error}") from error
        return trial

    def _check_sweep(self) -> None:
        if self.sweep is None:
            return
        check_paths(self.sweep.over, self._swept_parts)
        num_steps = max(trial.training.steps for trial in self.trials().values())
        if self.sweep.halving and not self.sweep.halving.rungs(num_steps):
            raise ValueError(
                f"halving.first is {self.sweep.halving.first}, not below the {num_steps} steps of "
                "a trial: none would ever be stopped"
            )

    @property
    def is_data_parallel(self) -> bool:
        """Whether all ranks of a gang share the rows of each step."""
        return self.sharding is not None and self.sharding.data_parallel

    def digest(self) -> str:
        """sha256 of the canonical spec."""
        return digest_json(self.model_dump(mode="json"))
