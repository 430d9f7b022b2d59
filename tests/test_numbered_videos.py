"""The numbered videos that other tests rely on do carry their numbers and times."""

from fractions import Fraction

import av
import pytest


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")]
)
def test_frames_carry_their_number_through_every_codec(
    tmp_path, make_video, read_frame_number, suffix, codec
):
    path = make_video(tmp_path / f"v.{suffix}", num_frames=40, fps=27, size=(96, 64), codec=codec)
    with av.open(path) as container:
        numbers = [read_frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert numbers == list(range(40))


def test_constant_rate_times_are_exact(tmp_path, make_video):
    path = make_video(tmp_path / "v.mp4", num_frames=10, fps=Fraction(30_000, 1001))
    with av.open(path) as container:
        times = [Fraction(frame.pts) * frame.time_base for frame in container.decode(video=0)]
    assert times == [Fraction(1001 * index, 30_000) for index in range(10)]


def test_given_timestamps_are_kept(tmp_path, make_video, read_frame_number):
    times_s = [0.0, 0.1, 0.15, 0.6, 0.61, 1.2]
    path = make_video(tmp_path / "v.mp4", num_frames=6, timestamps=times_s)
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    assert [read_frame_number(frame.to_ndarray(format="rgb24")) for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx(times_s, abs=1e-4)


def test_large_numbers_survive(tmp_path, make_video, read_frame_number):
    path = make_video(tmp_path / "v.mp4", num_frames=600, size=(64, 64))
    with av.open(path) as container:
        numbers = [read_frame_number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert numbers == list(range(600))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_the_same_arguments_give_the_same_bytes(tmp_path, make_video, suffix):
    paths = [make_video(tmp_path / f"{name}.{suffix}", num_frames=8, size=(64, 48)) for name in "abcdefgh"]
    assert len({path.read_bytes() for path in paths}) == 1
