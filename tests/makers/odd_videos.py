"""A folder of good and bad videos, of every kind that people's folders hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, cycle, islice
from pathlib import Path

import av
import numpy as np

MakeVideo = Callable[..., Path]

NUM_FRAMES = 60
VARIABLE_TIMES_S = tuple(accumulate(islice(cycle((0.02, 0.05, 0.03, 0.04)), NUM_FRAMES - 1), initial=0.0))
STEADY_TIMES_S = tuple(number / 30 for number in range(NUM_FRAMES))


@dataclass(frozen=True, slots=True)
class GoodVideo:
    """Contents of a good video: frame times, frames' numbers, size in px as shown, clockwise quarter turns
    that were undone."""

    times_s: tuple[float, ...] = STEADY_TIMES_S
    first_number: int = 0
    size: tuple[int, int] = (160, 128)
    turns: int = 0


@dataclass(frozen=True, slots=True)
class OddVideos:
    """A folder, its good videos by name, and of each bad one where it fails and a part of the reason."""

    folder: Path
    good: dict[str, GoodVideo] = field(default_factory=dict)
    bad: dict[str, tuple[str, str]] = field(default_factory=dict)
    too_short: dict[str, float] = field(default_factory=dict)
    """Seconds of videos that are whole."""


CODECS: Mapping[str, tuple[str, str, dict[str, str]]] = {
    "av1.mp4": ("libsvtav1", "yuv420p", {"preset": "8", "crf": "10", "svtav1-params": "lp=1"}),
    "hevc.mp4": ("libx265", "yuv420p", {"x265-params": "log-level=none:pools=1"}),
    "ten-bit.mp4": ("libx265", "yuv420p10le", {"x265-params": "log-level=none:pools=1"}),
    "open-gop.mkv": ("libx264", "yuv420p", {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
    "hidden-frames.webm": ("libvpx", "yuv420p", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "1M"}),
}


def write_odd_videos(folder: Path, make_video: MakeVideo) -> OddVideos:
    """Write them all; every bad one has content of its own, so that none repeats another."""
    odd = OddVideos(folder)
    _write_good(odd, make_video)
    for name, (codec, pixels, options) in CODECS.items():
        plain = make_video(folder.parent / "plain.mkv", num_frames=NUM_FRAMES)
        _transcode(plain, folder / name, codec=codec, pixels=pixels, options=options)
        odd.good[name] = GoodVideo()
    _write_turned(odd, make_video)
    _write_bad_files(odd, make_video)
    _write_bad_streams(odd, make_video)
    return odd


def _write_good(odd: OddVideos, make_video: MakeVideo) -> None:
    plain = {"h264.mp4": "libx264", "vp9.webm": "libvpx-vp9", "mpeg4.avi": "mpeg4", "UPPER.MOV": "libx264"}
    for number, (name, codec) in enumerate(plain.items()):
        size = (160 + 16 * number, 128)
        odd.good[name] = GoodVideo(size=size)
        make_video(odd.folder / name, num_frames=NUM_FRAMES, codec=codec, size=size)
    for name, size in {"narrow.mp4": (48, 64), "odd-size.mp4": (98, 130), "4k.mp4": (3840, 2160)}.items():
        odd.good[name] = GoodVideo(size=size)
        make_video(odd.folder / name, num_frames=NUM_FRAMES, size=size)
    odd.good["variable-rate.mp4"] = GoodVideo(times_s=VARIABLE_TIMES_S)
    make_video(odd.folder / "variable-rate.mp4", num_frames=NUM_FRAMES, timestamps=VARIABLE_TIMES_S)
    odd.good["late-start.mp4"] = GoodVideo()
    make_video(
        odd.folder / "late-start.mp4", num_frames=NUM_FRAMES, timestamps=[1.5 + t for t in STEADY_TIMES_S]
    )


def _write_turned(odd: OddVideos, make_video: MakeVideo) -> None:
    """Turned by metadata; and cut between key frames without decoding, as cutting tools do."""
    plain = make_video(odd.folder.parent / "wide.mkv", num_frames=NUM_FRAMES, size=(176, 128))
    _transcode(plain, odd.folder / "turned.mp4", codec="libx264", rotation=90)
    odd.good["turned.mp4"] = GoodVideo(size=(128, 176), turns=1)
    long = make_video(odd.folder.parent / "long.avi", num_frames=72, codec="mpeg4")  # a key frame every 12
    _remux(long, odd.folder / "cut-between-keys.avi", lambda packets: packets[5:])
    odd.good["cut-between-keys.avi"] = GoodVideo(first_number=12)


def _write_bad_files(odd: OddVideos, make_video: MakeVideo) -> None:
    folder = odd.folder
    whole = make_video(folder.parent / "whole.mp4", num_frames=90, size=(192, 128))
    _remux(whole, folder.parent / "index-first.mp4", list, movflags="faststart")
    content = {
        "empty.mp4": (b"", "Invalid data"),
        "text.mp4": (b"this is not a video\n" * 50, "Invalid data"),
        "playlist.mp4": (f"#EXTM3U\n#EXTINF:3,\n{whole}\n#EXT-X-ENDLIST\n".encode(), "Invalid"),
        "zeros.mkv": (bytes(5000), "Invalid data"),
        "truncated.mp4": (whole.read_bytes()[: whole.stat().st_size // 2], "Invalid data"),
        "truncated-behind-index.mp4": ((folder.parent / "index-first.mp4").read_bytes()[:-400], "is cut: it"),
    }
    for name, (data, reason) in content.items():
        (folder / name).write_bytes(data)
        odd.bad[name] = ("open", reason)
    (folder / "broken-link.mp4").symlink_to(folder / "nowhere.mp4")
    odd.bad["broken-link.mp4"] = ("open", "cannot be read: No such file")
    os.mkfifo(folder / "pipe.mp4")
    odd.bad["pipe.mp4"] = ("open", "cannot be read: neither a file nor a link to one")


def _write_bad_streams(odd: OddVideos, make_video: MakeVideo) -> None:
    folder = odd.folder
    make_video(folder / "one-frame.mp4", num_frames=1)
    odd.too_short["one-frame.mp4"] = 0.0
    make_video(folder / "short.mp4", num_frames=10)
    odd.too_short["short.mp4"] = 0.3
    _write_sound(folder / "sound-only.mp4")
    odd.bad["sound-only.mp4"] = ("open", "no video stream")
    long = make_video(folder.parent / "promise.avi", num_frames=NUM_FRAMES, codec="mpeg4", size=(208, 128))
    _remux(long, folder / "promises-more.mkv", lambda packets: [*packets[:40], *[b"\0" * 8] * 20])
    odd.bad["promises-more.mkv"] = ("open", "cannot be decoded")
    _write_times_of_decoding(long, folder)
    odd.bad["times-of-decoding.mp4"] = odd.bad["times-of-decoding.mkv"] = (
        "open",
        "carry the times of decoding, not those of showing (B-frames whose pts are their dts): mend it by "
        "ffmpeg -i IN -vf setpts=N/30/TB -r 30",
    )
    _transcode(long, folder / "reordered.avi", codec="libx264")
    odd.bad["reordered.avi"] = ("open", "AVI gives no times for reordered frames")


def _transcode(
    source: Path,
    path: Path,
    *,
    codec: str,
    pixels: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    rotation: int = 0,
) -> None:
    with av.open(source) as read, av.open(path, "w") as write:
        stream = write.add_stream(codec, rate=30, options=dict(options or {}))
        picture = read.streams.video[0]
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, pixels
        if rotation:
            stream.set_display_rotation(rotation)
        for number, frame in enumerate(read.decode(video=0)):
            image = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
            image.pts = number
            write.mux(stream.encode(image))
        write.mux(stream.encode())


def _remux(
    source: Path, path: Path, change: Callable[[list[bytes]], Sequence[bytes]], **options: str
) -> None:
    """The same stream with other packets; the places of key frames and times are kept from the end."""
    with av.open(source) as read, av.open(path, "w", options=options) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        packets = [packet for packet in read.demux(video=0) if packet.size]
        payloads = change([bytes(packet) for packet in packets])
        for packet, payload in zip(packets[len(packets) - len(payloads) :], payloads, strict=True):
            copy = av.Packet(payload)
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            write.mux(copy)


def _write_times_of_decoding(source: Path, folder: Path) -> None:
    """H.264 with B-frames, each packet shown when it is decoded: what muxing a raw stream makes."""
    right = folder.parent / "b-frames.mp4"
    _transcode(source, right, codec="libx264", options={"bf": "3", "x264-params": "b-adapt=0:scenecut=0"})
    for suffix in (".mp4", ".mkv"):
        with av.open(right) as read, av.open(folder / f"times-of-decoding{suffix}", "w") as write:
            stream = write.add_stream_from_template(read.streams.video[0])
            packets = [packet for packet in read.demux(video=0) if packet.size]
            start = packets[0].dts
            for packet in packets:
                packet.pts = packet.dts = packet.dts - start
                packet.stream = stream
                write.mux(packet)


def _write_sound(path: Path) -> None:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
