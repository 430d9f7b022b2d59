"""The sample videos are what they say they are: right length and rate, smooth, reproducible."""

import av
import numpy as np
import pytest

from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.sample.videos import MOTIONS, draw_frames, write_videos


def test_videos_have_the_asked_length_rate_and_size(tmp_path):
    paths = write_videos(tmp_path, num_videos=5, seconds=1.5, fps=20, size=(96, 64), seed=0)
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        "bounce/0.mp4",
        "orbit/0.mp4",
        "slide/0.mp4",
        "swing/0.mp4",
        "bounce/1.mp4",
    ]
    for path in paths:
        with av.open(path) as container:
            frames = list(container.decode(video=0))
        assert [frame.time for frame in frames] == pytest.approx([index / 20 for index in range(30)])
        assert {(frame.width, frame.height) for frame in frames} == {(96, 64)}


def test_same_seed_gives_the_same_files_and_more_videos_only_add(tmp_path):
    options = {"seconds": 0.5, "fps": 10, "size": (64, 48)}
    few = write_videos(tmp_path / "few", num_videos=2, seed=1, **options)
    many = write_videos(tmp_path / "many", num_videos=4, seed=1, **options)
    other = write_videos(tmp_path / "other", num_videos=2, seed=2, **options)
    for path, again, different in zip(few, many[:2], other, strict=True):
        assert path.read_bytes() == again.read_bytes()
        assert path.read_bytes() != different.read_bytes()


@pytest.mark.parametrize("name", sorted(MOTIONS))
@pytest.mark.parametrize("seed", range(20))
def test_motions_stay_inside_and_move_smoothly(name, seed):
    times_s = np.arange(300) / 30
    centers = MOTIONS[name](times_s, np.random.default_rng(seed))
    assert centers.shape == (300, 2)
    assert centers.min() >= 0
    assert centers.max() <= 1
    assert np.linalg.norm(np.diff(centers, axis=0), axis=1).max() < 0.2  # of the picture, per frame
    assert np.ptp(centers, axis=0).max() > 0.02


def test_frames_differ_only_where_shapes_are(tmp_path):
    frames = draw_frames(
        np.arange(30) / 30, MOTIONS["slide"], size=(96, 64), rng=np.random.default_rng(0)
    ).astype(int)
    steps = np.abs(np.diff(frames, axis=0)).sum(axis=-1) > 0
    assert steps.any(axis=(1, 2)).all(), "something moves between any two frames"
    assert steps.mean() < 0.3, "the background stands still"


@pytest.mark.parametrize("size", [(95, 64), (16, 64)])
def test_sizes_that_cannot_be_encoded_are_refused(tmp_path, size):
    with pytest.raises(ThinkJepaError, match="even and at least 32 px"):
        write_videos(tmp_path, num_videos=1, size=size)


def test_a_video_without_frames_is_refused(tmp_path):
    with pytest.raises(ThinkJepaError, match="is no frame"):
        write_videos(tmp_path, num_videos=1, seconds=0.0)
