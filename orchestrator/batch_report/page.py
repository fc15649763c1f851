"""The report as one HTML file that needs nothing else: no script, no request to anywhere."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.batch_report.batch_report import BatchReport
from orchestrator.batch_report.html_text import Markup, element, join, table, text
from orchestrator.batch_report.page_style import STYLE
from orchestrator.batch_report.pictures import draw_speed
from orchestrator.batch_report.version_section import COLUMNS, draw_section, number, summary_row

#: Versions with a part of their own; the table has all.
MAX_SECTIONS = 300
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def draw_page(report: BatchReport) -> bytes:
    """The page, as UTF-8."""
    facts = report.facts
    head = (
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f"<title>Batch run {_bare(facts.id)}</title>"),
        Markup(f"<style>{STYLE}</style>"),
    )
    page = element("html", element("head", *head), element("body", *_body(report)), lang="en")
    return f"<!doctype html>\n{page}\n".encode()


def _body(report: BatchReport) -> Iterator[Markup]:
    facts = report.facts
    yield element("h1", "Batch run ", facts.id)
    yield element(
        "p", facts.state, ", started ", facts.created_at, ", ", facts.output, class_="pale"
    )
    if facts.num_shards is not None and len(facts.shards) < facts.num_shards:
        said = (
            f"{len(facts.shards)} of {facts.num_shards} shards are finished: these figures are of"
        )
        yield element("p", f"{said} their rows.", class_="bad")
    yield element("div", *_cards(report), class_="cards")
    yield from _versions(report)
    if facts.shards:
        caption = "Milliseconds per row, on one worker, along the input."
        figure = draw_speed(facts.shards), element("figcaption", caption)
        yield join((element("h2", "Speed"), element("figure", *figure)))
    for place, version in enumerate(report.versions[:MAX_SECTIONS]):
        yield draw_section(version, _anchor(place))
    yield from _facts(report)


def _cards(report: BatchReport) -> Iterator[Markup]:
    p50, p95 = report.seconds_per_row(0.5), report.seconds_per_row(0.95)
    figures = {
        "rows": f"{report.num_rows:,}",
        "errors": f"{report.num_errors:,}",
        "versions": f"{sum(v.version is not None for v in report.versions):,}",
        "seconds": number(report.facts.seconds),
        "rows/s": number(report.rows_per_s),
        "tokens generated": f"{report.num_tokens:,}" if report.num_tokens else None,
        "tokens/s": number(report.tokens_per_s),
        "positions/s": number(report.positions_per_s),
        "ms/row, p50": number(p50 and 1000 * p50),
        "ms/row, p95": number(p95 and 1000 * p95),
    }
    for name, figure in figures.items():
        if figure is not None:
            yield element("div", element("b", figure), name, class_="card")


def _versions(report: BatchReport) -> Iterator[Markup]:
    yield element("h2", "Prompts")
    rows = [
        summary_row(report, version, _anchor(place) if place < MAX_SECTIONS else None)
        for place, version in enumerate(report.versions)
    ]
    yield table(COLUMNS, rows)
    if len(rows) > MAX_SECTIONS:
        yield element("p", f"The first {MAX_SECTIONS} have a part of their own.", class_="pale")


def _facts(report: BatchReport) -> Iterator[Markup]:
    facts = report.facts
    pinned = [(each.ref, each.digest, each.base) for each in facts.versions]
    yield join((element("h2", "Versions, as pinned"), table(("prompt", "digest", "base"), pinned)))
    yield join((element("h2", "Input"), table(("file", "sha256"), facts.inputs.items())))
    settings = list(_flat(facts.settings))
    yield join((element("h2", "Settings"), table(("setting", "value"), settings)))


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value)


def _anchor(place: int) -> str:
    """Of a version by its place: a name never becomes an address."""
    return f"version-{place}"


def _bare(value: object) -> str:
    """Escaped text without an element, for a title."""
    return text(value).removeprefix("<bdi>").removesuffix("</bdi>")
