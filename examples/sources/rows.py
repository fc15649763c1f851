"""Rows and how they are split into train, eval and test.

Order comes from a sha256 of seed and text, never from `random`, so it is the same on every
Python and a row's place does not depend on its neighbours' spelling. No split ever shares an
input text with another: `check_texts` stops the build otherwise.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Row = dict[str, str]
Splits = dict[str, list[Row]]


@dataclass(frozen=True)
class Sizes:
    """How many rows (or groups) go to eval and test; train takes the rest, up to its limit."""

    train: int
    eval: int
    test: int


def hash_order(texts: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Return the distinct texts in an arbitrary but fixed order, another one for each purpose."""
    salt = f"{seed}:{purpose}:"
    return sorted(set(texts), key=lambda text: hashlib.sha256((salt + text).encode()).digest())


def input_text(row: Row, answer: str) -> str:
    """Return what a model is shown of a row, without regard to case."""
    return " | ".join(value for field, value in row.items() if field != answer).casefold()


def drop_ambiguous(rows: Iterable[Row], answer: str) -> list[Row]:
    """Keep one row per input text, and none where two rows disagree on the answer."""
    by_text: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_text[input_text(row, answer)].append(row)
    return [same[0] for same in by_text.values() if len({row[answer] for row in same}) == 1]


def cap_labels(rows: Iterable[Row], answer: str, most: int, seed: int) -> list[Row]:
    """Keep at most `most` rows of each label, chosen by hash order."""
    by_text = {input_text(row, answer): row for row in rows}
    kept: dict[str, list[Row]] = defaultdict(list)
    for text in hash_order(by_text, seed, "cap"):
        kept[by_text[text][answer]].append(by_text[text])
    return [row for same in kept.values() for row in same[:most]]


def split_rows(rows: Iterable[Row], answer: str, sizes: Sizes, seed: int) -> Splits:
    """Split so that every part has about the same share of each label."""
    by_text = {input_text(row, answer): row for row in rows}
    by_label: dict[str, list[str]] = defaultdict(list)
    for text in hash_order(by_text, seed, "split"):
        by_label[by_text[text][answer]].append(text)
    place = {
        text: (rank + 0.5) / len(same)
        for same in by_label.values()
        for rank, text in enumerate(same)
    }
    spread = sorted(place, key=lambda text: (place[text], text))
    return {part: [by_text[text] for text in texts] for part, texts in cut(spread, sizes).items()}


def split_groups(groups: Mapping[str, list[Row]], sizes: Sizes, seed: int) -> Splits:
    """Split whole groups: rows that repeat each other's pieces stay on one side."""
    return {
        part: [row for name in names for row in groups[name]]
        for part, names in cut(hash_order(groups, seed, "split"), sizes).items()
    }


def mix_rows(splits: Splits, answer: str, seed: int) -> Splits:
    """Order each part's rows without regard to label or group."""
    mixed = {}
    for part, rows in splits.items():
        by_text = {input_text(row, answer): row for row in rows}
        mixed[part] = [by_text[text] for text in hash_order(by_text, seed, "order")]
    return mixed


def cut(names: list[str], sizes: Sizes) -> dict[str, list[str]]:
    """Cut an ordered list into test, eval and train, in that order."""
    eval_end = sizes.test + sizes.eval
    return {
        "train": names[eval_end : eval_end + sizes.train],
        "eval": names[sizes.test : eval_end],
        "test": names[: sizes.test],
    }


def check_texts(task: str, splits: Splits, answer: str) -> None:
    """Stop the build if a part is empty or two rows, of one part or two, share a text."""
    seen: dict[str, str] = {}
    for part, rows in splits.items():
        if not rows:
            raise SystemExit(f"{task}: the {part} split has no rows")
        for row in rows:
            text = input_text(row, answer)
            if text in seen:
                raise SystemExit(f"{task}: {text!r} is in {seen[text]} and again in {part}")
            seen[text] = part


def check_labels(task: str, splits: Splits, answer: str) -> None:
    """Stop the build if train lacks a label, or one label begins another.

    Candidates are ranked by the log-probability of their tokens: of two labels where one begins
    the other, the shorter would win unfairly.
    """
    labels = {row[answer] for rows in splits.values() for row in rows}
    unseen = labels - {row[answer] for row in splits["train"]}
    if unseen:
        raise SystemExit(f"{task}: train lacks the labels {sorted(unseen)}")
    for label in labels:
        longer = sorted(other for other in labels - {label} if other.startswith(label))
        if longer:
            raise SystemExit(f"{task}: label {label!r} begins {longer}")
