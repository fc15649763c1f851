import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from transformers import ByT5Tokenizer

from encoders.files.weights_file import load_tensors
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.digest import digest_json
from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.prompt_version import PromptVersion, TrainedPrompt
from orchestrator.inference.served_prompt import ServedPrompt
from orchestrator.training.node import hardware_line
from orchestrator.training.prompt_module import build_prompt
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import encode_task, max_row_length
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer
from orchestrator.training.trained_prompt import store_trained_prompt
from tests.orchestrator.training.conftest import (
    WIDTH,
    Loop,
    MakeTrainer,
    make_datasets,
    make_spec,
)

DATASETS = {"train": digest_json("train"), "eval": digest_json("eval")}


def order_of(run: TaskRun) -> TaskOrder:
    return TaskOrder(run.job_id, run.trainer.spec, DATASETS, "f" * 64, 10.0)


@pytest.fixture
def store(tmp_path: Any) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


def train(base: ShardedBase, make_trainer: MakeTrainer, **changes: Any) -> TaskRun:
    (run,) = Loop(base, [make_trainer(**changes)]).finished
    return run


def store_run(run: TaskRun, store: ArtifactStore) -> TrainedPrompt:
    return store_trained_prompt(run, order_of(run), "0.1.0+g1", store)


def test_artifacts_hold_the_encoder_its_tokens_and_the_curves(
    base: ShardedBase, make_trainer: MakeTrainer, store: ArtifactStore
) -> None:
    run = train(base, make_trainer)
    trained = store_run(run, store)
    assert set(trained.artifacts) == {"encoder", "prompt_embeddings", "curve"}
    data = {name: store.get_bytes(each.digest) for name, each in trained.artifacts.items()}
    tokens = load_tensors(data["prompt_embeddings"], {"prompt_embeddings": (4, WIDTH)})
    assert torch.equal(tokens["prompt_embeddings"], run.trainer.virtual_tokens())
    shapes = {n: tuple(v.shape) for n, v in run.trainer.slot.weights().items()}
    encoder = load_tensors(data["encoder"], shapes)
    again = build_prompt(run.trainer.spec.encoder, 4, WIDTH, seed=0)
    again.load_state_dict(encoder)
    emitted = again.eval().virtual_tokens()  # type: ignore[operator]
    assert torch.allclose(emitted, tokens["prompt_embeddings"], atol=1e-6)
    curve = json.loads(data["curve"])
    assert [step for step, _ in curve["loss"]] == [1, 2, 3, 4]
    assert {"learning_rate", "eval_accuracy", "eval_loss"} <= set(curve)


def test_the_config_holds_what_inference_needs(
    base: ShardedBase, make_trainer: MakeTrainer, store: ArtifactStore
) -> None:
    config = store_run(train(base, make_trainer), store).config
    assert config["peft_type"] == "P_TUNING"
    assert config["num_virtual_tokens"] == 4
    assert config["token_dim"] == WIDTH
    assert config["template"] == "{word}:{prompt:4} {colour}"
    assert config["candidates"] == ["blue", "red"]
    assert config["ends_answer"] is False
    assert config["max_answer_tokens"] == len(" blue")
    assert json.loads(json.dumps(config)) == config


def test_generated_answers_have_no_candidates(
    base: ShardedBase, make_trainer: MakeTrainer, store: ArtifactStore
) -> None:
    config = store_run(
        train(base, make_trainer, evaluation={"metric": "exact_match"}), store
    ).config
    assert config["candidates"] is None
    assert config["ends_answer"] is True
    assert config["max_answer_tokens"] == len(" blue") + 1


def test_a_bare_table_is_prompt_tuning(
    base: ShardedBase, make_trainer: MakeTrainer, store: ArtifactStore
) -> None:
    run = train(base, make_trainer, encoder={"type": "embedding"})
    assert store_run(run, store).config["peft_type"] == "PROMPT_TUNING"


def test_metrics_are_the_reported_ones(
    base: ShardedBase, make_trainer: MakeTrainer, store: ArtifactStore
) -> None:
    manual = {"manual_prompt": "the colour of {word} is {colour}"}
    run = train(base, make_trainer, evaluation=manual)
    metrics = store_run(run, store).metrics
    assert run.held_out is not None
    assert run.manual is not None
    assert metrics["accuracy"] == run.held_out.value
    assert metrics["loss"] == run.held_out.loss
    assert metrics["manual_accuracy"] == run.manual.value
    assert metrics["held_out_rows"] == 5
    assert metrics["steps"] == 4
    assert metrics["best_step"] in (2, 4)
    assert all(isinstance(value, float) for value in metrics.values())


def test_lineage_says_where_it_came_from(
    base: ShardedBase, make_trainer: MakeTrainer, store: ArtifactStore
) -> None:
    run = train(base, make_trainer)
    lineage = store_run(run, store).lineage
    assert (lineage.base, lineage.base_fingerprint) == ("tiny", "f" * 64)
    assert lineage.datasets == DATASETS
    assert lineage.num_rows == {"train": 10, "eval": 5}
    assert lineage.spec_digest == run.trainer.spec.digest()
    assert (lineage.seed, lineage.code_version, lineage.job) == (1, "0.1.0+g1", "job-colour")
    assert lineage.packages["torch"] == torch.__version__
    assert {"python", "transformers", "deepspeed", "ray"} < lineage.packages.keys()
    assert lineage.hardware == hardware_line()


def test_the_same_training_is_the_same_content(
    base: ShardedBase, make_trainer: MakeTrainer, store: ArtifactStore
) -> None:
    first, second = (store_run(train(base, make_trainer), store) for _ in range(2))
    assert first.digest == second.digest
    other = store_run(train(base, make_trainer, training={"seed": 2}), store)
    assert other.digest != first.digest


def test_a_failed_store_is_not_hidden(
    base: ShardedBase, make_trainer: MakeTrainer, tmp_path: Any
) -> None:
    (tmp_path / "file").write_text("")
    run = train(base, make_trainer)
    order = replace(order_of(run), job_id="x")
    with pytest.raises(Exception, match="cannot"):
        store_trained_prompt(run, order, "0.1.0", ArtifactStore(str(tmp_path / "file")))


def test_without_cuts_and_chat_the_config_has_no_key_for_them(
    base: ShardedBase, make_trainer: MakeTrainer, store: ArtifactStore
) -> None:
    data = {"train": "t", "eval": "e", "max_length": 100}
    config = store_run(train(base, make_trainer, data=data), store).config
    assert not {"max_length", "truncate", "chat"} & config.keys()


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("metric", ["accuracy", "exact_match"])
@pytest.mark.parametrize("max_length", [48, None])
def test_inference_encodes_a_row_as_training_did(
    store: ArtifactStore, chat: bool, metric: str, max_length: int | None
) -> None:
    """Long rows are cut in the same place, and stand in the same chat, though the base's chat
    template is another one by then."""
    slow = ByT5Tokenizer()
    slow.chat_template = "<extra_id_0>user:{{ messages[0]['content'] }}<extra_id_1>"
    tokenizer = TextTokenizer(slow)
    spec = make_spec(
        chat=chat,
        data={"train": "t", "eval": "e", "max_length": max_length, "truncate": "word"},
        evaluation={"metric": metric},
    )
    rows = [{"word": word * 99, "colour": "red"} for word in ("é", "a</s> ")]
    rows.append({"word": "b<extra_id_1>", "colour": "a long answer"})
    datasets = make_datasets(train=rows, eval=rows)
    data = encode_task(spec, datasets, tokenizer, max_row_length(spec, 64))
    trained = store_run(TaskRun("job", TaskTrainer(spec, data, WIDTH)), store)
    assert json.loads(json.dumps(trained.config)) == trained.config
    made = datetime(2026, 1, 1, tzinfo=UTC)
    version = PromptVersion(**vars(trained), number=1, digest=trained.digest, created_at=made)
    slow.chat_template = "<extra_id_0>on another day:{{ messages[0]['content'] }}"
    served = ServedPrompt.load(version, store, TextTokenizer(slow), 64)
    contexts = [served.encode({"word": row["word"]}) for row in rows]
    assert contexts == [example.context for example in data.splits["train"]]
    assert max(map(len, contexts)) + served.max_answer_tokens in range(
        (max_length or 64) - 2, (max_length or 64) + 1
    )
    if metric == "accuracy":
        assert served.candidate_ids == data.candidate_ids
