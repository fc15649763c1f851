"""What a `Decoding` may hold: asked before anything starts, and again where it runs."""

import math

from orchestrator.domain.batch import Decoding
from orchestrator.domain.errors import InvalidInput

MAX_BEAMS = 64
MAX_STOP_STRINGS = 16


def check_decoding(decoding: Decoding) -> None:
    """Raise InvalidInput, naming the setting, its value and what is allowed."""
    _check_whole(decoding, "num_beams", 1, MAX_BEAMS)
    _check_whole(decoding, "top_k", 0)
    _check_whole(decoding, "seed")
    if decoding.max_new_tokens is not None:
        _check_whole(decoding, "max_new_tokens", 1)
    _check_number(decoding, "temperature")
    _check_number(decoding, "top_p", at_most=1.0)
    _check_stop_strings(decoding.stop_strings)
    if decoding.do_sample and decoding.num_beams > 1:
        raise InvalidInput(
            f"do_sample with num_beams {decoding.num_beams}: beams are not sampled",
            "Leave out one of the two.",
        )
    if not decoding.do_sample:
        _check_only_sampled(decoding)


def _check_whole(
    decoding: Decoding, name: str, least: int | None = None, most: int | None = None
) -> None:
    value = getattr(decoding, name)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and (least is None or value >= least) and (most is None or value <= most):
        return
    allowed = "a whole number" + (f" from {least}" if least is not None else "")
    raise InvalidInput(f"{name} {value!r}: must be {allowed}" + (f" to {most}" if most else ""))


def _check_number(decoding: Decoding, name: str, at_most: float = math.inf) -> None:
    value = getattr(decoding, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and 0 < value <= at_most:
        return
    limit = "" if math.isinf(at_most) else f" and at most {at_most:g}"
    raise InvalidInput(f"{name} {value!r}: must be a number above 0{limit}")


def _check_stop_strings(strings: object) -> None:
    if not isinstance(strings, tuple) or len(strings) > MAX_STOP_STRINGS:
        raise InvalidInput(f"stop_strings: must be a tuple of at most {MAX_STOP_STRINGS} texts")
    for text in strings:
        if not isinstance(text, str) or not text:
            raise InvalidInput(
                f"stop_strings: {text!r} is not allowed; it must be text of one character or more"
            )


def _check_only_sampled(decoding: Decoding) -> None:
    for name in ("temperature", "top_k", "top_p"):
        if getattr(decoding, name) != getattr(Decoding(), name):
            raise InvalidInput(
                f"{name} {getattr(decoding, name)!r} changes nothing where tokens are not drawn",
                "Ask for do_sample too, or leave it out.",
            )
