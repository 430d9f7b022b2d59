"""The shared look: the same for every user, and told apart where lines meet."""

from __future__ import annotations

import io
from colorsys import rgb_to_hls
from itertools import combinations
from typing import get_args

import matplotlib
import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from thinkjepa.stages.evaluate.baselines import METHODS
from thinkjepa.stages.picture_style import (
    BASELINES,
    VARIANTS,
    legend_below,
    new_figure,
    picture_style,
    png_bytes,
    variant_look,
)
from thinkjepa.stages.train.model.config import Variant


def drawn(values: dict[str, list[float]]) -> bytes:
    with picture_style():
        figure = new_figure(4.0, 3.0)
        axes = figure.subplots()
        for variant, numbers in values.items():
            axes.plot(numbers, label=variant, **variant_look(variant))
        legend_below(figure, [axes])
        return png_bytes(figure)


def test_every_variant_and_every_baseline_has_a_look() -> None:
    assert set(VARIANTS) == set(get_args(Variant))
    assert set(BASELINES) == {name for name, method in METHODS.items() if len(method.of_run) < 2}


def test_looks_differ_in_more_than_color() -> None:
    for group in (VARIANTS, BASELINES):
        for one, other in combinations(group.values(), 2):
            assert one["linestyle"] != other["linestyle"]
    settings = [variant_look("jepa", nth=nth)["marker"] for nth in range(8)]
    assert len(set(settings)) == 8


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_of_a_variant_share_its_hue_and_differ_in_shade_and_line(variant: str) -> None:
    looks = [variant_look(variant, nth=nth) for nth in range(5)]
    hues = [rgb_to_hls(*to_rgb(look["color"]))[0] for look in looks]
    assert hues == pytest.approx([hues[0]] * 5, abs=0.02)
    greys = sorted(float(np.dot(to_rgb(look["color"]), (0.2126, 0.7152, 0.0722))) for look in looks)
    assert min(np.diff(greys)) > 0.05
    assert len({str(look["linestyle"]) for look in looks}) == 5


def test_variants_that_coincide_all_stay_visible() -> None:
    same = [0.3, 0.2, 0.1]
    pixels = matplotlib.image.imread(io.BytesIO(drawn(dict.fromkeys(VARIANTS, same))))[..., :3]
    above_the_legend = pixels[: int(0.8 * len(pixels))]
    for variant, look in VARIANTS.items():
        color = np.array(matplotlib.colors.to_rgb(look["color"]))
        near = np.abs(above_the_legend - color).max(axis=-1) < 0.02
        assert near.sum() > 30, variant


def test_pictures_do_not_depend_on_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"jepa": [1.0, 2.0]}
    before = drawn(values)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 23.0)
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9.0)
    assert drawn(values) == before


def test_a_legend_names_what_is_drawn_once() -> None:
    with picture_style():
        figure = new_figure(4.0, 3.0)
        panels = figure.subplots(1, 2)
        for axes in panels:
            axes.plot([1, 2], label="jepa")
        panels[1].plot([2, 1], label="vlm")
        legend_below(figure, panels)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["jepa", "vlm"]
