"""Draws a version's learning curve: loss, and the held-out metric, against steps. Two panels."""

import io
import logging
from itertools import accumulate
from typing import Any

from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.curve import Curve, Series, finite, held_out, metric_of, thin
from orchestrator.tracking.version_run import describe

BLUE, ORANGE, GREY, INK = "#2b6cb0", "#dd6b20", "#718096", "#1a202c"
#: Where the panels stand, in shares of the picture. matplotlib's own layouts take twice the time.
LEFT = 0.05
PANELS = {"left": LEFT, "right": 0.985, "bottom": 0.19, "top": 0.82, "wspace": 0.13}
MAX_POINTS = 2000
#: The training loss of single steps is noisy; means over this share of the steps show its course.
SMOOTHING_SHARE = 0.05
LOG_SCALE_RATIO = 20
NAMES = {"accuracy": "Held-out accuracy", "exact_match": "Held-out exact match"}


def draw_learning_curve(version: PromptVersion, curve: Curve) -> bytes:
    """The picture as PNG."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), dpi=144, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(LEFT, 0.92, version.ref, fontsize=15, fontweight="bold", color=INK)
    figure.text(LEFT, 0.035, _subtitle(version), fontsize=9, color=GREY)
    loss_panel, metric_panel = figure.subplots(1, 2, sharex=True, gridspec_kw=PANELS)
    _draw_loss(loss_panel, curve, metric_of(version))
    _draw_metric(metric_panel, version, curve)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None, "Title": version.ref})
    return picture.getvalue()


def _draw_loss(panel: Any, curve: Curve, metric: str) -> None:
    training = thin(finite(curve.get("loss", ())), MAX_POINTS)
    evaluation = finite(curve.get("eval_loss", ())) if metric != "loss" else ()
    _dress(panel, "Loss")
    if training:
        panel.plot(*_xy(training), color=BLUE, alpha=0.3, linewidth=1)
        panel.plot(*_xy(_smooth(training)), color=BLUE, linewidth=2, label="training")
    if evaluation:
        panel.plot(*_xy(evaluation), color=ORANGE, linewidth=2, marker="o", ms=4, label="held out")
    values = [value for _, value in (*training, *evaluation)]
    if values and min(values) > 0 and max(values) / min(values) > LOG_SCALE_RATIO:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
    _finish(panel, bool(values))


def _draw_metric(panel: Any, version: PromptVersion, curve: Curve) -> None:
    metric = metric_of(version)
    series = held_out(curve, metric)
    manual = version.metrics.get(f"manual_{metric}")
    _dress(panel, NAMES.get(metric, f"Held-out {metric}"))
    if series:
        panel.plot(*_xy(series), color=ORANGE, linewidth=2, marker="o", ms=4, label="prompt")
        _mark_best(panel, series, lowest=metric == "loss")
    if manual is not None:
        panel.axhline(
            manual, color=GREY, linestyle="--", linewidth=1.5, label=f"manual prompt {manual:.3f}"
        )
    _finish(panel, bool(series) or manual is not None)
    if metric in NAMES:
        panel.set_ylim(-0.02, 1.02)


def _mark_best(panel: Any, series: Series, lowest: bool) -> None:
    best = min(series, key=lambda point: (point[1] if lowest else -point[1], point[0]))
    panel.plot(*best, marker="o", ms=9, color="white", markeredgecolor=ORANGE, markeredgewidth=2)
    panel.annotate(
        f"{best[1]:.3f}",
        best,
        xytext=(0, -19 if lowest or best[1] > 0.9 else 10),
        textcoords="offset points",
        ha="center",
        fontsize=10,
        fontweight="bold",
        color=INK,
    )


def _dress(panel: Any, title: str) -> None:
    panel.set_title(title, loc="left", fontsize=11, color=INK)
    panel.set_xlabel("step", color=GREY, fontsize=9)
    panel.tick_params(which="both", colors=GREY, labelsize=9, length=0)
    panel.grid(axis="y", color="#e2e8f0", linewidth=0.8)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color("#cbd5e0")


def _finish(panel: Any, has_data: bool) -> None:
    if has_data:
        panel.margins(x=0.03, y=0.14)
        panel.set_xlim(left=0)
        panel.legend(frameon=False, fontsize=9, labelcolor=INK, loc="best")
    else:
        panel.set_yticks([])
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", color=GREY)


def _smooth(series: Series) -> Series:
    """Means over a centred window, narrow at the steep start so as not to lag."""
    half = int(SMOOTHING_SHARE * len(series)) // 2 + 1
    sums = list(accumulate((value for _, value in series), initial=0.0))
    smoothed = []
    for index, (step, _) in enumerate(series):
        back = min(half, index)
        start, end = index - back, min(index + back, len(series) - 1) + 1
        smoothed.append((step, (sums[end] - sums[start]) / (end - start)))
    return smoothed


def _xy(series: Series) -> tuple[list[int], list[float]]:
    return [step for step, _ in series], [value for _, value in series]


def _subtitle(version: PromptVersion) -> str:
    return describe(version).partition(" · ")[2]
