"""Text as HTML: every value escaped, cut where it is long, and kept from turning its neighbours'
direction. What is not `Markup` is never put into a page as it is.
"""

import html
import re
from collections.abc import Iterable, Sequence

MAX_CHARACTERS = 200
#: C0 and C1 controls and half surrogates: shown as U+FFFD.
_UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Markup(str):
    """HTML that this package wrote."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as text."""
    shown = str(value)
    if len(shown) > MAX_CHARACTERS:
        shown = f"{shown[: MAX_CHARACTERS - 3]}..."
    return Markup(f"<bdi>{html.escape(_UNSHOWN.sub(chr(0xFFFD), shown))}</bdi>")


def element(name: str, *inner: object, **attributes: object) -> Markup:
    """An element; `class_` is `class`, and `_` in attributes' names is `-`."""
    names = {key: key.rstrip("_").replace("_", "-") for key in attributes}
    said = "".join(
        f' {names[key]}="{html.escape(_UNSHOWN.sub(chr(0xFFFD), str(value)))}"'
        for key, value in attributes.items()
    )
    return Markup(f"<{name}{said}>{join(inner)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    return Markup("".join(each if isinstance(each, Markup) else text(each) for each in parts))


def table(
    columns: Sequence[object], rows: Iterable[Sequence[object]], **attributes: object
) -> Markup:
    """A table with a header."""
    head = element("tr", *(element("th", column) for column in columns))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    inner = element("thead", head), element("tbody", *body)
    return element("div", element("table", *inner, **attributes), class_="wide")
