"""Hypothesis strategies of rows to pack: two prompts, any texts around them, some answers."""

from collections.abc import Mapping

from hypothesis import strategies as st

from encoders.packed.packing import PackedRow

HEAD = tuple(-i - 1 for i in range(5))

ids = st.integers(1, 96)
contexts = st.builds(
    lambda before, virtual, after: (*before, *(-i - 1 for i in range(virtual)), *after),
    st.lists(ids, max_size=4),
    st.integers(0, 5),
    st.lists(ids, min_size=1, max_size=4),
)
answers = st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple)
rows = st.builds(PackedRow, st.sampled_from(["p", "q"]), contexts, answers)
LENGTHS = {"p": 5, "q": 5}


def lists_of_rows(virtual: Mapping[str, tuple[int, ...]]) -> st.SearchStrategy[list[PackedRow]]:
    """Rows with answers, each with the whole prompt of one of `virtual` somewhere in its text."""
    row = st.builds(
        lambda prompt, before, after, answers: PackedRow(
            prompt, (*before, *virtual[prompt], *after), tuple(map(tuple, answers))
        ),
        st.sampled_from(list(virtual)),
        st.lists(ids, max_size=5),
        st.lists(ids, max_size=5),
        st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=3),
    )
    return st.lists(row, min_size=1, max_size=5)
