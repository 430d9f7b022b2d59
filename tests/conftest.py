"""Shared fixtures: tiny models on disk, and videos whose frames carry their own number."""

import os

# Before anything imports torch, matplotlib or a model library; commands that tests start inherit them. One
# thread, because results are promised to be the same bits for the same thread count only.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["DVC_NO_ANALYTICS"] = "1"

from collections.abc import Callable, Sequence
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import av
import h5py
import numpy as np
import numpy.typing as npt
import pytest

# A frame's number as 16 bits in 4 x 4 blocks, most significant first: blocks this big survive any codec.
BITS_PER_SIDE = 4
NUM_BITS = BITS_PER_SIDE**2
BLACK, WHITE = 16, 235

# What `timestamps` are rounded to (s): the usual clock of video containers.
CLOCK = Fraction(1, 90_000)

# x264's rate control does not always write the same bytes for small pictures; a constant quantiser does.
CODEC_OPTIONS = {"libx264": {"qp": "20", "threads": "1"}}

Frame = npt.NDArray[np.uint8]


class MakeVideo(Protocol):
    """See `make_video`."""

    def __call__(
        self,
        path: Path,
        num_frames: int = 60,
        fps: Fraction | int = 30,
        size: tuple[int, int] = (160, 128),
        timestamps: Sequence[float] | None = None,
        codec: str = "libx264",
    ) -> Path: ...


class ReadFrameNumber(Protocol):
    """See `read_frame_number`."""

    def __call__(self, frame: Frame) -> int: ...


class WriteEgodex(Protocol):
    """See `write_egodex`."""

    def __call__(
        self,
        path: Path,
        num_frames: int = 60,
        size: tuple[int, int] = (160, 128),
        seed: int = 0,
        change: Callable[[Any], None] | None = None,
    ) -> Path: ...


def pytest_configure(config: pytest.Config) -> None:
    """Tests that are long, or need an environment of their own, run when asked for with `-m` only."""
    config.addinivalue_line("markers", "soak: takes many minutes; run with `make soak`")
    config.addinivalue_line("markers", "vllm: needs an environment with vLLM; run with `make test-vllm`")
    if not config.option.markexpr:
        config.option.markexpr = "not soak and not vllm"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the untrained models `thinker/` and `encoder/`; tests must not write to it."""
    from thinkjepa.pipeline.sample.models import write_tiny_models

    folder = tmp_path_factory.mktemp("models")
    write_tiny_models(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def make_video() -> MakeVideo:
    """A function that writes a video of numbered frames and returns its path.

    `size` is (width, height) in px, `timestamps` the frames' presentation times (s) where the rate is not
    constant; the path's suffix chooses the container. The same arguments give the same bytes
    where the codec is libx264.
    """
    return _write_numbered_video


@pytest.fixture(scope="session")
def read_frame_number() -> ReadFrameNumber:
    """A function from a decoded frame, (height, width, 3), to the number that `make_video` wrote in it."""
    return _read_number


@pytest.fixture(scope="session")
def write_egodex() -> WriteEgodex:
    """A function that writes an EgoDex label file with all 69 transforms and returns its path.

    A camera that moves, in a world whose origin and axes depend on `seed`, and two open hands in front of it
    that wave, inside frames of `size` (width, height) px. `change` gets the open HDF5 file at the end.
    """
    return _write_egodex


def _write_egodex(
    path: Path,
    num_frames: int = 60,
    size: tuple[int, int] = (160, 128),
    seed: int = 0,
    change: Callable[[Any], None] | None = None,
) -> Path:
    from thinkjepa.stages.data.joints import EGODEX_JOINTS

    path.parent.mkdir(parents=True, exist_ok=True)
    focal_px = 0.8 * size[0]
    cameras = _moving_camera(num_frames, seed)
    with h5py.File(path, "w") as file:
        intrinsic = [[focal_px, 0, size[0] / 2], [0, focal_px, size[1] / 2], [0, 0, 1]]
        file["camera/intrinsic"] = np.array(intrinsic, dtype=np.float32)
        file["transforms/camera"] = cameras.astype(np.float32)
        for joint in EGODEX_JOINTS:
            seen = np.tile(np.eye(4), (num_frames, 1, 1))
            seen[:, :3, 3] = _seen_joint(joint, num_frames)
            file[f"transforms/{joint}"] = (cameras @ seen).astype(np.float32)
            file[f"confidences/{joint}"] = np.full(num_frames, 0.55 + 0.4 * ("Hand" in joint), np.float32)
        texts = ("Pour water from the jug.", "Pour water back into the jug.")
        file.attrs.update({"llm_description": texts[0], "llm_description2": texts[1]})
        file.attrs.update({"which_llm_description": "1", "llm_type": "reversible"})
        if change:
            change(file)
    return path


def _moving_camera(num_frames: int, seed: int) -> npt.NDArray[np.float64]:
    """Poses (frame, 4, 4), camera to world: a slow turn and drift in a world of its own."""
    random = np.random.default_rng(seed)
    start, _ = np.linalg.qr(random.normal(size=(3, 3)))
    angles = 0.004 * np.arange(num_frames)
    poses = np.tile(np.eye(4), (num_frames, 1, 1))
    poses[:, 0, 0] = poses[:, 2, 2] = np.cos(angles)
    poses[:, 0, 2], poses[:, 2, 0] = np.sin(angles), -np.sin(angles)
    poses[:, :3, :3] = start * np.linalg.det(start) @ poses[:, :3, :3]
    poses[:, :3, 3] = random.normal(size=3) * 5 + np.arange(num_frames)[:, None] * 0.001
    return poses


def _seen_joint(joint: str, num_frames: int) -> npt.NDArray[np.float64]:
    """Positions (frame, 3) as the camera sees them, metres: x right, y down, z forward."""
    fingers, parts = (
        ("Thumb", "Index", "Middle", "Ring", "Little"),
        ("Meta", "Knuckle", "Base", "IntermediateTip"),
    )
    side = 1 if joint.startswith("right") else -1
    wave = np.arange(num_frames) / 12 + side
    wrist = np.stack([side * 0.14 + 0.03 * np.sin(wave), 0.1 + 0.02 * np.cos(wave), 0.5 + 0 * wave], axis=1)
    number = next((place for place, name in enumerate(fingers) if name in joint), None)
    if number is None:
        return wrist + {"Hand": [0, 0, 0], "Forearm": [side * 0.05, 0.12, 0]}.get(
            joint[5 - (side < 0) :], [0, 0.3, 0]
        )
    along = next((place for place, name in enumerate(parts) if name in joint), 4)
    angle = -side * (0.75 - 0.32 * number)
    length = 0.03 + 0.022 * along
    return wrist + np.array([np.sin(angle) * length, -np.cos(angle) * length, -0.004 * along])


def _write_numbered_video(
    path: Path,
    num_frames: int = 60,
    fps: Fraction | int = 30,
    size: tuple[int, int] = (160, 128),
    timestamps: Sequence[float] | None = None,
    codec: str = "libx264",
) -> Path:
    clock = 1 / Fraction(fps) if timestamps is None else CLOCK
    ticks = range(num_frames) if timestamps is None else [round(time / CLOCK) for time in timestamps]
    if len(ticks) != num_frames:
        raise ValueError(f"{len(ticks)} timestamps for {num_frames} frames")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=fps, options=CODEC_OPTIONS.get(codec, {}))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = clock
        for number, tick in enumerate(ticks):
            frame = av.VideoFrame.from_ndarray(_numbered_frame(number, *size), format="rgb24")
            frame.pts, frame.time_base = tick, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _numbered_frame(number: int, width: int, height: int) -> Frame:
    """An (height, width, 3) frame of black and white blocks that spell `number`."""
    if not 0 <= number < 2**NUM_BITS:
        raise ValueError(f"frame number {number} needs more than {NUM_BITS} bits")
    bits = (number >> np.arange(NUM_BITS)[::-1]) & 1
    rows = np.arange(height) * BITS_PER_SIDE // height
    columns = np.arange(width) * BITS_PER_SIDE // width
    blocks = np.where(bits.reshape(BITS_PER_SIDE, BITS_PER_SIDE), WHITE, BLACK).astype(np.uint8)
    return np.repeat(blocks[np.ix_(rows, columns)][..., None], 3, axis=2)


def _read_number(frame: Frame) -> int:
    """Compare the middle of every block with grey."""
    centres = (2 * np.arange(BITS_PER_SIDE) + 1) / (2 * BITS_PER_SIDE)
    rows, columns = (np.rint(centres * length).astype(int) for length in frame.shape[:2])
    bits = np.asarray(frame)[np.ix_(rows, columns)].mean(axis=2).ravel() > (BLACK + WHITE) / 2
    return int(sum(1 << place for place, bit in enumerate(bits[::-1]) if bit))


@pytest.fixture
def tree_digest() -> Callable[[Path], dict[str, str]]:
    """The digest of every file beneath a folder, by its path there; lock files apart."""

    def digest(root: Path) -> dict[str, str]:
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in files}

    return digest
