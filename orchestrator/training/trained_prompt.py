"""Turns a finished task into what the registry takes: artifacts, config, metrics, lineage."""

import json
from dataclasses import asdict
from functools import cache
from importlib import metadata
from platform import python_version

from encoders.files.weights_file import dump_tensors
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.prompt_version import Lineage, TrainedPrompt
from orchestrator.training.node import hardware_line
from orchestrator.training.task_run import TaskRun

#: What a result may depend on beside the code.
PACKAGES = ("torch", "transformers", "deepspeed", "ray")


def store_trained_prompt(
    run: TaskRun, order: TaskOrder, code_version: str, store: ArtifactStore
) -> TrainedPrompt:
    """Store the encoder, its virtual tokens and its curves; return the version to be."""
    trainer = run.trainer
    tokens = trainer.virtual_tokens()
    artifacts = {
        "encoder": store.put_bytes(dump_tensors(trainer.slot.weights())),
        "prompt_embeddings": store.put_bytes(dump_tensors({"prompt_embeddings": tokens})),
        "curve": store.put_bytes(json.dumps(trainer.curve).encode()),
    }
    if (sweep := run.report()) is not None:
        artifacts["sweep"] = store.put_bytes(json.dumps(sweep).encode())
    return TrainedPrompt(
        task=order.spec.task,
        config=_config(run, int(tokens.shape[1])),
        metrics=_metrics(run),
        artifacts=artifacts,
        lineage=_lineage(run, order, code_version),
    )


def _config(run: TaskRun, token_dim: int) -> dict[str, object]:
    """What inference needs, and how the encoder was shaped and trained."""
    spec, data = run.trainer.spec, run.trainer.data
    row_rule = {
        "max_length": spec.data.max_length if spec.data.truncate else None,
        "truncate": spec.data.truncate,
        "chat": asdict(data.chat) if data.chat else None,
    }
    return {
        "peft_type": "P_TUNING" if spec.encoder.type != "embedding" else "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": run.trainer.num_virtual_tokens,
        "token_dim": token_dim,
        "template": spec.template,
        "answer": spec.answer,
        **{key: value for key, value in row_rule.items() if value is not None},
        "metric": spec.evaluation.metric,
        "candidates": list(data.candidates) if spec.evaluation.metric == "accuracy" else None,
        "ends_answer": data.ends_answer,
        "max_answer_tokens": max(len(answer) for answer in data.candidate_ids),
        "encoder": spec.encoder.model_dump(mode="json"),
        "training": spec.training.model_dump(mode="json"),
    }


def _metrics(run: TaskRun) -> dict[str, float]:
    trainer = run.trainer
    metric = trainer.spec.evaluation.metric
    metrics: dict[str, float] = {
        "held_out_rows": float(len(trainer.data.held_out)),
        "steps": float(trainer.step),
        "best_step": float(trainer.best_step),
        "seconds": round(run.seconds, 3),
    }
    if run.held_out is not None:
        metrics |= {"loss": run.held_out.loss, metric: run.held_out.value}
    if trainer.best is not None:
        metrics[f"eval_{metric}"] = trainer.best.value
    if run.manual is not None:
        metrics[f"manual_{metric}"] = run.manual.value
    return metrics


def _lineage(run: TaskRun, order: TaskOrder, code_version: str) -> Lineage:
    return Lineage(
        base=order.spec.base,
        base_fingerprint=order.base_fingerprint,
        datasets=dict(order.datasets),
        num_rows=run.trainer.data.num_rows,
        spec_digest=order.spec.digest(),
        seed=run.trainer.spec.training.seed,
        code_version=code_version,
        job=order.job_id,
        packages=_packages(),
        hardware=hardware_line(),
    )


@cache
def _packages() -> dict[str, str]:
    found = {
        each.name: each.version for name in PACKAGES for each in metadata.distributions(name=name)
    }
    return {"python": python_version(), **found}
