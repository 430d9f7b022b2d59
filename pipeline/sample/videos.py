"""Sample videos of moving shapes, as H.264 in mp4: the same bytes every time for one version of the encoder.

Shapes move smoothly, and predictably from the last moments. A motion takes times (frame,) in seconds and
gives centers (frame, 2), x and y, both in [0, 1]. Its parameters are drawn once per shape, so that no two
shapes move alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from thinkjepa.cache import ThinkJepaError

Frames = npt.NDArray[np.uint8]

# One thread: their number changes what x264 writes. A constant quantizer: the rate control (macroblock tree)
# reads memory that it has not set in pictures below about 64 px, and one encoding in five came out different.
# No marks of time or version in the container.
ENCODER_OPTIONS = {"threads": "1", "flags": "+bitexact"}


def encode_video(
    path: Path, frames: Frames, *, fps: int, qp: int, preset: str = "veryfast", key_interval_s: float = 1.0
) -> None:
    """Write frames `(frame, height, width, 3)`, making the folder; `qp` 0 (lossless) to 51 (worst)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**ENCODER_OPTIONS, "qp": str(qp), "preset": preset}
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = round(key_interval_s * fps)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


Floats = npt.NDArray[np.float64]

Motion = Callable[[Floats, np.random.Generator], Floats]


def slide(times_s: Floats, rng: np.random.Generator) -> Floats:
    """A straight line at constant speed, reflected at the borders."""
    start, velocity = rng.uniform(0, 2, size=2), _signed(rng, 0.15, 0.5, size=2)
    return _reflect(start + velocity * times_s[:, None])


def orbit(times_s: Floats, rng: np.random.Generator) -> Floats:
    """A circle at constant angular speed."""
    radius = rng.uniform(0.15, 0.4)
    center = rng.uniform(radius, 1 - radius, size=2)
    angle = rng.uniform(0, 2 * np.pi) + _signed(rng, 0.8, 2.5) * times_s
    return np.asarray(center + radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1))


def swing(times_s: Floats, rng: np.random.Generator) -> Floats:
    """A harmonic oscillation between two points."""
    ends = rng.uniform(0, 1, size=(2, 2))
    phase = rng.uniform(0, 2 * np.pi) + rng.uniform(1.0, 3.0) * times_s
    share = (1 + np.sin(phase))[:, None] / 2
    return np.asarray(ends[0] * share + ends[1] * (1 - share))


def bounce(times_s: Floats, rng: np.random.Generator) -> Floats:
    """A ball that bounces off the floor without loss and drifts sideways."""
    x = _reflect(rng.uniform(0, 2) + _signed(rng, 0.1, 0.35) * times_s)
    height, period_s = rng.uniform(0.4, 1.0), rng.uniform(0.8, 1.6)
    share = np.mod(rng.uniform() + times_s / period_s, 1)
    return np.stack([x, 1 - height * 4 * share * (1 - share)], axis=-1)


MOTIONS: dict[str, Motion] = {"bounce": bounce, "orbit": orbit, "slide": slide, "swing": swing}


def _signed(rng: np.random.Generator, low: float, high: float, size: int | None = None) -> Floats:
    """Magnitudes in [low, high) of either sign."""
    return np.asarray(rng.uniform(low, high, size) * rng.choice([-1, 1], size))


def _reflect(position: Floats) -> Floats:
    """Fold the real line into [0, 1], as a mirror at either end does."""
    return np.asarray(1 - np.abs(np.mod(position, 2) - 1))


NUM_SHAPES = 2

MIN_SIDE_PX = 32

TEXTURE_RANGE = (70, 150)

QP = 20

Pixels = npt.NDArray[np.float32]


def write_videos(
    out: Path,
    *,
    num_videos: int = 12,
    seconds: float = 6.0,
    fps: int = 30,
    size: tuple[int, int] = (160, 120),
    seed: int = 0,
) -> list[Path]:
    """Write `out/<motion>/<i>.mp4` (H.264), motions in turn, and give the paths in order.

    `size` is (width, height) in px. Video i depends on the seed and on i alone, so that asking for more
    videos adds to those already there. The same seed gives the same frames, and the same bytes for one
    version of the encoder.

    Raises ThinkJepaError where a video of this size or length cannot be encoded.
    """
    check_encodable(seconds=seconds, fps=fps, size=size)
    times_s = np.arange(round(seconds * fps)) / fps
    names = sorted(MOTIONS)
    paths = []
    for index in range(num_videos):
        name = names[index % len(names)]
        path = out / name / f"{index // len(names)}.mp4"
        rng = np.random.default_rng([seed, index])
        frames = draw_frames(times_s, MOTIONS[name], size=size, rng=rng)
        encode_video(path, frames, fps=fps, qp=QP)
        paths.append(path)
    return paths


def check_encodable(*, seconds: float, fps: int, size: tuple[int, int]) -> None:
    """Raise ThinkJepaError where `write_videos` would."""
    if round(seconds * fps) < 1:
        raise ThinkJepaError(f"{seconds:g} s at {fps} frames/s is no frame: ask for more seconds or frames/s")
    if min(size) < MIN_SIDE_PX or any(side % 2 for side in size):
        raise ThinkJepaError(
            f"a video of {size[0]}x{size[1]} px cannot be drawn: "
            f"sides must be even and at least {MIN_SIDE_PX} px"
        )


def draw_frames(
    times_s: Floats, motion: Motion, *, size: tuple[int, int], rng: np.random.Generator
) -> Frames:
    """Frames (frame, height, width, 3) of one texture and shapes that all follow this kind of motion."""
    width, height = size
    texture = _draw_texture(width, height, rng)
    shapes = [_draw_lot(times_s, motion, size=size, rng=rng) for _ in range(NUM_SHAPES)]
    frames = np.empty((len(times_s), height, width, 3), dtype=np.uint8)
    for index in range(len(times_s)):
        picture = texture
        for shape in shapes:
            picture = shape.paint(picture, index)
        frames[index] = np.rint(picture)
    return frames


@dataclass(frozen=True, slots=True)
class Shape:
    """A colored disc (order 2), square (infinite) or diamond (1): the unit ball of that norm."""

    order: float
    radius_px: float
    color: Pixels  # (3,) in 0-255
    centers_px: Floats  # (frame, 2), x and y

    def paint(self, picture: Pixels, index: int) -> Pixels:
        """The picture (height, width, 3) with this shape on top, where it is at frame `index`."""
        height, width = picture.shape[:2]
        x, y = self.centers_px[index]
        offsets = np.stack(
            np.meshgrid(np.arange(width, dtype=np.float32) - x, np.arange(height, dtype=np.float32) - y)
        )
        distance = np.linalg.norm(offsets, ord=self.order, axis=0)
        # One pixel of soft border: sub-pixel motion shows, as with a real lens.
        cover = np.clip(self.radius_px - distance + 0.5, 0, 1).astype(np.float32)[..., None]
        return np.asarray(picture + cover * (self.color - picture))


def _draw_lot(times_s: Floats, motion: Motion, *, size: tuple[int, int], rng: np.random.Generator) -> Shape:
    """A random shape that stays inside the picture."""
    radius_px = float(rng.uniform(0.1, 0.18) * min(size))
    room_px = np.array(size) - 1 - 2 * radius_px
    return Shape(
        order=float(rng.choice([1.0, 2.0, np.inf])),
        radius_px=radius_px,
        color=_draw_color(rng),
        centers_px=radius_px + room_px * motion(times_s, rng),
    )


def _draw_color(rng: np.random.Generator) -> Pixels:
    """A saturated color: one channel bright, one dark, one anything."""
    channels = [rng.uniform(220, 255), rng.uniform(0, 40), rng.uniform(0, 255)]
    return rng.permutation(np.array(channels, dtype=np.float32))


def _draw_texture(width: int, height: int, rng: np.random.Generator) -> Pixels:
    """A muted background (height, width, 3) with coarse and fine structure."""
    low, high = TEXTURE_RANGE
    coarse, fine = (
        np.stack([smooth_noise(width, height, cell_px, rng) for _ in range(3)], axis=-1)
        for cell_px in (24, 6)
    )
    return np.asarray(low + (high - low) * (0.7 * coarse + 0.3 * fine), dtype=np.float32)


def smooth_noise(width: int, height: int, cell_px: int, rng: np.random.Generator) -> Pixels:
    """Noise (height, width) in [0, 1] whose blobs are about `cell_px` wide."""
    cells = rng.random((height // cell_px + 2, width // cell_px + 2), dtype=np.float32)
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR))
