"""Suspicious properties of hand labels: pure functions from joints and frame times to findings.

Shape letters: F frames, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from thinkjepa.cache import VideoLabels
from thinkjepa.stages.data.joints import HAND_SIDES, KEYPOINTS, PAPER_JOINTS, describe_joints
from thinkjepa.stages.data.trajectories import Positions, Supervision, project, to_camera

Severity = Literal["error", "warning"]

WRISTS = tuple(f"{side}Hand" for side in HAND_SIDES)

MAX_SPEED_M_S = 5.0
"""Fastest credible wrist: manipulating hands stay below 2 m/s, lost and found tracks jump at 10 and more."""

HELD_SHARE = 0.05
HELD_RUN = 5
"""Limits of equal steps (as a share) and of equal frames in a row: beyond them a tracker repeats itself.

A hand at rest, stored in steps of 0.1 mm, holds four frames.
"""

MAX_EXTENT_M = 3.0
"""Largest credible distance of a frame's joints: a person's reach. Millimetres taken for metres exceed it."""

UNLIKELY_SHARE = 0.5
BINS = 10
"""Bins of the histogram of confidences, equally wide over 0 to 1."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about one video. `error`: its labels cannot be used; `warning`: look before you train."""

    severity: Severity
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts of one label file. A step goes from one frame to the next."""

    frames: int
    known_joints: tuple[str, ...]
    """Joints of any confidence above 0, in the file's order."""
    unknown_joints: tuple[str, ...]
    """Joints whose confidence is 0 at every frame."""
    held_share: float
    held_run_frames: int
    """The longest row of frames that are all the same."""
    jumps: int
    fastest_m_s: float
    fastest_frame: int
    """The step with the largest speed ends here; -1 where none is known."""
    confidence_histogram: tuple[int, ...]
    """Samples (frame, joint) in `BINS` bins over 0 to 1."""


def measure(labels: VideoLabels, times_s: npt.NDArray[np.float64]) -> Figures:
    """Count frames, joints, held samples and jumps.

    `times_s` are the video's frame times `(frame,)`. Frames beyond them are left out of speeds.
    """
    held = held_steps(labels)
    speeds_m_s = wrist_speeds(labels, times_s)
    fastest = int(speeds_m_s.argmax()) if speeds_m_s.any() else -1
    known = np.any(labels.confidences > 0, axis=0)
    named = list(zip(labels.joint_names, np.atleast_1d(known), strict=True))
    histogram, _ = np.histogram(labels.confidences, bins=BINS, range=(0, 1))
    return Figures(
        frames=labels.num_frames,
        known_joints=tuple(name for name, sure in named if sure),
        unknown_joints=tuple(name for name, sure in named if not sure),
        held_share=float(held.mean()) if len(held) else 0.0,
        held_run_frames=_longest_run(held) + 1 if held.any() else 0,
        jumps=int((speeds_m_s > MAX_SPEED_M_S).sum()),
        fastest_m_s=float(speeds_m_s.max(initial=0.0)),
        fastest_frame=fastest + 1 if fastest >= 0 else -1,
        confidence_histogram=tuple(histogram.tolist()),
    )


def held_steps(labels: VideoLabels) -> npt.NDArray[np.bool_]:
    """Steps `(F - 1,)` in which no joint changes at all, of frames where something is known."""
    same = np.all(np.diff(labels.positions_m, axis=0) == 0, axis=(1, 2))
    known = np.any(labels.confidences > 0, axis=1)
    return np.asarray(same & known[1:] & known[:-1], dtype=np.bool_)


def wrist_speeds(labels: VideoLabels, times_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The faster wrist's speed `(steps,)`, m/s; of all joints where no wrist is named; 0 where not known.

    In the labels' own frame: where that is a moving camera's, its movement is in it.
    """
    named = [index for index, name in enumerate(labels.joint_names) if name in WRISTS]
    joints = named or list(range(len(labels.joint_names)))
    frames = min(labels.num_frames, len(times_s))
    if frames < 2 or not joints:
        return np.zeros(0)
    positions_m = labels.positions_m[:frames, joints].astype(np.float64)
    known = labels.confidences[:frames, joints] > 0
    lengths_m = np.linalg.norm(np.diff(positions_m, axis=0), axis=-1) * (known[1:] & known[:-1])
    speeds: npt.NDArray[np.float64] = lengths_m.max(axis=1) / np.diff(times_s[:frames])
    return speeds


def find(
    labels: VideoLabels, figures: Figures, *, video_frames: int, size_px: tuple[int, int]
) -> Iterator[Finding]:
    """Findings about one video, most important first. `size_px` is the video's (width, height)."""
    yield from _lengths(labels.num_frames, video_frames)
    yield from _places(labels, size_px)
    yield from _movement(figures)
    if not (labels.confidences > 0).any():
        yield _warning("no_confidence", "every confidence is 0: nothing is learned from this video")


def _lengths(labelled: int, in_video: int) -> Iterator[Finding]:
    if labelled < in_video:
        rest = in_video - labelled
        message = (
            f"labels for {labelled} of {in_video} frames: clips that need one of the last {rest} have none"
        )
        yield _warning("num_frames", message)
    elif labelled > in_video:
        yield _warning(
            "num_frames", f"labels for {labelled} frames, the video has {in_video}: last rows unused"
        )


def _places(labels: VideoLabels, size_px: tuple[int, int]) -> Iterator[Finding]:
    """Findings about positions: units, frames of reference, and the camera."""
    extent_m = extent(labels.positions_m, labels.confidences)
    if extent_m > MAX_EXTENT_M:
        message = f"joints of a frame lie {extent_m:.3g} m apart: are positions in metres?"
        yield _warning("extent", message)
    if labels.intrinsics is None:
        yield _warning("intrinsics", "no intrinsics: trained as it is, joints cannot be drawn on frames")
    if labels.reference_frame == "world" and labels.camera_poses is None:
        message = (
            "positions in a world without camera poses: predicted in that world, whose origin is arbitrary"
        )
        yield _warning("reference_frame", message)
        return
    seen = camera_positions(labels)
    known = labels.confidences > 0
    behind = float((seen[..., 2][known] <= 0).mean()) if known.any() else 0.0
    if behind > UNLIKELY_SHARE:
        message = f"{behind:.0%} of the joints lie behind the camera: its axes are x right, y down, z forward"
        yield _warning("behind_camera", message)
    elif (
        labels.intrinsics is not None and (outside := _outside(seen, known, labels, size_px)) > UNLIKELY_SHARE
    ):
        message = f"{outside:.0%} of the hands' joints fall outside the frame: intrinsics of another size?"
        yield _warning("outside_frame", message)


def _outside(
    seen: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], labels: VideoLabels, size_px: tuple[int, int]
) -> float:
    """Share of known samples that fall outside the frame; of the hands' joints where there are any."""
    hands = [name in PAPER_JOINTS for name in labels.joint_names]
    chosen = known & np.array(hands if any(hands) else [True] * len(hands))
    if not chosen.any() or labels.intrinsics is None:
        return 0.0
    pixels = project(seen[chosen], labels.intrinsics)
    inside = ((pixels >= 0) & (pixels < size_px)).all(axis=-1)
    return float(1 - inside.mean())


def _movement(figures: Figures) -> Iterator[Finding]:
    if figures.held_share > HELD_SHARE or figures.held_run_frames > HELD_RUN:
        message = (
            f"{figures.held_share:.1%} of the samples repeat the one before, up to {figures.held_run_frames} "
            "frames alike: the tracker is slower than the video, or stood still"
        )
        yield _warning("held", message)
    if figures.jumps:
        message = (
            f"{figures.jumps} jumps faster than {MAX_SPEED_M_S:g} m/s, the worst {figures.fastest_m_s:.1f} "
            f"m/s to frame {figures.fastest_frame}"
        )
        yield _warning("jumps", message)


def find_in_folder(figures: Sequence[Figures]) -> Iterator[Finding]:
    """Findings about the joints of all videos together."""
    known = known_joints(figures)
    if not known:
        return
    never = never_known(figures)
    unknown = f"never known: {describe_joints(never)}" if never else ""
    paper = [name for name in PAPER_JOINTS if name in known]
    if not paper:
        rest = f"; {unknown}" if unknown else ""
        names = f"{known[0]!r}, ..." if len(known) > 1 else repr(known[0])
        yield _warning("joints", f"no joint has a name that the project knows ({names}): all are used{rest}")
    elif len(paper) < len(PAPER_JOINTS):
        unlabelled = [name for name in PAPER_JOINTS if name not in known and name not in never]
        missing = f"not labelled: {describe_joints(unlabelled)}" if unlabelled else ""
        keypoints = len(set(KEYPOINTS) & set(known))
        counts = (
            f"{len(paper)} of the paper's {len(PAPER_JOINTS)} joints and {keypoints} of {len(KEYPOINTS)} "
            "keypoints are known, and used"
        )
        yield _warning("joints", "; ".join(part for part in (counts, unknown, missing) if part))
    elif unknown:
        yield _warning("joints", unknown)


def known_joints(figures: Sequence[Figures]) -> tuple[str, ...]:
    """Joints that are known somewhere, in the order of the files."""
    return tuple(dict.fromkeys(name for item in figures for name in item.known_joints))


def never_known(figures: Sequence[Figures]) -> tuple[str, ...]:
    """Joints that are labelled and known nowhere: no joints for training, counts and pictures."""
    known = set(known_joints(figures))
    named = dict.fromkeys(name for item in figures for name in item.unknown_joints)
    return tuple(name for name in named if name not in known)


def far_apart(supervision: Supervision) -> list[str]:
    """Videos whose joints lie farther apart than a person reaches, by a clip of each, sorted by name."""
    clip_of_video = {clip_id.partition("@")[0]: clip_id for clip_id in sorted(supervision.clip_ids)}
    found = []
    for clip_id in clip_of_video.values():
        clip = supervision.trajectory(clip_id)
        joints = clip.future_m.shape[-2]
        positions_m, confidences = clip.future_m.reshape(-1, joints, 3), clip.future_confidence
        if extent(positions_m, confidences.reshape(-1, joints)) > MAX_EXTENT_M:
            found.append(supervision.labels_of(clip_id).video)
    return sorted(found)


def describe_far(videos: Sequence[str]) -> str:
    """The warning of joints that are metres apart. Empty without videos."""
    if not videos:
        return ""
    others = f" and of {len(videos) - 1} more" if len(videos) > 1 else ""
    return (
        f"warning: joints of {videos[0]!r}{others} are more than {MAX_EXTENT_M:g} m apart: are positions in "
        "metres? `thinkjepa-data check` tells more"
    )


def extent(positions_m: Positions, confidences: Positions) -> float:
    """The median over frames of the distance between joints (diagonal of their box), metres.

    Positions are `(F, J, 3)`, confidences `(F, J)`. 0 where no frame has two known joints.
    """
    known = confidences > 0
    frames = np.flatnonzero(known.sum(axis=1) > 1)
    if not len(frames):
        return 0.0
    masked = np.where(known[frames][..., None], positions_m[frames].astype(np.float64), np.nan)
    diagonals = np.linalg.norm(np.nanmax(masked, axis=1) - np.nanmin(masked, axis=1), axis=-1)
    return float(np.median(diagonals))


def camera_positions(labels: VideoLabels) -> npt.NDArray[np.float32]:
    """Joints `(F, J, 3)` as the camera of their own frame sees them; as they are without camera poses."""
    if labels.camera_poses is None:
        return labels.positions_m
    pairs: Sequence[npt.NDArray[np.float32]] = [
        to_camera(positions, pose)
        for positions, pose in zip(labels.positions_m, labels.camera_poses, strict=True)
    ]
    return np.stack(pairs) if pairs else labels.positions_m


def _longest_run(flags: npt.NDArray[np.bool_]) -> int:
    ends = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return int((ends[1::2] - ends[::2]).max(initial=0))


def _warning(kind: str, message: str) -> Finding:
    return Finding("warning", kind, message)
