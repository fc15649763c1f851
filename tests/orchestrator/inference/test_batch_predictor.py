"""Columns in, columns out, for `map_batches`."""

import json
from typing import Any

import numpy as np
import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.batch import BatchMode, BatchSettings, Decoding
from orchestrator.domain.errors import InvalidInput
from orchestrator.inference.batch_predictor import BatchPredictor, predictor_arguments
from tests.orchestrator.inference.conftest import MAX_LENGTH, Base, MakeVersion

Make = Any


@pytest.fixture(scope="module")
def make(store: ArtifactStore, bases: tuple[Base, Base], make_version: MakeVersion) -> Make:
    versions = {
        "colour@production": make_version("colour"),
        "spelled@1": make_version("spelled", candidates=None),
    }
    served = {base.fingerprint: (base.folder, MAX_LENGTH) for base in bases}

    def make_one(*refs: str, **settings: Any) -> BatchPredictor:
        chosen = {ref: versions[ref] for ref in refs}
        given = BatchSettings(**settings)
        return BatchPredictor(**predictor_arguments(chosen, served, store.url, 1, given))

    return make_one


def columns(**values: list[Any]) -> dict[str, Any]:
    return {name: np.array(value, dtype=object) for name, value in values.items()}


def test_one_prompt_answers_all_rows(make: Make) -> None:
    batch = make("colour@production")(columns(word=["a1", "b2", None], more=[1, 2, 3]))
    assert batch["more"].tolist() == [1, 2, 3]
    assert {*batch["answer"][:2]} <= {"red", "blue"}
    assert batch["version"].tolist() == [1, 1, 1]
    assert set(json.loads(batch["scores"][0])) == {"red", "blue"}
    assert batch["error"].tolist()[:2] == [None, None]
    assert "lacks the field 'word'" in batch["error"][2]


def test_rows_name_their_prompts_where_there_are_several(make: Make) -> None:
    batch = make("colour@production", "spelled@1")(
        columns(task=["colour", "spelled", "other"], version=[None, 1, None], word=["a", "b", "c"])
    )
    assert batch["answer"][0] in ("red", "blue")
    assert batch["tokens"][1] >= 1
    assert batch["error"][2] == "other@production is not among the prompts given"


def test_columns_of_other_names_are_mapped_and_states_embedded(make: Make) -> None:
    predictor = make("colour@production", mode=BatchMode.EMBED, columns={"word": "Wort"})
    batch = predictor(columns(Wort=["a", "b"]))
    assert [len(each) for each in batch["embedding"]] == [64, 64]
    assert "answer" not in batch


def test_samples_need_numbers_of_rows(make: Make) -> None:
    predictor = make("spelled@1", decoding=Decoding(do_sample=True))
    with pytest.raises(InvalidInput, match="there is no column 'row' to seed them by"):
        predictor(columns(word=["a"]))
    first = predictor(columns(word=["a"] * 6, row=list(range(6))))["answer"].tolist()
    again = predictor(columns(word=["a"] * 2, row=[4, 5]))["answer"].tolist()
    assert again == first[4:]


@pytest.mark.ray
def test_the_documented_example_runs_in_a_pipeline_of_the_users(make: Make) -> None:
    """As the module's docstring says, with the arguments that `Tutti.batch_predictor` gives."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        arguments = {"plan": make("colour@production")._plan}
        rows = ray.data.from_items([{"word": "Kenya"}, {"word": "Peru"}])
        answered = rows.map_batches(
            BatchPredictor, fn_constructor_kwargs=arguments, batch_size=256, concurrency=1
        )
        found = answered.take_all()
    finally:
        ray.shutdown()
    assert sorted(row["word"] for row in found) == ["Kenya", "Peru"]
    assert {row["answer"] for row in found} <= {"red", "blue"}
