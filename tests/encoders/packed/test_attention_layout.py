from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.packed.attention_layout import AttentionLayout, Segment

#: Each segment's length, and which of the segments before it (or none) it continues.
forests = st.lists(st.tuples(st.integers(1, 9), st.integers(-1, 8)), min_size=1, max_size=9)


def segments_of(forest: list[tuple[int, int]]) -> list[Segment]:
    segments: list[Segment] = []
    start = 0
    for length, parent in forest:
        before = segments[parent] if 0 <= parent < len(segments) else None
        segments.append(Segment(start, start + length, before))
        start += length
    return segments


def attended(layout: AttentionLayout) -> list[set[int]]:
    """For each packed position, the positions it attends to, as the buckets say."""
    found: list[set[int]] = []
    for bucket in layout.buckets:
        for keys, mask in zip(bucket.key.tolist(), bucket.mask[:, 0].tolist(), strict=True):
            found += [{k for k, on in zip(keys, row, strict=True) if on} for row in mask]
    return [found[index] for index in layout.restore.tolist()]


@given(forests)
@settings(max_examples=100, deadline=None)
def test_each_position_attends_to_its_ancestors_and_what_stands_before_it(
    forest: list[tuple[int, int]],
) -> None:
    segments = segments_of(forest)
    found = attended(AttentionLayout.of(segments))
    for segment in segments:
        above: set[int] = set()
        parent = segment.parent
        while parent is not None:
            above |= set(range(parent.start, parent.stop))
            parent = parent.parent
        for position in range(segment.start, segment.stop):
            assert found[position] == above | set(range(segment.start, position + 1))


@given(forests)
@settings(max_examples=50, deadline=None)
def test_padding_repeats_positions_of_its_own_row_alone(forest: list[tuple[int, int]]) -> None:
    segments = segments_of(forest)
    layout = AttentionLayout.of(segments)
    by_start = {segment.start: segment for segment in segments}
    for bucket in layout.buckets:
        for query, key in zip(bucket.query.tolist(), bucket.key.tolist(), strict=True):
            segment = by_start[query[0]]
            assert set(query) == set(range(segment.start, segment.stop))
            assert set(key) == set(segment.keys())
        assert bucket.mask.any(-1).all(), "a query with nothing to attend to gives NaN"


@given(forests)
@settings(max_examples=50, deadline=None)
def test_depth_is_the_position_of_the_first_token_in_its_row(
    forest: list[tuple[int, int]],
) -> None:
    segments = segments_of(forest)
    assert all(segment.depth == len(segment.keys()) - len(segment) for segment in segments)
    longest = max(segment.depth + len(segment) for segment in segments)
    assert AttentionLayout.of(segments).max_length == longest


def test_segments_of_like_size_share_a_bucket() -> None:
    assert len(AttentionLayout.of(segments_of([(9, -1), (11, -1), (12, -1)])).buckets) == 1
    assert len(AttentionLayout.of(segments_of([(5, -1), (9, -1), (1, -1)])).buckets) == 3


@given(forests, forests)
@settings(max_examples=50, deadline=None)
def test_neighbours_change_neither_the_padding_of_a_segment_nor_the_order_of_buckets(
    forest: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    def shapes(segments: list[Segment], num_own: int) -> list[tuple[int, int, list[int]]]:
        """Each bucket's sizes and the first positions of the own segments in it, in order."""
        owned = {segment.start for segment in segments[:num_own]}
        found = []
        for bucket in AttentionLayout.of(segments).buckets:
            starts = [start for start in bucket.query[:, 0].tolist() if start in owned]
            if starts:
                found.append((bucket.query.shape[1], bucket.key.shape[1], starts))
        return found

    alone = segments_of(forest)
    size = sum(length for length, _ in forest)
    moved = [
        Segment(s.start + size, s.stop + size) for s in segments_of([(n, -1) for n, _ in others])
    ]
    assert shapes(alone, len(alone)) == shapes([*alone, *moved], len(alone))


def test_padding_never_doubles_a_bucket() -> None:
    layout = AttentionLayout.of(segments_of([(length, -1) for length in range(1, 65)]))
    assert sum(bucket.query.numel() for bucket in layout.buckets) < 2 * sum(range(1, 65))
