"""A version's part of the page: its figures, errors, confusion matrix, scores."""

from collections.abc import Iterator

from orchestrator.batch_report.batch_report import BatchReport
from orchestrator.batch_report.confusion import Confusion
from orchestrator.batch_report.html_text import Markup, element, join, table
from orchestrator.batch_report.pictures import draw_interval, draw_reliability, draw_scores
from orchestrator.batch_report.version_report import VersionReport

COLUMNS = (
    "prompt",
    "rows",
    "errors",
    "accuracy",
    "95% interval",
    "",
    "ECE",
    "score",
    "tokens",
    "ms/row, p50",
    "p95",
)


def summary_row(report: BatchReport, version: VersionReport, anchor: str | None) -> list[object]:
    """A line of the table of all versions; COLUMNS are its columns."""
    hits, scores = version.hits, version.calibration
    errors = version.num_errors
    return [
        version.name if anchor is None else element("a", version.name, href=f"#{anchor}"),
        f"{version.num_rows:,}",
        element("span", f"{errors:,}", class_="bad") if errors else "0",
        f"{hits.value:.3f}" if hits else "",
        f"{hits.interval[0]:.3f} to {hits.interval[1]:.3f}" if hits else "",
        draw_interval(hits) if hits else "",
        f"{scores.error:.3f}" if scores and scores.error is not None else "",
        f"{scores.mean:.3f}" if scores else "",
        f"{version.num_tokens:,}" if version.num_tokens else "",
        *_latency(report, version),
    ]


def draw_section(version: VersionReport, anchor: str) -> Markup:
    """All about one version."""
    return element(
        "section", element("h2", version.name), *_figures(version), *_insides(version), id=anchor
    )


def _latency(report: BatchReport, version: VersionReport) -> Iterator[str]:
    for share in (0.5, 0.95):
        seconds = report.seconds_per_row(share, version.name)
        yield number(None if seconds is None else 1000 * seconds) or ""


def number(value: float | None) -> str | None:
    """A figure of any size, to three digits."""
    if value is None:
        return None
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _figures(version: VersionReport) -> Iterator[Markup]:
    said = [f"{version.num_rows:,} rows, {version.num_errors:,} errors"]
    if version.hits:
        hits, (low, high) = version.hits, version.hits.interval
        said.append(
            f"{hits.num_hits:,} of {hits.num_rows:,} known answers right: accuracy "
            f"{hits.value:.3f} ({low:.3f} to {high:.3f})"
        )
    if version.num_tokens:
        said.append(f"{version.num_tokens:,} tokens generated")
    if version.mean_log_likelihood is not None:
        said.append(f"mean log-likelihood of known answers {version.mean_log_likelihood:.4f}")
    yield element("p", "; ".join(said), class_="pale")


def _insides(version: VersionReport) -> Iterator[Markup]:
    if version.reasons:
        rows = [(f"{each.num_rows:,}", each.row, each.example) for each in version.reasons]
        yield join((element("h3", "Errors"), table(("rows", "first row", "what it says"), rows)))
    pictures = list(_pictures(version))
    if pictures:
        yield element("div", *pictures, class_="pictures")


def _pictures(version: VersionReport) -> Iterator[Markup]:
    scores = version.calibration
    if version.confusion:
        caption = "Rows: expected; columns: answered."
        if version.confusion.is_pooled:
            hits = version.confusion.num_pooled_hits
            caption += f" “other” pools rarer texts; {hits:,} rows in both “other” are right."
        yield _figure(_matrix(version.confusion), caption)
    if scores:
        caption = f"Rows by score (stronger: right answers); mean {scores.mean:.3f}."
        yield _figure(draw_scores(scores), caption)
    if scores and scores.error is not None:
        caption = f"Share of right answers by score; expected calibration error {scores.error:.3f}."
        yield _figure(draw_reliability(scores), caption)


def _figure(picture: Markup, caption: str) -> Markup:
    return element("figure", picture, element("figcaption", Markup(caption)))


def _matrix(confusion: Confusion) -> Markup:
    names = [*confusion.classes, *([element("i", "other")] if confusion.is_pooled else [])]
    head = element("tr", element("th"), *(element("th", name) for name in names))
    rows = [
        element("tr", element("th", name), *_cells(counts, own, len(confusion.classes)))
        for own, (name, counts) in enumerate(zip(names, confusion.counts, strict=True))
    ]
    return element("div", element("table", head, *rows, class_="confusion"), class_="wide")


def _cells(counts: tuple[int, ...], own: int, num_classes: int) -> Iterator[Markup]:
    """A class's row: a cell is as deep as its share of the class."""
    total = max(1, sum(counts))
    for place, count in enumerate(counts):
        depth = f"background: rgba(var(--heat), {0.6 * count / total:.2f})"
        attributes = {"class_": "own"} if place == own < num_classes else {}
        yield element("td", f"{count:,}" if count else "", style=depth, **attributes)
