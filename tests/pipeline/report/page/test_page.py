"""The page of a comparison: whole, accessible, safe with hostile names, and limited in size."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from extraction import Completed
from pages.hostile_project import HOSTILE_NAME, HOSTILE_WORDS, Parsed, Project

from thinkjepa.pipeline.cli import eval as eval_app
from thinkjepa.pipeline.report.page.build import PageSettings, _rolled, write_page
from thinkjepa.pipeline.report.page.clips import choose_clips
from thinkjepa.pipeline.report.page.markup import (
    DARK_PAGE,
    LEAST_CONTRAST,
    _luminance,
    dark_colors,
    html_table,
    inline_svg,
)
from thinkjepa.pipeline.report.page.media import Budget, describe_look, spotlight
from thinkjepa.stages.evaluate.compared.comparison import compare
from thinkjepa.stages.evaluate.compared.groups import EvaluatedRun
from thinkjepa.stages.evaluate.details.attended import Attended
from thinkjepa.stages.evaluate.metrics import METRICS
from thinkjepa.stages.evaluate.runs import read_evaluations, runs_under
from thinkjepa.stages.picture_style import PREDICTED, new_figure, picture_style, svg_bytes
from thinkjepa.stages.progress import NoProgress


def evaluated(project: Project) -> tuple[list[Path], list[EvaluatedRun]]:
    paths = runs_under(project.runs)
    return paths, read_evaluations(paths, "test")


def page_of(project: Project, out: Path, **settings: Any) -> str:
    paths, runs = evaluated(project)
    chosen = replace(PageSettings(videos=project.videos, device="cpu"), **settings)
    written = write_page(
        out, compare(runs), runs, paths, settings=chosen, rollouts=None, progress=NoProgress()
    )
    return written.read_text(encoding="utf-8")


def test_the_page_needs_nothing_else(project: Project) -> None:
    page = Parsed(project.page)
    assert page.unmatched == []
    assert page.open == []
    assert [name for name, _ in page.elements if name in ("script", "link", "iframe", "object")] == []
    used = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("src", "href", "xlink:href", "poster", "action")
        if name in attributes
    ]
    assert used
    assert {re.match(r"data:(image/jpeg|video/mp4);base64,|#", url) is not None for url in used} == {True}
    assert "http" not in re.sub(r"base64,[^\"]*", "", project.page).replace("http-equiv", "")
    assert {name for _, attributes in page.elements for name in attributes if name.startswith("on")} == set()


def test_the_page_is_built_for_screen_readers_and_phones(project: Project) -> None:
    page = Parsed(project.page)
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in next(m["content"] for m in page.all("meta") if m.get("name") == "viewport")
    assert [len(page.all(name)) for name in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h[1-6]", name)]
    assert max(np.diff(levels)) == 1, "no level of headings is left out"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("img"):
        assert attributes["alt"]
    for name in ("svg", "video", "section", "article"):
        named = page.all(name)
        assert named
        for attributes in named:
            named_by = attributes.get("aria-labelledby") or attributes["aria-describedby"]
            assert set(named_by.split()) <= set(ids)
    assert len(page.all("desc")) == len(page.all("svg")) == len(page.all("title")) - 1
    for attributes in page.all("th"):
        assert attributes["scope"] in ("col", "row")
    for attributes in page.all("a"):
        assert attributes["href"].removeprefix("#") in ids


def test_names_and_words_of_files_are_text(project: Project) -> None:
    page = Parsed(project.page)
    assert HOSTILE_NAME in page.words("h3")
    shown = HOSTILE_WORDS.replace("\u202e", "\\u202e").replace("\x07", "\\u0007")
    assert page.words("dd").count(shown) == 3
    assert "\u202e" not in project.page
    assert not [attributes for attributes in page.all("img") if attributes.get("src") == "x"]


def test_the_answer_comes_first_and_is_the_comparison_s(project: Project) -> None:
    comparison = json.loads((project.runs / "comparison" / "comparison.json").read_text())
    page = Parsed(project.page)
    lead = next(index for index, (_, a) in enumerate(page.elements) if a.get("class") == "lead")
    assert [name for name, _ in page.elements[:lead]].count("h2") == 1
    assert "thinkjepa" in project.page[: project.page.index("</table>")]
    mean_mm = 1000 * comparison["entries"][0]["metrics"]["ade_m"]["mean"]
    assert f"{mean_mm:.1f} [" in page.words("td")


def test_best_median_and_worst_are_those_of_the_evaluation(project: Project) -> None:
    _, runs = evaluated(project)
    for run in runs:
        rows = pq.read_table(
            project.runs / run.name / "eval-test.parquet", columns=["clip_id", "model_ade_m"]
        )
        order = sorted(rows.to_pylist(), key=lambda row: row["model_ade_m"])
        chosen = dict(choose_clips(run, run.table.clip_ids, METRICS["ade_m"]))
        wanted = {"best": order[0], "median": order[(len(order) - 1) // 2], "worst": order[-1]}
        assert chosen == {role: row["clip_id"] for role, row in wanted.items()}
        one = run.table.clip_ids[:1]
        assert choose_clips(run, one, METRICS["ade_m"]) == [("best", one[0])]
    roles = [text for tag, text in Parsed(project.page).texts if tag == "span" and text in wanted]
    assert roles == [*wanted]


def test_videos_show_the_predicted_hand_in_frames_of_the_future_alone(project: Project) -> None:
    videos = Parsed(project.page).all("video")
    assert len(videos) == 3
    orange = np.array([int(PREDICTED[start : start + 2], 16) for start in (1, 3, 5)])
    for attributes in videos:
        assert "controls" in attributes
        content = base64.b64decode(attributes["src"].partition(",")[2])
        with av.open(io.BytesIO(content)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert frames[0].shape[1] == 2 * 300, "two runs side by side, each 160 x 128 px made 300 x 240"
        hands = [frame[8:232, 8:292].astype(int) for frame in frames]
        drawn = [(np.abs(hand - orange).max(axis=-1) < 40).mean() for hand in hands]
        assert drawn[0] < 0.001 < drawn[-1]


def test_what_does_not_fit_is_left_out_and_listed(project: Project, tmp_path: Path) -> None:
    page = page_of(project, tmp_path / "small", limit_mb=0.0)
    assert not Parsed(page).all("video")
    assert not Parsed(page).all("img")
    left_out = next(text for text in re.findall(r"<p[^>]*>([^<]*)</p>", page) if "--report-mb" in text)
    assert left_out.count("the video of clip") == 3
    budget = Budget(limit_bytes=100)
    assert budget.url(b"x" * 30, kind="image/jpeg", name="one").startswith("data:image/jpeg;base64,eHh4")
    assert budget.url(b"x" * 30, kind="image/jpeg", name="other") == ""
    assert len(budget.left_out) == 1
    assert budget.left_out[0].startswith("other (")


def test_videos_that_are_missing_are_named(project: Project, tmp_path: Path) -> None:
    page = Parsed(page_of(project, tmp_path / "without", videos=tmp_path))
    assert page.words("p").count("is not in") == 6, "the video and the thinker's frames of three clips"
    assert page.words("dd").count("document.title") == 3, "its words are in the cache"


def test_clips_can_be_asked_for(
    project: Project, tmp_path: Path, call_main: Callable[..., Completed]
) -> None:
    _, runs = evaluated(project)
    wanted = runs[0].table.clip_ids[1]
    page = Parsed(page_of(project, tmp_path / "asked", clips=(wanted,)))
    assert wanted in page.words("p")
    assert len(page.all("article")) == 1
    trained_on = json.loads((project.runs / "jepa" / "split.json").read_text())["clips"]["train"][0]
    arguments = ("--runs", project.runs, "--report", tmp_path / "not", "--videos", project.videos)
    for named, words in ((trained_on, "none of the"), ("nothing@1", "no clip is named")):
        result = call_main(eval_app.main, "thinkjepa-eval", *arguments, "--report-clips", named)
        assert result.returncode == 2
        assert words in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "not" / "index.html").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--report-clips", "a"), "--report"), (("--report", "r", "--rollout", "4"), "two steps")],
)
def test_flags_that_do_not_go_together_are_refused(
    project: Project, call_main: Callable[..., Completed], flags: tuple[str, ...], words: str
) -> None:
    result = call_main(eval_app.main, "thinkjepa-eval", "--runs", project.runs, *flags)
    assert result.returncode == 2
    assert words in result.stderr


def test_rollouts_of_other_weights_are_not_shown(project: Project, tmp_path: Path) -> None:
    _, runs = evaluated(project)
    weights = {run.name: {"checkpoint_sha256": run.table.record["checkpoint_sha256"]} for run in runs}
    for changed, shown in (({}, {"schema": "x"}), ({"jepa": {"checkpoint_sha256": "other"}}, None)):
        content = {"runs": weights | changed, "compared": {"schema": "x"}}
        (tmp_path / "rollout-test.json").write_text(json.dumps(content))
        assert _rolled(tmp_path, runs) == shown
    assert _rolled(tmp_path / "nowhere", runs) is None


def look(shares: list[list[float]], *, kind: str = "cross", gate: float = 0.5) -> Attended:
    return Attended(kind, np.array([0.25, 0.75]), np.array([0.25, 0.75]), np.array(shares), 0.1, 0.3, gate)


def test_a_place_is_as_bright_as_it_is_read() -> None:
    frame = np.full((100, 200, 3), 200, np.uint8)
    picture = np.asarray(spotlight(frame, look([[0.4, 0.2], [0.0, 0.0]])))
    height, width = picture.shape[:2]
    quarters = [picture[height // 4 * row, width // 4 * column, 0] for row in (1, 3) for column in (1, 3)]
    assert quarters == [200, round(200 * (0.15 + 0.85 / 2)), 30, 30]
    middle = np.array([0.4, 0.6])
    part = replace(look([[0.4, 0.2], [0.0, 0.1]]), heights=middle, widths=middle)
    assert np.asarray(spotlight(frame, part))[2, 2, 0] == 30, "outside of all places"


def test_words_say_where_a_run_looks() -> None:
    text = describe_look(look([[0.4, 0.1], [0.05, 0.05]]), of="thinkjepa")
    assert "60% to places of the frame, 10% to moments, 30% to text" in text
    assert "row 1, column 1, with 66.7% of them all (even: 25.0%)" in text
    assert "changes nothing" in describe_look(look([[0.4, 0.1], [0.05, 0.05]], gate=0.0), of="thinkjepa")


def test_figures_have_ids_of_their_own_and_colors_of_both_pages() -> None:
    with picture_style():
        figure = new_figure(2, 2)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#0072b2", marker="o", label="a <b> & c")
        axes.legend()
        content = svg_bytes(figure)
    one, other = (inline_svg(content, key=key, title="<t>", description="d") for key in ("one", "other"))
    first, second = (set(re.findall(r'id="([^"]*)"', svg)) for svg in (one, other))
    assert first
    assert not first & second
    for svg, ids in ((one, first), (other, second)):
        assert set(re.findall(r'(?:href="|url\()#([\w-]*)', svg)) <= ids
    assert "a &lt;b&gt; &amp; c" in one
    assert "http" not in one
    assert "var(--c0072b2, #0072b2)" in one
    dark = dark_colors([one])
    assert dark["--c000000"] == "#e8e8e8"
    color = [int(dark["--c0072b2"][start : start + 2], 16) for start in (1, 3, 5)]
    assert (_luminance(color) + 0.05) / (_luminance(DARK_PAGE) + 0.05) >= LEAST_CONTRAST


def test_tables_are_escaped_and_empty_without_rows() -> None:
    table = Parsed(html_table(["", "<b>"], [["<i>", 1.5]], note="<note>"))
    assert [name for name, _ in table.elements if name in ("b", "i", "note")] == []
    assert table.words("p") == "<note>"
    assert table.all("td")[-1] == {"class": "number"}
    assert html_table(["a"], []) == ""
