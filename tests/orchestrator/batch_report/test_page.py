"""The page stands alone, and nothing that a row says becomes markup in it."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from orchestrator.batch_report.batch_report import BatchReport, count_rows
from orchestrator.batch_report.page import draw_page
from orchestrator.batch_report.run_facts import RunFacts
from tests.orchestrator.batch_report.conftest import make_rows, parse

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;\x00\u202e"
VOID = {"meta"}


class Reader(HTMLParser):
    """Every element must be closed in order; keeps the names, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: bytes) -> Reader:
    reader = Reader()
    reader.feed(page.decode())
    reader.close()
    assert reader.open == []
    return reader


def evil_report(facts: RunFacts) -> BatchReport:
    rows = [
        {"row": 1, "task": EVIL, "error": EVIL},
        {"row": 2, "task": EVIL, "version": 1, "answer": EVIL, "expected": EVIL, "score": 0.5},
        {"row": 3, "task": EVIL, "version": 1, "answer": "x\ud800", "expected": EVIL},
    ]
    evil = replace(
        facts,
        id=EVIL,
        state=EVIL,
        output=EVIL,
        created_at=EVIL,
        settings={EVIL: {EVIL: [EVIL]}},
        inputs={EVIL: EVIL},
    )
    return count_rows(evil, parse(rows))


def test_hostile_values_are_text(facts: RunFacts) -> None:
    reader = read(draw_page(evil_report(facts)))
    assert not reader.names & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert any("<script>alert(1)</script>" in word for word in reader.words)


def test_the_page_asks_nobody_for_anything(facts: RunFacts) -> None:
    page = draw_page(count_rows(facts, parse(make_rows(100))))
    reader = read(page)
    links = [value for name, value in reader.attributes if name in ("href", "src")]
    assert links
    assert all(value and re.fullmatch(r"#version-\d+", value) for value in links)
    assert b"url(" not in page
    assert b"@import" not in page
    assert b"default-src 'none'" in page


def test_its_figures_are_the_reports(facts: RunFacts) -> None:
    report = count_rows(facts, parse(make_rows(100)))
    words = " ".join(read(draw_page(report)).words)
    hits = report.versions[0].hits
    assert hits is not None
    assert f"accuracy {hits.value:.3f} ({hits.interval[0]:.3f} to {hits.interval[1]:.3f})" in words
    assert "word@2: the row has 10 tokens" in words
    assert "c" * 64 in words
    assert "decoding.seed" in words


def test_pictures_are_well_formed_and_of_finite_numbers(facts: RunFacts) -> None:
    page = draw_page(count_rows(facts, parse(make_rows(100)))).decode()
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 1 + 1 + 2 + 1  # an interval, speed, colour's two, word's scores
    for picture in pictures:
        for each in ElementTree.fromstring(picture).iter():
            for key in ("x", "y", "x1", "x2", "y1", "y2", "width", "height"):
                assert 0 <= float(each.get(key, "0")) <= 400


def test_an_unfinished_run_says_so(facts: RunFacts) -> None:
    page = draw_page(count_rows(replace(facts, num_shards=9), parse(make_rows(10)))).decode()
    assert "4 of 9 shards are finished" in page


@pytest.mark.parametrize("num_rows", [0, 1])
def test_next_to_nothing_has_a_page_too(num_rows: int) -> None:
    read(draw_page(count_rows(RunFacts("r", "running"), parse(make_rows(num_rows)))))


def test_equal_reports_give_equal_bytes(facts: RunFacts) -> None:
    first, second = (draw_page(count_rows(facts, parse(make_rows(50)))) for _ in range(2))
    assert first == second
