"""The installed `thinkjepa-predict` for a run without labels: latents, what they resemble, and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from new_videos import FPS, NUM_FRAMES, frames_of, lossless_video, train_run
from PIL import Image

from thinkjepa.cache import file_digest
from thinkjepa.pipeline.picture.latent_panels import PANEL_SHORT_SIDE_PX, LatentColors, LatentPanels
from thinkjepa.pipeline.picture.latents import BACKGROUND, summary
from thinkjepa.pipeline.picture.playback import TIMELINE_PX, held_frames
from thinkjepa.stages.data.cutting.reading import read_clip_file
from thinkjepa.stages.data.framing import VJEPA2_FRAMING, letterbox_framing
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.metrics import latent_metrics
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.predict import frames
from thinkjepa.stages.predict.frames import SplitChoice
from thinkjepa.stages.predict.latents import PredictedLatents
from thinkjepa.stages.predict.prediction import Prediction
from thinkjepa.stages.predict.prediction import predict as predict_in_process
from thinkjepa.stages.progress import NoProgress

RunCommand = Callable[..., Any]
WIDE = (320, 180)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        make_video(folder / f"{number}.mp4", num_frames=NUM_FRAMES + number, fps=FPS, size=WIDE)
        for number in range(4)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, videos: list[Path], run_extract: RunCommand) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    outcome = run_extract(videos[0].parent, folder / "cache", "--batch-size", 1, "--keep-history")
    assert outcome.status == 0, outcome.stderr
    return train_run(folder / "cache", folder / "run")


def predicted(run: Path, video: Path, **split: Any) -> Prediction:
    return predict_in_process(
        run,
        video,
        split=SplitChoice(**split),
        places={},
        cache_dir=None,
        device="cpu",
        decode_timeout_s=60,
        progress=NoProgress(),
    )


def test_latents_of_a_cached_clip_are_those_of_the_cache(run: Path, videos: list[Path]) -> None:
    trained = TrainedRun.open(run)
    features = trained.features(None)
    clip = next(clip for clip in features.clips if clip.video_digest == file_digest(videos[2]))
    batch = features.batch([clip.clip_id], torch.device("cpu"))
    with torch.no_grad():
        expected = trained.model()(batch.observed, batch.pooled, None).latents
    prediction = predicted(run, videos[2], frame=clip.split_frame)
    latents = prediction.latents
    assert latents.true is not None
    assert torch.equal(latents.predicted, expected[0])
    assert torch.equal(latents.observed, batch.observed[0])
    assert torch.equal(latents.true, batch.future[0])
    record = prediction.to_json()["latents"]
    assert record["mse"] == pytest.approx(latent_metrics(expected, batch.future)["l2"][0].tolist(), rel=1e-5)
    assert "joints" not in prediction.to_json()


def test_the_side_of_the_video_is_said(
    run: Path, videos: list[Path], run_command: RunCommand, tmp_path: Path
) -> None:
    sides = {number: side for side, ids in split_of(run).items() for number in ids}
    for number, video in enumerate(videos[:2]):
        renamed = tmp_path / f"renamed {number}.mp4"
        renamed.write_bytes(video.read_bytes())
        side = sides[file_digest(video)[:16]]
        outcome = run_command("thinkjepa-predict", "--run", run, "--video", renamed, "-o", tmp_path / "a.png")
        name = {"train": "training"}.get(side, side)
        assert f"\none of the run's {name} videos: " in outcome.stdout
        assert json.loads((tmp_path / "a.json").read_text())["side"] == side
    unknown = predicted(run, lossless_video(tmp_path / "new.mkv", change=None), frame=24)
    assert unknown.split_name is None


def split_of(run: Path) -> dict[str, set[str]]:
    clips = json.loads((run / "split.json").read_text())["clips"]
    return {side: {clip_id.split("@")[0] for clip_id in ids} for side, ids in clips.items()}


def test_the_future_changes_the_comparison_and_not_the_prediction(run: Path, tmp_path: Path) -> None:
    changes = {"plain": None, "future": slice(24, None), "past": slice(23, 24)}
    found = {
        name: predicted(run, lossless_video(tmp_path / f"{name}.mkv", change=change), frame=24).latents
        for name, change in changes.items()
    }
    plain, future, past = found["plain"], found["future"], found["past"]
    assert plain.true is not None
    assert future.true is not None
    assert torch.equal(future.predicted, plain.predicted)
    assert torch.equal(future.observed, plain.observed)
    assert not torch.equal(future.true, plain.true)
    assert not torch.equal(past.predicted, plain.predicted)


def test_a_row_of_a_table_gives_the_split_and_the_segment(run: Path, tmp_path: Path) -> None:
    """Frames 10 to 35, split at 24: the rest changes nothing, and the control without a start is changed."""
    changes = {"plain": None, "before": slice(0, 10), "past": slice(10, 11)}
    videos = {
        name: lossless_video(tmp_path / f"{name}.mkv", change=change) for name, change in changes.items()
    }
    table = tmp_path / "clips.csv"
    rows = [f"{name}.mkv,2.4,1.0,3.6" for name in changes] + [f"{name}.mkv,2.4,," for name in changes]
    table.write_text("video,split_s,start_s,end_s\n" + "\n".join(rows) + "\n")
    file = read_clip_file(table)

    def forecast(name: str, row: int) -> Prediction:
        return predicted(run, videos[name], row=file.row_of(videos[name], row))

    plain = forecast("plain", 1)
    assert plain.frames.thinker[0] == 10
    assert (plain.frames.split_frame, max(plain.frames.future)) == (24, 31)
    assert torch.equal(forecast("before", 2).latents.predicted, plain.latents.predicted)
    assert not torch.equal(forecast("past", 3).latents.predicted, plain.latents.predicted)
    whole = [forecast("plain", 4), forecast("before", 5)]
    assert not torch.equal(whole[0].latents.predicted, whole[1].latents.predicted)
    with pytest.raises(StageError, match=r"rows of .*plain.mkv' are 1, 4: name one of them with --row"):
        file.row_of(videos["plain"])
    with pytest.raises(StageError, match=r"has no row of 'other.mkv'"):
        file.row_of(Path("other.mkv"))


@pytest.mark.parametrize("split", [(), ("--split-time", 4.1)])
def test_a_run_without_labels_writes_a_picture_and_a_video(
    split: tuple[object, ...], run: Path, videos: list[Path], run_command: RunCommand, tmp_path: Path
) -> None:
    """By default the whole future is shown; at the video's end there is nothing to compare with."""
    for name in ("out.png", "out.mp4"):
        arguments = ("--run", run, "--video", videos[1], "-o", tmp_path / name)
        outcome = run_command("thinkjepa-predict", *arguments, *split)
        assert outcome.status == 0, outcome.stderr
        assert "no hands: the run was trained without them" in outcome.stdout
        assert "thinkjepa-data import" in outcome.stdout
        assert ("nothing to compare with" in outcome.stdout) == bool(split)
    frames = frames_of(tmp_path / "out.mp4")
    assert len(frames) == 16 + sum(held_frames(Fraction(5)))
    assert frames[0].shape[1] > 3 * PANEL_SHORT_SIDE_PX * WIDE[0] / WIDE[1]
    above = frames[0][:-TIMELINE_PX].astype(int)
    empty = (np.abs(above - BACKGROUND).max(axis=-1) < 6).mean()
    assert empty < 0.45, "the two panels of what is observed are enlarged"
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 1000
    record = (tmp_path / "out.json").read_text()
    assert ('"mse": null' in record) == bool(split)


def test_another_ending_is_refused_before_anything_is_loaded(
    run: Path, videos: list[Path], run_command: RunCommand, tmp_path: Path
) -> None:
    arguments = ("--run", run, "--video", videos[1], "-o", tmp_path / "out.gif")
    outcome = run_command("thinkjepa-predict", *arguments)
    assert outcome.status == 2
    assert "ends in .mp4 or .png" in outcome.stderr
    assert not list(tmp_path.iterdir())


def latents_of(observed: list[float], predicted: list[float], true: list[float] | None) -> PredictedLatents:
    """Steps of 2 x 2 patches and 3 dims, each filled with one value."""

    def steps(values: list[float]) -> torch.Tensor:
        return torch.tensor(values)[:, None, None].expand(-1, 4, 3)

    return PredictedLatents(
        grid=(2, 2),
        tubelet=2,
        framing=VJEPA2_FRAMING,
        observed=steps(observed),
        predicted=steps(predicted),
        true=None if true is None else steps(true),
    )


def test_the_nearest_step_is_sought_in_both_windows() -> None:
    latents = latents_of([0.0, 1.0], [2.1, 0.9, 9.0], [2.0, 3.0, 4.0])
    assert latents.nearest == (2, 1, 4)
    assert latents.num_found == 2
    assert latents.errors is not None
    assert latents.persistence_errors is not None
    np.testing.assert_allclose(latents.errors[:, 0], [0.01, 4.41, 25.0], rtol=1e-5)
    np.testing.assert_allclose(latents.persistence_errors[:, 3], [1.0, 4.0, 9.0])
    ended = latents_of([0.0, 1.0], [2.1], None)
    assert (ended.nearest, ended.num_found, ended.errors) == ((1,), None, None)


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (2.0, "MSE 1.0000, persistence 0.0000; the most"),
        (2.1, "MSE 1.0000, persistence 0.0100 (+99 times its 0.0100); the most"),
        (4.0, "MSE 1.0000, persistence 4.0000 (-75 %); the most"),
    ],
)
def test_the_error_is_told_by_that_of_persistence_where_there_is_one(
    run: Path, videos: list[Path], last: float, told: str
) -> None:
    """In the first case nothing moves: the last observed step is the future, exactly."""
    moved = replace(predicted(run, videos[0]), latents=latents_of([0.0, last], [3.0, 3.0], [2.0, 2.0]))
    assert told in summary(moved)


def test_predicted_latents_are_painted_by_the_components_of_the_true_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(5, 6, 8, generator=generator)
    colors = LatentColors.fit(true)
    np.testing.assert_array_equal(colors.paint(true[1:3]), colors.paint(true)[1:3])
    far = colors.paint(true + 1000 * colors.axes[:, 0].float())
    np.testing.assert_array_equal(far[..., 0], 1.0)


def test_latents_of_a_letterbox_are_drawn_over_the_whole_frame(run: Path, videos: list[Path]) -> None:
    """The grid is a square, of which the frame is a strip: patches of the padding are not shown."""
    plain = predicted(run, videos[0])
    latents = replace(plain.latents, framing=letterbox_framing(64, 64))
    panels = LatentPanels(replace(plain, latents=latents), decode_timeout_s=60)
    step = panels.steps()[0]
    height, width = step.predicted.shape[:2]
    assert panels.box.whole_px() == (0, 0, width, height)
    rows, columns = latents.grid
    colors = (255 * panels.colors.paint(latents.predicted[0])).round().reshape(rows, columns, 3)
    side, above = width / columns, (width - height) / 2
    shown = 0
    for row in range(rows):
        y = round((row + 0.5) * side - above)
        if 2 <= y < height - 2:
            found = step.predicted[y, [round((column + 0.5) * side) for column in range(columns)]]
            np.testing.assert_array_equal(found, colors[row])
            shown += 1
    assert shown == rows // 2  # of a frame of 16:9 on four rows


def test_latents_are_drawn_where_the_encoder_looked(run: Path, videos: list[Path]) -> None:
    """On a wide frame the patches fill the middle square, and the rest stays the dimmed frame."""
    panels = LatentPanels(predicted(run, videos[0]), decode_timeout_s=60)
    step = panels.steps()[0]
    left, top, right, bottom = panels.box.whole_px()
    height, width = step.predicted.shape[:2]
    assert (left, top) == (width - right, height - bottom)
    assert 0.85 * height < right - left == bottom - top < 0.9 * height
    assert step.true is not None
    outside = np.ones((height, width), dtype=bool)
    outside[top:bottom, left:right] = False
    np.testing.assert_array_equal(step.predicted[outside], step.true[outside])
    assert (step.predicted[~outside] != step.true[~outside]).any()


def test_a_control_is_predicted_without_the_thinker(
    run: Path, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was trained on zeros is given zeros, and no thinker runs for it."""
    cache = TrainedRun.open(run).cache(None).path
    control = train_run(cache, tmp_path / "none", guidance_source="none", gate_learning_rate=0.1)
    trained = TrainedRun.open(control)
    features = trained.features(None)
    clip = next(clip for clip in features.clips if clip.video_digest == file_digest(videos[2]))
    batch = features.batch([clip.clip_id], torch.device("cpu"))
    assert batch.pooled is not None
    assert not batch.pooled.any()
    with torch.no_grad():
        expected = trained.model()(batch.observed, batch.pooled, None).latents[0]
    monkeypatch.setattr(frames, "load_thinker", None)
    found = predicted(control, videos[2], frame=clip.split_frame)
    torch.testing.assert_close(found.latents.predicted, expected)
    assert found.warnings == ()


def test_a_run_guided_by_the_history_is_given_that_of_a_new_video(
    run: Path, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forecast of a cached clip is that of the cache; pixels of the future do not move it, others do."""
    cache = TrainedRun.open(run).cache(None).path
    control = train_run(cache, tmp_path / "history", guidance_source="history", gate_learning_rate=0.1)
    trained = TrainedRun.open(control)
    features = trained.features(None)
    clip = next(clip for clip in features.clips if clip.video_digest == file_digest(videos[2]))
    batch = features.batch([clip.clip_id], torch.device("cpu"))
    with torch.no_grad():
        expected = trained.model()(batch.observed, batch.pooled, None).latents[0]
    monkeypatch.setattr(frames, "load_thinker", None)
    found = predicted(control, videos[2], frame=clip.split_frame)
    assert torch.equal(found.latents.predicted, expected)
    assert found.warnings == ()
    changes = {"plain": None, "future": slice(24, None), "past": slice(0, 1)}
    latents = {
        name: predicted(control, lossless_video(tmp_path / f"{name}.mkv", change=change), frame=24).latents
        for name, change in changes.items()
    }
    assert torch.equal(latents["future"].predicted, latents["plain"].predicted)
    assert torch.equal(latents["past"].observed, latents["plain"].observed), "the first frame is in no window"
    assert not torch.equal(latents["past"].predicted, latents["plain"].predicted), "but in the history"


def test_an_oracle_says_that_it_does_not_know_a_new_video(
    run: Path, videos: list[Path], tmp_path: Path
) -> None:
    cache = TrainedRun.open(run).cache(None).path
    (tmp_path / "table.csv").write_text("video,kind\n" + "".join(f"{n}.mp4,{n % 2}\n" for n in range(4)))
    settings = {"guidance_source": "oracle:kind", "oracle_table": str(tmp_path / "table.csv")}
    oracle = train_run(cache, tmp_path / "oracle", **settings)
    clip = next(iter(TrainedRun.open(oracle).features(None).clips))
    video = next(path for path in videos if file_digest(path) == clip.video_digest)
    assert predicted(oracle, video, frame=clip.split_frame).warnings == ()
    (warning,) = predicted(oracle, video, frame=clip.split_frame + 1).warnings
    assert warning.startswith("the run was guided by kind, and does not know it")
