"""A prediction's video: every frame in its order, a mark at the split, and time to look at the end."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from new_videos import frames_of
from PIL import Image, ImageColor

from thinkjepa.pipeline.picture.playback import (
    BAR_TOP_PX,
    MARGIN_PX,
    TIMELINE_PX,
    WORD_GAP_PX,
    Timeline,
    held_frames,
    playback_fps,
    prediction_mp4,
    speed_text,
)
from thinkjepa.stages.picture_style import PREDICTED
from thinkjepa.stages.predict.frames import ChosenFrames

WIDTH, HEIGHT = 320, 64


def chosen(fps: float, *, observed: int = 4, future: int = 4) -> ChosenFrames:
    observed_s = [place / fps for place in range(observed)]
    return ChosenFrames(
        split_frame=observed,
        split_time_s=observed / fps,
        thinker=(),
        observed=tuple(range(observed)),
        observed_times_s=tuple(observed_s),
        future=tuple(range(observed, observed + future)),
        future_times_s=tuple(observed_s[-1] + (place + 1) / fps for place in range(future)),
        fps=fps,
    )


def test_the_split_and_the_end_stay_and_every_other_picture_is_shown_once(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (WIDTH, HEIGHT), (30 * place, 30 * place, 30 * place)) for place in range(8)]
    (tmp_path / "out.mp4").write_bytes(prediction_mp4(pictures, chosen(10.0)))
    frames = frames_of(tmp_path / "out.mp4")
    pause, hold = held_frames(playback_fps(chosen(10.0), 8))
    assert (pause, hold) == (3, 8)
    assert frames[0].shape[:2] == (HEIGHT + TIMELINE_PX, WIDTH)
    shades = [round(frame[:HEIGHT].mean() / 30) for frame in frames]
    assert shades == [0, 1, 2, *[3] * 4, 4, 5, 6, *[7] * 9]


def test_the_bar_turns_at_the_split_in_real_time() -> None:
    """Three tenths were observed, four are predicted: the split lies at three sevenths."""
    seconds = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4)
    canvas = Timeline(seconds, speed=0.5).below(Image.new("RGB", (WIDTH, HEIGHT)), -0.3, at_split=False)
    bar = np.asarray(canvas)[HEIGHT + BAR_TOP_PX + 2]
    future = np.flatnonzero((bar == ImageColor.getrgb(PREDICTED)).all(axis=-1))
    split = MARGIN_PX + (WIDTH - 2 * MARGIN_PX) * 3 / 7
    assert future[0] == pytest.approx(split, abs=3)
    assert future[-1] == pytest.approx(WIDTH - MARGIN_PX, abs=2)


@pytest.mark.parametrize("times_s", [(-0.7, 0.0, 0.72), (-6.0, 0.0, 0.72), (-0.2, 0.0, 6.0)])
def test_the_words_under_the_bar_stand_apart(times_s: tuple[float, ...]) -> None:
    """Three texts with two gaps wider than those between words, on a narrow picture."""
    picture = Image.new("RGB", (480, HEIGHT))
    canvas = Timeline(times_s, speed=0.5).below(picture, 0.0, at_split=True)
    words = np.asarray(canvas.convert("L"))[HEIGHT + BAR_TOP_PX + 16 :]
    columns = np.flatnonzero((words > 150).any(axis=0))
    assert MARGIN_PX - 2 <= columns[0] < columns[-1] <= 480 - MARGIN_PX
    assert (np.diff(columns) >= WORD_GAP_PX - 2).sum() == 2


@pytest.mark.parametrize(
    ("fps", "num_frames", "shown", "words"),
    [(10.0, 16, 5, "0.5 x real speed"), (10.0, 80, 10, "real speed"), (30.0, 64, 16, "0.53 x real speed")],
)
def test_short_predictions_are_played_slowly_and_say_so(
    fps: float, num_frames: int, shown: int, words: str
) -> None:
    played = playback_fps(chosen(fps), num_frames)
    assert played == shown
    assert speed_text(float(played / Fraction(fps))) == words
