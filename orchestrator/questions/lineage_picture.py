"""A lineage as a picture: its tree in boxes, left to right. Equal trees give equal bytes."""

import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from encoders.files.durable_file import write_durably
from orchestrator.domain.errors import InvalidInput
from orchestrator.questions.prompt_lineage import Branch

BLUE, GREY, INK = "#2b6cb0", "#718096", "#1a202c"
LINE_HEIGHT_IN, INDENT_IN, MARGIN_IN = 0.34, 0.35, 0.3
CHARACTER_IN = 0.078  # of the font, on average
MAX_CHARACTERS = 110
FORMATS = {".svg": "svg", ".png": "png"}


def write_picture(path: Path, picture: bytes) -> None:
    """Write the picture as a whole, in place of what is there. Raises InvalidInput."""
    try:
        write_durably(path, [picture])
    except OSError as error:
        raise InvalidInput(f"{path}: the picture cannot be written: {error.strerror}") from error


def draw_lineage(tree: Branch, path: Path) -> bytes:
    """The picture as SVG or PNG, as the name of `path` says; raise InvalidInput for another one."""
    format_ = FORMATS.get(path.suffix.lower())
    if format_ is None:
        raise InvalidInput(f"{path}: a picture is a .svg or a .png", "Name the file one of these.")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = list(_lines(tree))
    width = max(depth * INDENT_IN + len(text) * CHARACTER_IN for text, depth, _ in lines)
    size = (width + 2 * MARGIN_IN, len(lines) * LINE_HEIGHT_IN + 2 * MARGIN_IN)
    figure = Figure(figsize=size, dpi=144, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)  # downwards, as it is read
    for row, line in enumerate(lines):
        _draw(axes, row, *line)
    picture = io.BytesIO()
    # What would differ from run to run: the ids of SVG elements, and the date.
    with mpl.rc_context({"svg.hashsalt": "tutti", "svg.fonttype": "none"}):
        metadata = {"Date": None} if format_ == "svg" else {"Software": None}
        figure.savefig(picture, format=format_, metadata=metadata)
    return picture.getvalue()


def _lines(tree: Branch, depth: int = 0, above: int = 0) -> Iterator[tuple[str, int, int]]:
    """Each node's text, its depth, and how many rows above it its own parent stands."""
    text = (
        tree.text if len(tree.text) <= MAX_CHARACTERS else f"{tree.text[: MAX_CHARACTERS - 3]}..."
    )
    yield text, depth, above
    offset = 1
    for branch in tree.branches:
        inner = list(_lines(branch, depth + 1, offset))
        yield from inner
        offset += len(inner)


def _draw(axes: Any, row: int, text: str, depth: int, above: int) -> None:
    x, y = MARGIN_IN + depth * INDENT_IN, MARGIN_IN + (row + 0.5) * LINE_HEIGHT_IN
    if depth:
        stem = x - INDENT_IN + 0.08
        axes.plot(
            (stem, stem, x - 0.05), (y - above * LINE_HEIGHT_IN + 0.12, y, y), color=GREY, lw=1
        )
    box = {"boxstyle": "round,pad=0.25", "facecolor": "#ebf4ff", "edgecolor": BLUE, "linewidth": 1}
    options = {} if depth else {"bbox": box, "fontweight": "bold"}
    # A name may hold a dollar sign, which would begin a formula.
    axes.text(x, y, text, fontsize=9, color=INK, va="center", parse_math=False, **options)
