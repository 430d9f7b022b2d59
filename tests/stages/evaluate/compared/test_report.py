"""The report of a comparison: its Markdown, and pictures that hold what they should."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from thinkjepa.pipeline.report.evaluation import comparison_page
from thinkjepa.pipeline.report.markdown import comparison_markdown
from thinkjepa.pipeline.report.plots import difference_picture, distance_picture, horizon_picture
from thinkjepa.pipeline.report.verdict import question_of
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.picture_style import png_bytes

AddRun = Callable[..., EvaluatedRun]
MANY = np.linspace(0.1, 0.3, 21)


def row_of(markdown: str, *starts: str) -> list[str]:
    """The cells of the first row that begins with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return next(row for row in rows if row[: len(starts)] == list(starts))


def test_tables_have_means_with_intervals(add_run: AddRun) -> None:
    """Two groups 0.2 apart: a standard error of 0.1, times 12.706."""
    markdown = comparison_markdown(compare([add_run("jepa", 0, [0.1, 0.3]), add_run("jepa", 1, [0.1, 0.3])]))
    assert row_of(markdown, "jepa", "2")[2] == "200.0 [-1070.6, 1470.6]"
    assert row_of(markdown, "constant pose", "")[2] == "500.0 [500.0, 500.0]"
    assert row_of(markdown, "jepa", "constant pose")[2] == "-300.0 [-1570.6, +970.6]"
    assert row_of(markdown, "0.30")[1:3] == ["300.0", "500.0"]


def test_times_count_from_the_last_observed_frame(add_run: AddRun) -> None:
    run = add_run("jepa", 0, [0.1, 0.3], fde_m=[0.2, 0.4], horizon_s=(0.1, 0.3), last_frame_s=0.35)
    comparison = compare([run])
    markdown = comparison_markdown(comparison)
    assert comparison["last_frame"] == {"seconds": 0.35, "seconds_min": 0.35, "seconds_max": 0.35}
    assert "FDE at 0.35 s (mm) ↓" in row_of(markdown, "method")
    assert [row_of(markdown, second)[0] for second in ("0.10", "0.30")] == ["0.10", "0.30"]


def test_the_conditions_of_the_figures_stand_above_them(add_run: AddRun) -> None:
    markdown = comparison_markdown(compare([add_run("jepa", 3, MANY, counted=15)]))
    assert "- 21 test clips of 21 videos in 21 groups (by video)" in markdown
    assert "- jepa: 1 seed (3)" in markdown
    assert "and other seeds (t over groups, seeds crossed, skewness corrected)" in markdown
    assert "- 1 joint: distances in mm, in the camera frame of the last observed frame" in markdown
    assert "- 315 of 420 labelled joint-frames count (75.0 %)" in markdown
    assert "fewer than" not in markdown


@pytest.mark.parametrize(
    ("num_groups", "num_seeds", "starred"), [(21, 3, True), (9, 3, False), (21, 2, False)]
)
def test_differences_are_marked_only_where_there_are_groups_and_seeds_enough(
    add_run: AddRun, num_groups: int, num_seeds: int, starred: bool
) -> None:
    scores = MANY[:num_groups]
    wave = 0.01 * np.cos(np.arange(num_groups))
    runs = [
        add_run(variant, seed, ade_m)
        for variant, ade_m in (("thinkjepa", scores - 0.05), ("jepa", scores), ("vlm", scores + wave))
        for seed in range(num_seeds)
    ]
    markdown = comparison_markdown(compare(runs))
    assert row_of(markdown, "thinkjepa", "jepa")[2].endswith("*") == starred
    assert not row_of(markdown, "jepa", "vlm")[2].endswith("*")
    assert ("fewer than 10 groups" in markdown) == (num_groups < 10)


def test_pictures_are_the_same_every_time_and_differ_with_the_scores(add_run: AddRun) -> None:
    one = compare([add_run("jepa", 0, MANY), add_run("vlm", 0, MANY + 0.1)])
    other = compare([add_run("jepa", 1, MANY), add_run("vlm", 1, MANY * 2)])
    for draw in (horizon_picture, distance_picture, difference_picture):
        assert draw(one) == draw(one)
        assert draw(one) != draw(other)


def drawn(draw: Callable[..., bytes], comparison: object) -> Figure:
    """The figure of a picture, drawn."""
    figures: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        figures.append(figure)
        return png_bytes(figure)

    draw(comparison, encode=keep)
    return figures[0]


def test_small_differences_have_their_power_of_ten_in_the_label(add_run: AddRun) -> None:
    wave = 1e-8 * np.cos(np.arange(len(MANY)))
    comparison = compare([add_run("jepa", 0, MANY), add_run("vlm", 0, MANY + 3e-8 + wave)])
    axes = drawn(difference_picture, comparison).axes[0]
    assert axes.get_xlabel() == "difference ($10^{-5}$ mm)"
    assert axes.xaxis.get_offset_text().get_text() == ""
    shown = [float(label.get_text().replace("−", "-")) for label in axes.get_xticklabels()]  # noqa: RUF001
    assert shown == pytest.approx([1e5 * tick for tick in axes.get_xticks()])


def test_pictures_have_distances_in_millimetres(add_run: AddRun) -> None:
    comparison = compare([add_run("jepa", seed, MANY) for seed in range(2)])
    model = next(entry for entry in comparison["entries"] if entry["method"] == "model")
    in_m = model["metrics"]["ade_m"]
    assert in_m["mean"] == pytest.approx(0.2), "JSON keeps metres"

    curves = drawn(horizon_picture, comparison).axes[0]
    assert curves.get_ylabel() == "mean distance (mm)"
    assert curves.lines[0].get_ydata() == pytest.approx([100.0, 300.0])
    band = curves.collections[0].get_paths()[0].vertices[:, 1]  # type: ignore[index]
    assert band.max() == pytest.approx(1000 * model["horizon"][1]["ade_m"]["high"])

    dots = drawn(distance_picture, comparison).axes[0]
    assert dots.get_xlabel() == "mean distance (mm)"
    interval, dot = dots.lines[:2]
    assert interval.get_xdata() == pytest.approx([1000 * in_m["low"], 1000 * in_m["high"]])
    assert dot.get_xdata() == pytest.approx([200.0])

    differences = drawn(difference_picture, comparison).axes[0]
    assert differences.get_xlabel() == "difference (mm)"
    assert differences.lines[2].get_xdata() == pytest.approx([-300.0])


@pytest.mark.parametrize(("num_groups", "bands"), [(len(MANY), "; bands: 95 % intervals"), (1, "")])
def test_the_caption_names_bands_only_where_there_are_some(
    add_run: AddRun, num_groups: int, bands: str
) -> None:
    comparison = compare([add_run("jepa", 0, MANY[:num_groups])])
    figure = drawn(horizon_picture, comparison)
    assert bool(figure.axes[0].collections) == bool(bands)
    assert figure.get_suptitle().startswith(f"lines: means{bands}, {comparison['num_clips']} clip")


def test_the_last_marker_is_inside_the_axes(add_run: AddRun) -> None:
    """Steps late in a horizon are near each other, measured by an axis from 0."""
    comparison = compare([add_run("jepa", 0, 5 + MANY / 100, horizon_s=(0.98, 1.0))])
    axes = drawn(horizon_picture, comparison).axes[0]
    assert axes.get_xlim() == pytest.approx((0, 1.05))
    assert axes.get_ylim()[1] > 1.04 * axes.lines[0].get_ydata().max()  # type: ignore[union-attr]


def test_a_variant_has_its_color_whatever_else_is_drawn(add_run: AddRun) -> None:
    comparison = compare([add_run("jepa", 0, MANY), add_run("vlm", 0, MANY + 0.1)])
    for draw in (horizon_picture, distance_picture):
        pixels = matplotlib.image.imread(io.BytesIO(draw(comparison)))[..., :3]
        for colour in ((0xD5, 0x5E, 0), (0, 0x9E, 0x73)):
            near = np.abs(pixels - np.array(colour) / 255).max(axis=-1) < 0.02
            assert near.sum() > 50, (draw.__name__, colour)


def test_a_step_that_no_clip_has_a_score_at_leaves_a_gap(add_run: AddRun) -> None:
    found = compare([add_run("jepa", 0, MANY, last_step=np.nan)])
    assert horizon_picture(found).startswith(b"\x89PNG")
    assert row_of(comparison_markdown(found), "0.30")[1] != row_of(comparison_markdown(found), "0.10")[1]


def test_settings_are_named_only_where_they_differ(add_run: AddRun) -> None:
    same = [add_run("jepa", 0, MANY), add_run("vlm", 0, MANY + 0.1)]
    assert "differ" not in comparison_markdown(compare(same)).split("## ")[0]
    markdown = comparison_markdown(compare([*same, add_run("jepa", 0, MANY, width=48)]))
    assert "- settings in which these runs differ: width (None, 48)" in markdown


def test_a_run_without_a_thinker_does_not_differ_by_it(add_run: AddRun) -> None:
    sets = {"encoder": {"name": "encoder-1"}, "thinker": {"name": "thinker-1"}}
    with_thinker = add_run("thinkjepa", 0, MANY, feature_sets=sets)
    assert compare([with_thinker, add_run("jepa", 0, MANY)])["varied"] == {}
    other = add_run("thinkjepa", 1, MANY, feature_sets={**sets, "thinker": {"name": "thinker-2"}})
    assert compare([with_thinker, other])["varied"] == {"thinker": ["thinker-1", "thinker-2"]}


def test_a_page_has_one_table_and_the_verdicts_of_the_first_model(add_run: AddRun) -> None:
    runs = [
        add_run(name, seed, MANY + shift) for name, shift in (("jepa", 0), ("vlm", 0.1)) for seed in (0, 1)
    ]
    page = comparison_page(compare(runs), ["all tables: here"])
    assert page.count("| method") == 1
    assert row_of(page, "jepa", "2")[2].startswith("200.0 [")
    assert "ADE: jepa is better than vlm by 100.0 mm" in page
    assert page.endswith("all tables: here")


def test_each_question_has_one_table(add_run: AddRun) -> None:
    runs = [add_run(name, seed, MANY) for name in ("thinkjepa", "jepa", "vlm") for seed in range(3)]
    markdown = comparison_markdown(compare(runs))
    titles = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert titles == ["## Who wins", "## By how much", "## Where: over the horizon"]
    assert sum(line.startswith("| -") or line.startswith("|--") for line in markdown.splitlines()) == 3


@pytest.mark.parametrize("others", [0, 8])
def test_the_page_always_says_whether_guidance_helps(add_run: AddRun, others: int) -> None:
    """vlm is the best on validation clips, also among many: the pair is compared and shown all the same."""
    distances = {"thinkjepa": 0.3, "jepa": 0.2, "vlm": 0.1}
    runs = [
        replace(
            add_run(name, seed, MANY + shift + 0.001 * seed),
            validation={"validation_distance_m": distances[name], "validation_latent_error": 1.0},
        )
        for name, shift in (("thinkjepa", 0.0), ("jepa", 0.05), ("vlm", 0.1))
        for seed in range(3)
    ]
    runs += [
        replace(
            add_run("jepa", 0, MANY, width=width),
            validation={"validation_distance_m": 1.0, "validation_latent_error": 1.0},
        )
        for width in range(1, others + 1)
    ]
    comparison = compare(runs)
    assert comparison["ranking"]["rows"][0]["variant"] == "vlm"
    page = comparison_page(comparison, [])
    assert "ADE: thinkjepa beats jepa by 50.0 mm" in page
    assert "latent L2: thinkjepa beats jepa by 5.0" in page
    assert len(page.splitlines()) < 24, "a page"


@pytest.mark.parametrize("others", [0, 8])
def test_whether_guidance_helps_is_not_asked_of_a_control(add_run: AddRun, others: int) -> None:
    """An oracle that wins, or the encoder's features, say nothing of the thinker."""
    shifts = {"own": 0.0, "history": -0.04, "oracle:cue": -0.08, "": 0.05}
    runs = [
        replace(
            add_run("thinkjepa", seed, MANY + shift + 0.001 * seed, guidance_source=source)
            if source
            else add_run("jepa", seed, MANY + shift + 0.001 * seed),
            validation={"validation_distance_m": 0.3 + shift, "validation_latent_error": 1.0},
        )
        for source, shift in shifts.items()
        for seed in range(3)
    ]
    runs += [
        replace(
            add_run("jepa", 0, MANY, width=width),
            validation={"validation_distance_m": 1.0, "validation_latent_error": 1.0},
        )
        for width in range(1, others + 1)
    ]
    comparison = compare(runs)
    controls = {group["name"] for group in comparison["groups"] if group["control"]}
    assert controls == {f"thinkjepa (guidance_source {name})" for name in ("history", "oracle:cue")}
    asked = question_of(comparison)
    assert asked is not None
    assert asked[0] == "thinkjepa (guidance_source own)"
    assert any((item["a"], item["b"]) == asked for item in comparison["differences"])


def test_left_out_latents_are_said_to_be(add_run: AddRun) -> None:
    runs = [add_run("jepa", 0, MANY, latent_pool=pool) for pool in (1, 2)]
    assert "latent distances left out" in comparison_markdown(compare(runs))
    assert "latent distances left out" not in comparison_markdown(compare(runs[:1]))
