import pickle

import pytest

from orchestrator.domain import errors
from orchestrator.domain.errors import InvalidInput, TuttiError


def all_kinds() -> list[type[TuttiError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, TuttiError)]


@pytest.mark.parametrize("kind", all_kinds())
def test_errors_cross_processes_whole(kind: type[TuttiError]) -> None:
    error = pickle.loads(pickle.dumps(kind("x.yaml:3: wrong", "Do this.")))
    assert type(error) is kind
    assert (error.message, error.remedy) == ("x.yaml:3: wrong", "Do this.")
    assert str(error) == "x.yaml:3: wrong\n  Do this."


@pytest.mark.parametrize("kind", all_kinds())
def test_wrong_input_exits_with_2_and_the_rest_with_1(kind: type[TuttiError]) -> None:
    assert kind("x").exit_code == (2 if issubclass(kind, InvalidInput) else 1)


@pytest.mark.parametrize("kind", all_kinds())
def test_the_tree_in_the_docstring_names_every_kind(kind: type[TuttiError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


def test_a_message_without_a_remedy_stands_alone() -> None:
    assert str(TuttiError("wrong")) == "wrong"
