"""A decoding that cannot be is refused by the name of its setting; others pass."""

from typing import Any

import pytest

from orchestrator.domain.batch import Decoding
from orchestrator.domain.decoding_check import check_decoding
from orchestrator.domain.errors import InvalidInput


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"num_beams": 4, "max_new_tokens": 1, "stop_strings": ("\n", "END")},
        {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 1, "seed": -3},
    ],
)
def test_what_can_be_passes(asked: dict[str, Any]) -> None:
    check_decoding(Decoding(**asked))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"do_sample": True, "temperature": 0}, "temperature 0: must be a number above 0"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature nan: must be"),
        ({"do_sample": True, "temperature": float("inf")}, "temperature inf: must be"),
        ({"do_sample": True, "temperature": True}, "temperature True: must be"),
        ({"do_sample": True, "top_p": 0.0}, r"top_p 0\.0: .* above 0 and at most 1"),
        ({"do_sample": True, "top_p": 1.1}, r"top_p 1\.1: .* above 0 and at most 1"),
        ({"do_sample": True, "top_k": -1}, "top_k -1: must be a whole number from 0"),
        ({"do_sample": True, "top_k": 2.0}, r"top_k 2\.0: must be a whole number"),
        ({"num_beams": 0}, "num_beams 0: must be a whole number from 1 to 64"),
        ({"num_beams": 65}, "num_beams 65: must be a whole number from 1 to 64"),
        ({"max_new_tokens": 0}, "max_new_tokens 0: must be a whole number from 1"),
        ({"seed": "a"}, "seed 'a': must be a whole number"),
        ({"stop_strings": ("a", "")}, "stop_strings: '' is not allowed"),
        ({"stop_strings": "abc"}, "stop_strings: must be a tuple"),
        ({"do_sample": True, "num_beams": 2}, "do_sample with num_beams 2: .* not sampled"),
        ({"temperature": 0.5}, r"temperature 0\.5 changes nothing where tokens are not drawn"),
        ({"top_k": 5}, "top_k 5 changes nothing where tokens are not drawn"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        check_decoding(Decoding(**asked))
