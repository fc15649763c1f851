"""A lineage's picture: the same bytes each time, with every line of its tree."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from orchestrator.domain.errors import InvalidInput
from orchestrator.questions.lineage_picture import draw_lineage, write_picture
from orchestrator.questions.prompt_lineage import Branch

TREE = Branch("a@1", (Branch("base $tiny$ <b> & co", (Branch("data"),)), Branch("x" * 300)))


@pytest.mark.parametrize(("name", "opening"), [("a.svg", b"<?xml"), ("b.PNG", b"\x89PNG")])
def test_a_tree_gives_the_same_picture_each_time(name: str, opening: bytes) -> None:
    picture = draw_lineage(TREE, Path(name))
    assert picture.startswith(opening)
    assert draw_lineage(TREE, Path(name)) == picture
    assert draw_lineage(Branch("a@2"), Path(name)) != picture


def test_every_line_of_the_tree_stands_in_the_picture() -> None:
    picture = ElementTree.fromstring(draw_lineage(TREE, Path("a.svg")))
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["a@1", "base $tiny$ <b> & co", "data", "x" * 107 + "..."]


def test_another_kind_of_file_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"a\.pdf: a picture is a \.svg or a \.png"):
        draw_lineage(TREE, Path("a.pdf"))


def test_a_picture_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(InvalidInput, match=r"folder\.svg: the picture cannot be written"):
        write_picture(tmp_path / "folder.svg", b"")
