"""A new video's future, from what is seen before the split and from nothing else: latents, and joints.

Frames from the split on never reach the prediction. Their *times* decide where the split can lie and which
moments the prediction is for. Once it is made, they are encoded, to compare it with what came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thinkjepa.cache import FeatureCache, VideoLabels
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.framing import Framing, set_framing
from thinkjepa.stages.data.joints import HANDS_NEED_LABELS
from thinkjepa.stages.data.labels.readers import find_labels
from thinkjepa.stages.data.partition import SplitName
from thinkjepa.stages.data.trajectories import (
    Poses,
    Positions,
    Trajectory,
    clip_trajectory,
    reference_frame,
)
from thinkjepa.stages.data.videos import SourceVideo, identify
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.runs import TrainedRun
from thinkjepa.stages.predict.frames import ChosenFrames, SplitChoice, Watched, repeat_warnings, watched
from thinkjepa.stages.predict.latents import PredictedLatents
from thinkjepa.stages.predict.models import load_encoder
from thinkjepa.stages.progress import Progress
from thinkjepa.stages.train.data.features import Features
from thinkjepa.stages.train.data.poses import ObservedPoses, observed_poses
from thinkjepa.stages.train.model.forecast import Forecast


@dataclass(frozen=True, slots=True)
class PredictedHands:
    """Joints predicted for a video, with the true ones where its labels have them."""

    joints: tuple[str, ...]
    positions_m: Positions
    """`(future frame, joint, 3)`, in the camera frame of the last observed frame or in `reference_frame`."""
    reference_frame: str
    labels: VideoLabels | None
    true_m: Positions | None
    """As `positions_m`, as far as the labels reach; None without labels."""
    true_confidence: Positions | None
    camera_pose: Poses | None
    """Of the last observed frame, camera to the labels' world; None where unknown."""
    last_pose_m: Positions | None
    """Last observed position of each joint `(joint, 3)`, NaN where there is none; None without labels."""

    @property
    def distance_m(self) -> float | None:
        """Mean distance of predicted and true joints, over what is labelled."""
        return self._distance_from(self.positions_m)

    @property
    def still_distance_m(self) -> float | None:
        """As `distance_m`, of joints that stay where they were last observed.

        None where a labelled joint was not observed: the two would be means over different joints.
        """
        if self.last_pose_m is None:
            return None
        distance_m = self._distance_from(np.repeat(self.last_pose_m[None], len(self.positions_m), axis=0))
        return None if distance_m is None or np.isnan(distance_m) else distance_m

    @property
    def num_labelled_frames(self) -> int:
        """Future frames in which the true position of a joint is known."""
        return 0 if self.true_confidence is None else int((self.true_confidence > 0).any(axis=1).sum())

    def _distance_from(self, positions_m: Positions) -> float | None:
        if self.true_m is None or self.true_confidence is None or not self.true_confidence.any():
            return None
        distances = np.linalg.norm(positions_m[: len(self.true_m)] - self.true_m, axis=-1)
        return float(distances[self.true_confidence > 0].mean())

    def to_json(self) -> dict[str, Any]:
        """All but the labels; positions in metres."""
        camera = None if self.camera_pose is None else self.camera_pose.tolist()
        return {
            "joints": list(self.joints),
            "reference_frame": self.reference_frame,
            "positions_m": _rounded(self.positions_m),
            "camera_pose": camera,
            "true_positions_m": None if self.true_m is None else _rounded(self.true_m),
            "true_confidence": None if self.true_confidence is None else self.true_confidence.tolist(),
            "mean_distance_m": self.distance_m,
            "still_distance_m": self.still_distance_m,
        }


WAYS_TO_HANDS = "put labels beside the video (docs/labels.md), or take a run trained with --anchor none"

WITHOUT_POSES = "put labels beside the video (docs/labels.md), or take a run of another variant"


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """The joints of a run with a head, in a video before a split."""

    run: TrainedRun
    joints: tuple[str, ...]
    labels: VideoLabels | None
    frames: ChosenFrames

    @classmethod
    def find(cls, run: TrainedRun, clip: Watched, cache: FeatureCache) -> LabelledClip | None:
        """None for a run without a head. Raises LabelError where the video's label file is broken."""
        if run.shape.head is None:
            return None
        labels = _labels(cache, clip.source, num_frames=len(clip.info.times_s))
        return cls(run, run.shape.head.joints, labels, clip.frames)

    def poses(self) -> ObservedPoses:
        """The joints at the observed frames, of a batch of one.

        Raises StageError where the run starts from them and the labels do not tell.
        """
        observed = self.frames.observed
        poses = ObservedPoses.unknown(1, num_frames=len(observed), num_joints=len(self.joints))
        labelled = self.labels is not None and self.labels.num_frames > observed[-1]
        if self.labels is not None and labelled:
            seen = self._trajectory(self.labels, future=[])
            poses = observed_poses([seen], [self.frames.observed_times_s])
        assert self.run.shape.head is not None
        of_poses = not self.run.shape.has_latents
        if poses.known.any() or (self.run.shape.head.anchor == "none" and not of_poses):
            return poses
        needed = "displacements from the last observed pose (anchor last_pose)"
        needed, ways = ("from observed poses alone", WITHOUT_POSES) if of_poses else (needed, WAYS_TO_HANDS)
        if not labelled:
            raise StageError(
                f"the run predicts {needed}, and the run's cache has no labels of this video up to the "
                f"split, nor is there a label file beside it: {ways}"
            )
        raise StageError(
            "none of the run's joints was seen before the split, which it starts from: choose another "
            f"split, or {ways}"
        )

    def predicted(self, joints_m: Tensor) -> PredictedHands:
        """The prediction of a batch of one, `(1, step, frame, joint, 3)`, next to what the labels tell."""
        labels = self.labels
        true_m, true_confidence = self._truth()
        stored = "/".join(self.run.record["reference_frames"])
        poses = self.poses()
        last_m = poses.last_pose_m.masked_fill(poses.last_known[..., None] == 0, torch.nan)
        return PredictedHands(
            joints=self.joints,
            positions_m=joints_m[0].flatten(0, 1).numpy(),
            reference_frame=reference_frame(labels) if labels else stored,
            labels=labels,
            true_m=true_m,
            true_confidence=true_confidence,
            camera_pose=self._camera_pose(),
            last_pose_m=last_m[0].numpy() if labels else None,
        )

    def _truth(self) -> tuple[Positions, Positions] | tuple[None, None]:
        """True positions `(frame, joint, 3)` and confidences of the future frames that the labels reach."""
        labels, observed = self.labels, self.frames.observed
        future = [] if labels is None else [item for item in self.frames.future if item < labels.num_frames]
        if labels is None or not future or observed[-1] >= labels.num_frames:
            return None, None
        found = self._trajectory(labels, future=future)
        return found.future_m[0], found.future_confidence[0]

    def _trajectory(self, labels: VideoLabels, *, future: Sequence[int]) -> Trajectory:
        """The joints as the run counts them, at the observed frames and at these of the future."""
        return clip_trajectory(
            labels,
            self.joints,
            observed_frames=self.frames.observed,
            future_frames=[future],
            min_confidence=self.run.min_confidence,
        )

    def _camera_pose(self) -> Poses | None:
        last = self.frames.observed[-1]
        if self.labels is None or self.labels.camera_poses is None or last >= self.labels.num_frames:
            return None
        pose: Poses = self.labels.camera_poses[last]
        return pose


def _labels(cache: FeatureCache, source: SourceVideo, *, num_frames: int) -> VideoLabels | None:
    """The cache's labels of the video, else those of the file beside it, None where there are none.

    Raises LabelError where the file is broken, or is not of a video with so many frames.
    """
    if cache.labels.label_digest(source.digest):  # none where a file was broken when it was last looked at
        return cache.labels.find(source.digest)
    found = find_labels(source.path, source.path.parent)
    return found.labels_of(source, num_frames) if found else None


def _rounded(positions_m: Positions) -> list[Any]:
    """To a hundredth of a millimetre."""
    values: list[Any] = np.round(positions_m.astype(np.float64), 5).tolist()
    return values


@dataclass(frozen=True, slots=True)
class Prediction:
    """A run's prediction of one video's future."""

    video: Path
    video_digest: str
    split_name: SplitName | None
    """The split name of this video's clips in the run's split, None where the run has none."""
    frames: ChosenFrames
    latents: PredictedLatents | None
    """None of a run without latents, for which no frozen model runs."""
    hands: PredictedHands | None
    no_hands: str
    """Why no hands were predicted, empty where they were."""
    warnings: tuple[str, ...]
    framing: Framing | None
    """The part of a frame that the encoder sees. None where that is not known."""

    def to_json(self) -> dict[str, Any]:
        """All of it but the latents themselves; times in seconds from the video's beginning."""
        return {
            "schema": "thinkjepa.prediction.v1",
            "video": str(self.video),
            "video_digest": self.video_digest,
            "side": self.split_name,
            **self.frames.to_json(),
            **({"latents": self.latents.to_json(self.frames)} if self.latents else {}),
            **(self.hands.to_json() if self.hands else {"no_hands": self.no_hands}),
            "warnings": list(self.warnings),
        }


def predict(
    run_dir: Path,
    video: Path,
    *,
    split: SplitChoice,
    places: Mapping[str, str | None],
    cache_dir: Path | None,
    device: str,
    decode_timeout_s: float,
    progress: Progress,
    need_hands: bool = True,
) -> Prediction:
    """Predict the future of one video with a trained run.

    Without `need_hands` latents alone are predicted where a run with a head lacks the pose it starts from.
    `places` says where the models "thinker" and "encoder" lie, None where the extraction found them;
    `cache_dir` where the run's cache does. The cache is read for what made the run's features and for labels.
    Raises StageError or CacheError for what its user can put right.
    """
    run = TrainedRun.open(run_dir)
    features = run.features(cache_dir)
    source = _identified(video)
    with VideoDecoder(timeout_s=decode_timeout_s) as decoder:
        clip = watched(source, split, run, features, decoder=decoder, device=device)
        hands, no_hands = LabelledClip.find(run, clip, features.cache), ""
        try:
            poses = hands.poses() if hands else None
        except StageError as error:
            if need_hands or not run.shape.has_latents:
                way = "; the latents alone (-o FILE.png) need none" if run.shape.has_latents else ""
                raise StageError(f"{error}{way}") from error
            hands, no_hands, poses = None, str(error), None
        if hands is None and not no_hands:
            no_hands = f"the run was trained without them; {HANDS_NEED_LABELS}"
        if run.shape.has_latents:
            forecast, latents, warnings = _forecast(
                run, clip, features, poses, places=places, device=device, progress=progress
            )
        else:
            with torch.no_grad():
                forecast, latents, warnings = run.model()(None, None, poses), None, []
    return Prediction(
        video=video,
        video_digest=source.digest,
        split_name=run.split_name_of(source.video_id),
        frames=clip.frames,
        latents=latents,
        hands=hands.predicted(forecast.joints_m) if hands and forecast.joints_m is not None else None,
        no_hands=no_hands,
        warnings=(*repeat_warnings(clip.info.times_s, clip.frames), *dict.fromkeys(warnings)),
        framing=latents.framing if latents else set_framing(features.encoder.source),
    )


def _forecast(
    run: TrainedRun,
    clip: Watched,
    features: Features,
    poses: ObservedPoses | None,
    *,
    places: Mapping[str, str | None],
    device: str,
    progress: Progress,
) -> tuple[Forecast, PredictedLatents, list[str]]:
    """The forecast by a run with latents, its latents next to the true ones, and warnings.

    Without poses there are no joints.
    """
    progress.note(f"loading {places.get('encoder') or features.encoder.source['model']} ...")
    encoder = load_encoder(features.encoder, features.cache.path, place=places.get("encoder"), device=device)
    seen = clip.through(encoder, features, places, progress)
    model = run.model()
    if poses is None:
        model.head = model.reader = None
    with torch.no_grad():
        forecast: Forecast = model(seen.observed, seen.pooled, poses, seen.tokens)
    assert forecast.latents is not None, "a run with latents forecasts them"
    true = clip.future_latents(encoder, features)  # after the prediction: nothing of it gets there
    latents = PredictedLatents(
        grid=(features.grid.height, features.grid.width),
        tubelet=features.tubelet,
        framing=encoder.framing,
        observed=seen.observed[0],
        predicted=forecast.latents[0],
        true=None if true is None else true[0],
    )
    return forecast, latents, seen.warnings


def _identified(video: Path) -> SourceVideo:
    try:
        return identify(video, folder=video.parent)
    except OSError as error:
        raise StageError(f"--video {str(video)!r} cannot be read: {error.strerror}") from error
