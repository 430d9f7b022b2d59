"""Joints of a new video's future, from what is seen before the split and from nothing else.

The encoder gets the observed window, the thinker the history; frames from the split on are never decoded
here. Their *times* decide where the split can lie and which moments the prediction is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thinkjepa.cache import ClipRow, FeatureCache, FeatureSet, VideoLabels, file_digest
from thinkjepa.stages.data.catalog import PlannedFolder
from thinkjepa.stages.data.decode_process import DecodeError, VideoDecoder, VideoInfo
from thinkjepa.stages.data.labels.readers import find_label_file
from thinkjepa.stages.data.labels.storing import read_fitting
from thinkjepa.stages.data.trajectories import Poses, Positions, clip_trajectory, reference_frame
from thinkjepa.stages.data.videos import SourceVideo, identify
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.trained_run import TrainedRun
from thinkjepa.stages.extract.clip_frames import ClipDecoding, see, watch
from thinkjepa.stages.extract.thinker import Thought, thought_features
from thinkjepa.stages.predict.run_models import as_stored, load_encoder, load_thinker, version_differences
from thinkjepa.stages.predict.splits import ChosenFrames, SplitChoice, choose_frames, repeat_warnings
from thinkjepa.stages.progress import Progress
from thinkjepa.stages.train.features import Features, last_seen
from thinkjepa.stages.train.thinker_states import TokenBatch, of_kinds, packed


@dataclass(frozen=True, slots=True)
class Prediction:
    """Joints predicted for a video, with the true ones where its labels have them."""

    video: Path
    video_digest: str
    frames: ChosenFrames
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
    warnings: tuple[str, ...]

    @property
    def distance_m(self) -> float | None:
        """Mean distance of predicted and true joints, over what is labelled."""
        if self.true_m is None or self.true_confidence is None or not self.true_confidence.any():
            return None
        distances = np.linalg.norm(self.positions_m[: len(self.true_m)] - self.true_m, axis=-1)
        return float(distances[self.true_confidence > 0].mean())

    def to_json(self) -> dict[str, Any]:
        """All of it, plain; positions in metres, times in seconds from the video's beginning."""
        camera = None if self.camera_pose is None else self.camera_pose.tolist()
        return {
            "schema": "thinkjepa.prediction.v1",
            "video": str(self.video),
            "video_digest": self.video_digest,
            **self.frames.to_json(),
            "joints": list(self.joints),
            "reference_frame": self.reference_frame,
            "positions_m": _rounded(self.positions_m),
            "camera_pose": camera,
            "true_positions_m": None if self.true_m is None else _rounded(self.true_m),
            "true_confidence": None if self.true_confidence is None else self.true_confidence.tolist(),
            "mean_distance_m": self.distance_m,
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
) -> Prediction:
    """Predict the joints of one video with a trained run.

    `places` says where the models "thinker" and "encoder" lie, None where the extraction found them;
    `cache_dir` where the run's cache does. The cache is read for what made the run's features and for labels.
    Raises StageError or CacheError for what its user can put right.
    """
    run = TrainedRun.open(run_dir)
    if run.shape.head is None:
        raise StageError(f"run {str(run_dir)!r} predicts latents only: train with --task trajectory")
    features = run.features(cache_dir)
    source = _identified(video)
    with VideoDecoder(timeout_s=decode_timeout_s) as decoder:
        watched = _watched(source, split, run, features, decoder, device)
        labels = _labels(features.cache, source, num_frames=len(watched.info.times_s))
        joints, frames = run.shape.head.joints, watched.frames
        last_pose = _last_pose(labels, joints, frames, needed=run.shape.head.anchor == "last_pose")
        seen = watched.through(features, places, progress)
    with torch.no_grad():
        forecast = run.model()(seen.observed, seen.pooled, torch.from_numpy(last_pose)[None], seen.tokens)
    assert forecast.joints_m is not None, "the run has a head"
    true_m, true_confidence = (None, None) if labels is None else _truth(labels, joints, frames)
    return Prediction(
        video=video,
        video_digest=source.digest,
        frames=frames,
        joints=joints,
        positions_m=forecast.joints_m[0].flatten(0, 1).numpy(),
        reference_frame=reference_frame(labels) if labels else "/".join(run.record["reference_frames"]),
        labels=labels,
        true_m=true_m,
        true_confidence=true_confidence,
        camera_pose=None if labels is None else _pose(labels, frames),
        warnings=(*repeat_warnings(watched.info.times_s, frames), *dict.fromkeys(seen.warnings)),
    )


def _watched(
    source: SourceVideo,
    split: SplitChoice,
    run: TrainedRun,
    features: Features,
    decoder: VideoDecoder,
    device: str,
) -> _Watched:
    try:
        info = decoder.open(source.path)
    except DecodeError as error:
        raise StageError(f"--video {str(source.path)!r}: {error}") from error
    thinker = features.thinker if run.shape.thinker else None
    frames = choose_frames(info.times_s, split, encoder=features.encoder, thinker=thinker)
    return _Watched(source, info, frames, thinker, decoder, device)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a run's model is given of a video, a batch of one."""

    observed: Tensor
    pooled: Tensor | None
    tokens: TokenBatch | None
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class _Watched:
    """One video before one split, for the frozen models."""

    source: SourceVideo
    info: VideoInfo
    frames: ChosenFrames
    thinker_set: FeatureSet | None
    decoder: VideoDecoder
    device: str

    def through(self, features: Features, places: Mapping[str, str | None], progress: Progress) -> _Seen:
        """Run both frozen models, or the encoder alone where the run reads no thinker."""
        progress.note(f"loading {places.get('encoder') or features.encoder.source['model']} ...")
        progress.begin("encoding", total=1, unit="windows")
        encoder = load_encoder(features.encoder, place=places.get("encoder"), device=self.device)
        windows = watch(self._clip, encoder, self._decoding)
        stored = as_stored(encoder.encode(windows), "observed", features.encoder)
        observed = features.viewed(stored, torch.device("cpu"))
        warnings = version_differences(encoder.origin, features.encoder)
        progress.advance(1)
        if self.thinker_set is None:
            return _Seen(observed, None, None, warnings)
        progress.note(f"loading {places.get('thinker') or self.thinker_set.source['model']} ...")
        progress.begin("thinking", total=1, unit="clips")
        thinker = load_thinker(self.thinker_set, place=places.get("thinker"), device=self.device)
        thought = thinker.think([see(self._clip, thinker, self._decoding)])[0]
        warnings += version_differences(thinker.origin, self.thinker_set)
        progress.advance(1)
        pooled = thought_features(self._clip.clip_id, thought).arrays["pooled"][None]
        return _Seen(observed, pooled, _tokens(thought, features.token_kinds, self.thinker_set), warnings)

    @property
    def _clip(self) -> ClipRow:
        """A clip without a future: there is nothing in it that could be decoded too much."""
        frames, times_s = self.frames, self.info.times_s
        return ClipRow(
            clip_id=f"{self.source.video_id}@{frames.split_frame}",
            video=self.source.name,
            video_digest=self.source.digest,
            thinker_sampling="",
            dense_sampling="",
            split_frame=frames.split_frame,
            split_time_s=frames.future_times_s[0],
            thinker_frames=frames.thinker,
            thinker_times_s=tuple(times_s[list(frames.thinker)].tolist()),
            observed_frames=frames.observed,
            observed_times_s=frames.observed_times_s,
            future_frames=(),
            future_times_s=(),
        )

    @property
    def _decoding(self) -> ClipDecoding:
        digest, size = self.source.digest, (self.info.width_px, self.info.height_px)
        folder = PlannedFolder(
            num_videos=1,
            names=[self.source.name],
            paths={digest: self.source.path},
            frame_sizes={digest: size},
            signatures={digest: self.source.signature},
        )
        return ClipDecoding(self.decoder, folder)


def _tokens(thought: Thought, kinds: Sequence[int], made: FeatureSet) -> TokenBatch | None:
    """The tokens that guide by cross-attention, as a batch of one clip; None where none do."""
    if not kinds:
        return None
    hidden_LSD = as_stored(thought.hidden_LSD, "tokens", made)
    return packed([of_kinds(hidden_LSD, thought.token_kind_S, kinds)]).to(torch.device("cpu"))


def _identified(video: Path) -> SourceVideo:
    try:
        return identify(video, folder=video.parent)
    except OSError as error:
        raise StageError(f"--video {str(video)!r} cannot be read: {error.strerror}") from error


def _labels(cache: FeatureCache, source: SourceVideo, *, num_frames: int) -> VideoLabels | None:
    """The cache's labels of the video, else those of the file beside it, None where there are none.

    Raises LabelError where the file is broken, or is not of a video with so many frames.
    """
    if cache.labels.label_digest(source.digest):  # none where a file was broken when it was last looked at
        return cache.labels.find(source.digest)
    file = find_label_file(source.path, source.path.parent.resolve())
    if file is None:
        return None
    read = read_fitting(file, num_frames)
    return read.of_video(source.name, video_digest=source.digest, label_digest=file_digest(file))


def _last_pose(
    labels: VideoLabels | None, joints: tuple[str, ...], frames: ChosenFrames, *, needed: bool
) -> Positions:
    """Where each joint was last seen, `(joint, 3)`; zeros where the model does not ask."""
    if not needed:
        return np.zeros((len(joints), 3), dtype=np.float32)
    if labels is None or labels.num_frames <= frames.observed[-1]:
        raise StageError(
            "the run predicts displacements from the last observed pose (anchor last_pose), and the run's "
            "cache has no labels of this video up to the split, nor is there a label file beside it"
        )
    seen = clip_trajectory(labels, joints, observed_frames=frames.observed, future_frames=[[]])
    pose, known = last_seen(seen)
    if not known.any():
        raise StageError("none of the run's joints was seen before the split, which it starts from")
    return pose


def _truth(
    labels: VideoLabels, joints: tuple[str, ...], frames: ChosenFrames
) -> tuple[Positions, Positions] | tuple[None, None]:
    """True positions `(frame, joint, 3)` and confidences of the future frames that the labels reach."""
    future = [frame for frame in frames.future if frame < labels.num_frames]
    if not future or frames.observed[-1] >= labels.num_frames:
        return None, None
    found = clip_trajectory(labels, joints, observed_frames=frames.observed, future_frames=[future])
    return found.future_m[0], found.future_confidence[0]


def _pose(labels: VideoLabels, frames: ChosenFrames) -> Poses | None:
    last = frames.observed[-1]
    if labels.camera_poses is None or last >= labels.num_frames:
        return None
    pose: Poses = labels.camera_poses[last]
    return pose


def _rounded(positions_m: Positions) -> list[Any]:
    """To a hundredth of a millimetre."""
    values: list[Any] = np.round(positions_m.astype(np.float64), 5).tolist()
    return values
