"""The report's pictures, as SVG that stands in the page: no script, font or file of its own.

Colours are the page's: classes `bar`, `hit`, `axis`, `grid`, `mark`. Sizes are in pixels.
"""

from collections.abc import Sequence
from itertools import pairwise

from orchestrator.batch_report.calibration import Calibration
from orchestrator.batch_report.html_text import Markup, element
from orchestrator.batch_report.run_facts import ShardFacts
from orchestrator.domain.paired_hits import Share

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 320, 190, 44, 34, 10, 12
MAX_BARS = 60


def draw_interval(share: Share) -> Markup:
    """A share between 0 and 1 with its interval: a line with a dot on it."""
    low, high = share.interval
    line = _line(4 + 112 * low, 8, 4 + 112 * high, 8, "mark")
    dot = element("circle", cx=_px(4 + 112 * share.value), cy=8, r=3.5, class_="dot")
    label = f"{share.value:.3f}, 95% interval {low:.3f} to {high:.3f}"
    return _svg(120, 16, label, _line(4, 8, 116, 8, "grid"), line, dot)


def draw_scores(scores: Calibration) -> Markup:
    """How many rows have a score in each bin; of those whose answer is known, the right ones."""
    top = max(each.num_rows for each in scores.bins)
    bars = []
    for each in scores.bins:
        bars.append(_bar(each.low, each.high, each.num_rows / top, "bar"))
        if each.num_hits:
            bars.append(_bar(each.low, each.high, each.num_hits / top, "hit"))
    return _chart("rows by score", "score", ("0", f"{top:,}"), bars)


def draw_reliability(scores: Calibration) -> Markup:
    """Each bin's share of right answers, with its interval, over its mean score: on the diagonal
    where scores mean what they say."""
    marks = [_line(_x(0), _y(0), _x(1), _y(1), "grid")]
    for each in scores.bins:
        if each.mean_known is None:
            continue
        share = Share(each.num_hits, each.num_known)
        low, high = share.interval
        x = _x(each.mean_known)
        marks.append(_line(x, _y(low), x, _y(high), "mark"))
        marks.append(element("circle", cx=_px(x), cy=_px(_y(share.value)), r=3.5, class_="dot"))
    return _chart("share of right answers by score", "score", ("0", "1"), marks)


def draw_speed(shards: Sequence[ShardFacts]) -> Markup:
    """Milliseconds per row along the input; many shards are pooled, weighted by their rows."""
    ordered = sorted(shards, key=lambda shard: shard.index)
    num_bars = min(MAX_BARS, len(ordered))
    cuts = [len(ordered) * place // num_bars for place in range(num_bars + 1)]
    pools = [ordered[a:b] for a, b in pairwise(cuts)]
    means = [
        1000 * sum(each.seconds for each in pool) / max(1, sum(each.num_rows for each in pool))
        for pool in pools
    ]
    top = max(means) or 1.0
    bars = [
        _bar(place / num_bars, (place + 1) / num_bars, mean / top, "bar")
        for place, mean in enumerate(means)
    ]
    ends = ("first row", "last row")
    return _chart("milliseconds per row", "along the input", ("0", f"{top:.3g}"), bars, ends)


def _chart(
    title: str,
    along: str,
    heights: tuple[str, str],
    marks: Sequence[Markup],
    ends: tuple[str, str] = ("0", "1"),
) -> Markup:
    """Marks on a frame; `heights` and `ends` name the ends of its axes."""
    axis = (
        _line(_x(0), _y(0), _x(1), _y(0), "axis"),
        _line(_x(0), _y(0), _x(0), _y(1), "axis"),
        _label(_x(0) - 5, _y(0), heights[0], "end"),
        _label(_x(0) - 5, _y(1) + 9, heights[1], "end"),
        _label(_x(0), _y(0) + 14, ends[0], "start"),
        _label(_x(1), _y(0) + 14, ends[1], "end"),
        _label((_x(0) + _x(1)) / 2, HEIGHT - 5, along, "middle"),
    )
    return _svg(WIDTH, HEIGHT, title, *marks, *axis)


def _svg(width: int, height: int, label: str, *inner: Markup) -> Markup:
    return element(
        "svg",
        *inner,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def _bar(left: float, right: float, height: float, kind: str) -> Markup:
    x, y = _x(left) + 1, _y(height)
    width = max(0.5, _x(right) - _x(left) - 2)
    return element("rect", x=_px(x), y=_px(y), width=_px(width), height=_px(_y(0) - y), class_=kind)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", x1=_px(x1), y1=_px(y1), x2=_px(x2), y2=_px(y2), class_=kind)


def _label(x: float, y: float, words: str, anchor: str) -> Markup:
    # Within SVG an HTML element would end the picture, so the words are not `text`.
    return element("text", Markup(words), x=_px(x), y=_px(y), text_anchor=anchor)


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)


def _px(value: float) -> str:
    return f"{value:.1f}"
