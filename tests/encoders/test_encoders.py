import subprocess
import sys

import pytest

import encoders

HEAVY = ("torch", "transformers", "ray", "deepspeed", "sqlalchemy", "mlflow", "peft", "click")


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after `code`."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_encoders_imports_nothing_heavy() -> None:
    assert not modules_after("import encoders, encoders.text.template").intersection(HEAVY)


def test_using_encoders_needs_torch_and_transformers_alone() -> None:
    code = "import encoders; [getattr(encoders, name) for name in encoders.__all__]"
    loaded = modules_after(code)
    assert {"torch", "transformers"} <= loaded
    assert not loaded.intersection(set(HEAVY) - {"torch", "transformers", "click"})


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(getattr(encoders, name).__name__ == name for name in encoders.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        encoders.Nothing  # noqa: B018


def test_every_public_name_says_what_it_is() -> None:
    for name in encoders.__all__:
        text = getattr(encoders, name).__doc__ or ""
        generated = text.startswith(f"{name}(")  # a dataclass without a docstring of its own
        assert len(text) > 20, name
        assert not generated, name
