"""One function for every kind of prompt on disk; nothing found there is run or guessed.

Adapter folders (Tutti's or PEFT's), training states, prompt tables, prompt embeds, keys and values.
"""

from pathlib import Path

from encoders.config import CONFIG_NAME
from encoders.errors import WeightsError
from encoders.files.weights_file import open_weights
from encoders.formats import key_values, prompt_embeds
from encoders.formats.key_values import KeyValues, load_key_values
from encoders.formats.peft_format import Adapter, load_adapter
from encoders.formats.prompt_embeds import PromptEmbeds, load_prompt_embeds
from encoders.formats.prompt_table import PromptTable, load_prompt_table
from encoders.formats.training_state import MANIFEST_NAME, TrainingState, load_training_state

LoadedPrompt = Adapter | TrainingState | PromptTable | PromptEmbeds | KeyValues


def load_prompt(path: str | Path) -> LoadedPrompt:
    """What a folder or file holds, checked before memory is taken.

    An adapter folder gives an Adapter, a training's folder a TrainingState, an `.npy` table with
    its id map a PromptTable, a safetensors file PromptEmbeds or KeyValues. Raises WeightsError or
    ConfigError, with the reason, for anything else.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".npy":
        return load_prompt_table(path)
    with open_weights(path) as weights:
        metadata = weights.metadata
    kind = metadata.get("kind") if isinstance(metadata, dict) else None
    if kind == prompt_embeds.KIND:
        return load_prompt_embeds(path)
    if kind == key_values.KIND:
        return load_key_values(path)
    raise WeightsError(
        f"{path}: its header does not say what it holds, as Tutti's exports do; of an adapter give "
        "the whole folder"
    )


def _load_folder(folder: Path) -> Adapter | TrainingState:
    is_adapter, is_state = ((folder / name).exists() for name in (CONFIG_NAME, MANIFEST_NAME))
    if is_adapter and is_state:
        raise WeightsError(
            f"{folder}: it holds both an adapter and a training state; load the one you mean with "
            "load_adapter or load_training_state"
        )
    if is_state:
        return load_training_state(folder)
    return load_adapter(folder)
