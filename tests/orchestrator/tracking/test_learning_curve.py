"""The learning curve is a picture, whatever was measured."""

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from PIL import Image

from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.curve import Curve, thin
from orchestrator.tracking.learning_curve import draw_learning_curve
from tests.orchestrator.tracking.memory_registry import tiny_curve

Make = Callable[..., PromptVersion]


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def test_it_is_a_png_of_readable_size_with_the_versions_name(make_version: Make) -> None:
    image = opened(draw_learning_curve(make_version(), tiny_curve()))
    assert image.format == "PNG"
    assert image.width >= 1200
    assert image.info["Title"] == "country-continent@1"
    colors = {color for _, color in image.convert("RGB").getcolors(1 << 20) or []}
    assert {(0x2B, 0x6C, 0xB0), (0xDD, 0x6B, 0x20), (0x71, 0x80, 0x96)} <= colors


@pytest.mark.parametrize(
    "curve",
    [
        {},
        {"loss": []},
        {"loss": [(1, 2.0)]},
        {"loss": [(1, float("nan")), (2, float("inf"))], "eval_accuracy": [(2, float("nan"))]},
        {"loss": [(1, 0.0), (2, -1.0)]},
        {"eval_accuracy": [(5, 1.0)]},
        tiny_curve(30_000),
    ],
    ids=["none", "empty", "one step", "not finite", "not positive", "no loss", "long"],
)
def test_odd_curves_are_drawn_too(make_version: Make, curve: Curve) -> None:
    assert opened(draw_learning_curve(make_version(), curve)).format == "PNG"


@pytest.mark.parametrize("metric", ["loss", "exact_match"])
def test_other_metrics_are_drawn(make_version: Make, metric: str) -> None:
    version = replace(make_version(), config={"metric": metric}, metrics={f"manual_{metric}": 0.5})
    curve = {"loss": [(1, 3.0), (2, 1.0)], f"eval_{metric}": [(1, 0.2), (2, 0.4)]}
    assert opened(draw_learning_curve(version, curve)).format == "PNG"


def test_the_same_curve_gives_the_same_bytes(make_version: Make) -> None:
    version = make_version()
    first, again = (draw_learning_curve(version, tiny_curve()) for _ in range(2))
    assert first == again


def test_thinning_keeps_both_ends() -> None:
    series = [(step, float(step)) for step in range(10_001)]
    thinned = thin(series, 1000)
    assert len(thinned) == 1000
    assert (thinned[0], thinned[-1]) == (series[0], series[-1])
    assert thin(series[:10], 1000) == series[:10]
