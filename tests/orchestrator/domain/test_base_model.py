import pytest

from orchestrator.domain.base_model import fingerprint

FILES = {"config.json": "c", "model.safetensors": "m", "tokenizer.json": "t"}
CONFIG = {"model_type": "llama", "hidden_size": 64}


@pytest.mark.parametrize("key", ["_name_or_path", "transformers_version", "torch_dtype", "dtype"])
def test_places_and_program_versions_do_not_count(key: str) -> None:
    assert fingerprint(FILES, {**CONFIG, key: "anything"}) == fingerprint(FILES, CONFIG)


def test_the_bytes_of_the_config_do_not_count_beside_its_content() -> None:
    assert fingerprint({**FILES, "config.json": "x"}, CONFIG) == fingerprint(FILES, CONFIG)


def test_the_order_of_keys_and_files_does_not_count() -> None:
    turned = dict(reversed(FILES.items())), dict(reversed(CONFIG.items()))
    assert fingerprint(*turned) == fingerprint(FILES, CONFIG)


@pytest.mark.parametrize(
    ("files", "config"),
    [
        ({**FILES, "model.safetensors": "x"}, CONFIG),
        ({**FILES, "tokenizer.json": "x"}, CONFIG),
        ({**FILES, "merges.txt": "x"}, CONFIG),
        ({"config.json": "c", "model.safetensors": "m"}, CONFIG),
        (FILES, {**CONFIG, "rope_theta": 1.0}),
        (FILES, {**CONFIG, "hidden_size": 65}),
    ],
)
def test_everything_else_counts(files: dict[str, str], config: dict[str, object]) -> None:
    assert fingerprint(files, config) != fingerprint(FILES, CONFIG)
