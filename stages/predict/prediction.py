"""A new video's future, from what is seen before the split and from nothing else: latents, and joints.

Frames from the split on never reach the prediction. Their *times* decide where the split can lie and which
moments the prediction is for. Once it is made, they are encoded, to compare it with what came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from thinkjepa.stages.data.decode_process import VideoDecoder
from thinkjepa.stages.data.splits import Side
from thinkjepa.stages.data.videos import SourceVideo, identify
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.trained_run import TrainedRun
from thinkjepa.stages.predict.hands import LabelledClip, PredictedHands
from thinkjepa.stages.predict.latents import PredictedLatents
from thinkjepa.stages.predict.run_models import load_encoder
from thinkjepa.stages.predict.splits import ChosenFrames, SplitChoice, repeat_warnings
from thinkjepa.stages.predict.watched import watched
from thinkjepa.stages.progress import Progress


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run predicts of one video's future."""

    video: Path
    video_digest: str
    side: Side | None
    """The side of the run's split that has clips of this video, None where the run has none."""
    frames: ChosenFrames
    latents: PredictedLatents
    hands: PredictedHands | None
    """None for a run on latents alone."""
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it but the latents themselves; times in seconds from the video's beginning."""
        return {
            "schema": "thinkjepa.prediction.v1",
            "video": str(self.video),
            "video_digest": self.video_digest,
            "side": self.side,
            **self.frames.to_json(),
            "latents": self.latents.to_json(self.frames),
            **(self.hands.to_json() if self.hands else {}),
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
    """Predict the future of one video with a trained run.

    `places` says where the models "thinker" and "encoder" lie, None where the extraction found them;
    `cache_dir` where the run's cache does. The cache is read for what made the run's features and for labels.
    Raises StageError or CacheError for what its user can put right.
    """
    run = TrainedRun.open(run_dir)
    features = run.features(cache_dir)
    source = _identified(video)
    with VideoDecoder(timeout_s=decode_timeout_s) as decoder:
        clip = watched(source, split, run, features, decoder=decoder, device=device)
        hands = LabelledClip.find(run, clip, features.cache)
        last_pose = hands.last_pose() if hands else None
        progress.note(f"loading {places.get('encoder') or features.encoder.source['model']} ...")
        encoder = load_encoder(features.encoder, place=places.get("encoder"), device=device)
        seen = clip.through(encoder, features, places, progress)
        with torch.no_grad():
            forecast = run.model()(seen.observed, seen.pooled, last_pose, seen.tokens)
        true = clip.future_latents(encoder, features)  # after the prediction: nothing of it gets there
    latents = PredictedLatents(
        grid=(features.grid.height, features.grid.width),
        tubelet=features.tubelet,
        framing=encoder.framing,
        observed=seen.observed[0],
        predicted=forecast.latents[0],
        true=None if true is None else true[0],
    )
    return Prediction(
        video=video,
        video_digest=source.digest,
        side=run.side_of(source.video_id),
        frames=clip.frames,
        latents=latents,
        hands=hands.predicted(forecast.joints_m) if hands and forecast.joints_m is not None else None,
        warnings=(*repeat_warnings(clip.info.times_s, clip.frames), *dict.fromkeys(seen.warnings)),
    )


def _identified(video: Path) -> SourceVideo:
    try:
        return identify(video, folder=video.parent)
    except OSError as error:
        raise StageError(f"--video {str(video)!r} cannot be read: {error.strerror}") from error
