"""Errors of joints inside and outside the part of a frame that the encoder sees.

A joint is looked for where it truly is, in the frame and by the camera of its own moment. That is the truth,
which is known when errors are measured; no prediction reads it.

Shape letters: B batch, T latent steps, K frames of a step, J joints, R draws of a method.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from thinkjepa.cache import ClipRow, VideoLabels
from thinkjepa.stages.data.framing import Framing, inside_view, set_framing
from thinkjepa.stages.data.trajectories import project, reference_frame, to_camera
from thinkjepa.stages.evaluate.baselines import Predicted
from thinkjepa.stages.evaluate.metrics import counted_joint_frames, mean_counted
from thinkjepa.stages.train.data.features import Batch, Features

Frames = npt.NDArray[np.int64]


def view_columns(
    predicted: Mapping[str, Predicted],
    batch: Batch,
    clips: Sequence[ClipRow],
    features: Features,
    *,
    horizons: Sequence[int] = (),
) -> list[dict[str, Tensor]]:
    """Mean distances `(clip,)` of each method's joints inside and outside the view, by their table names.

    One record per horizon, a number of first latent steps; one of all steps where none is given. NaN where a
    clip has no such joint-frame that counts, or nothing tells where its joints are in the picture. Empty
    records without labels, and for an encoder that did not record its framing.
    """
    framing = set_framing(features.encoder.source)
    columns: list[dict[str, Tensor]] = [{} for _ in horizons or (0,)]
    if (truth := batch.trajectory) is None or framing is None:
        return columns
    seen = torch.from_numpy(np.stack([seen_joints(features, clip, framing) for clip in clips]))
    seen_BTKJ = seen.view(truth.future_confidence.shape).to(truth.future_m.device)
    counted_BTKJ = counted_joint_frames(truth.future_confidence, truth.last_known)
    for method, found in predicted.items():
        joints_m = [draw.joints_m for draw in found.draws if draw.joints_m is not None]
        if not joints_m:
            continue
        error_RBTKJ3 = torch.stack(joints_m).double() - truth.future_m.double()
        distance_BTKJ = torch.linalg.vector_norm(error_RBTKJ3, dim=-1).mean(dim=0)
        for name, view in (("inside_view_m", 1), ("outside_view_m", 0)):
            chosen = counted_BTKJ & (seen_BTKJ == view)
            for steps, record in zip(horizons or (None,), columns, strict=True):
                record[f"{method}_{name}"] = mean_counted(distance_BTKJ[:, :steps], chosen[:, :steps])
    return columns


def seen_joints(features: Features, clip: ClipRow, framing: Framing) -> npt.NDArray[np.int8]:
    """1 for joints of the future frames that the encoder sees, 0 for others, -1 where that is not known.

    `(frame, joint)`, all windows one after the other.
    """
    supervision = features.supervision
    assert supervision is not None, "asked for joints in a run without labels"
    labels = supervision.labels_of(clip.clip_id)
    frames = np.concatenate(clip.future_frames[: features.windows]).astype(np.int64)
    seen = np.full((len(frames), len(supervision.joints)), -1, dtype=np.int8)
    if (size_px := frame_size_px(labels)) is None or labels.intrinsics is None:
        return seen
    held = [index for index, name in enumerate(supervision.joints) if name in labels.joint_names]
    columns = [labels.joint_names.index(supervision.joints[index]) for index in held]
    pixels = project(_by_own_camera(labels, frames)[:, columns], labels.intrinsics)
    seen[:, held] = inside_view(pixels, framing, width_px=size_px[0], height_px=size_px[1])
    return seen


def frame_size_px(labels: VideoLabels) -> tuple[int, int] | None:
    """Width and height of a video's frames. None where labels do not tell where the camera was.

    Labels hold no size: the principal point is taken for the frame's middle.
    """
    if labels.intrinsics is None or reference_frame(labels) != "camera":
        return None
    width_px, height_px = (round(2 * float(labels.intrinsics[axis, 2])) for axis in (0, 1))
    return (width_px, height_px) if min(width_px, height_px) > 0 else None


def _by_own_camera(labels: VideoLabels, frames: Frames) -> npt.NDArray[np.float32]:
    """Joints at some frames `(frame, joint, 3)`, each in the camera's frame of its own moment."""
    positions_m = labels.positions_m[frames]
    if labels.camera_poses is None:
        return positions_m
    pairs = zip(positions_m, labels.camera_poses[frames], strict=True)
    return np.stack([to_camera(joints_m, pose) for joints_m, pose in pairs])
