"""A new video before one split, through the frozen models: what a run's predictor is given, then what came.

The encoder gets the observed window, the thinker the history. The future window goes through the encoder in
a call of its own, for comparison only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thinkjepa.cache import ClipRow, FeatureSet
from thinkjepa.stages.data.catalog import PlannedFolder
from thinkjepa.stages.data.decode_process import DecodeError, VideoDecoder, VideoInfo
from thinkjepa.stages.data.videos import SourceVideo
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.trained_run import TrainedRun
from thinkjepa.stages.extract.clip_frames import ClipDecoding, see, watch
from thinkjepa.stages.extract.encoder import VideoEncoder
from thinkjepa.stages.extract.thinker import Thought, thought_features
from thinkjepa.stages.predict.run_models import as_stored, load_thinker, version_differences
from thinkjepa.stages.predict.splits import ChosenFrames, SplitChoice, choose_frames
from thinkjepa.stages.progress import Progress
from thinkjepa.stages.train.features import Features
from thinkjepa.stages.train.thinker_states import TokenBatch, of_kinds, packed


@dataclass(frozen=True, slots=True)
class Seen:
    """What a run's model is given of a video, a batch of one."""

    observed: Tensor
    pooled: Tensor | None
    tokens: TokenBatch | None
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Watched:
    """One video before one split, for the frozen models."""

    source: SourceVideo
    info: VideoInfo
    frames: ChosenFrames
    thinker_set: FeatureSet | None
    decoder: VideoDecoder
    device: str

    def through(
        self,
        encoder: VideoEncoder,
        features: Features,
        places: Mapping[str, str | None],
        progress: Progress,
    ) -> Seen:
        """Run both frozen models, or the encoder alone where the run reads no thinker."""
        progress.begin("encoding", total=1, unit="windows")
        observed = self._encoded("observed", self._clip, encoder, features)
        warnings = version_differences(encoder.origin, features.encoder)
        progress.advance(1)
        if self.thinker_set is None:
            return Seen(observed, None, None, warnings)
        progress.note(f"loading {places.get('thinker') or self.thinker_set.source['model']} ...")
        progress.begin("thinking", total=1, unit="clips")
        thinker = load_thinker(self.thinker_set, place=places.get("thinker"), device=self.device)
        thought = thinker.think([see(self._clip, thinker, self._decoding)])[0]
        warnings += version_differences(thinker.origin, self.thinker_set)
        progress.advance(1)
        pooled = thought_features(self._clip.clip_id, thought).arrays["pooled"][None]
        return Seen(observed, pooled, _tokens(thought, features.token_kinds, self.thinker_set), warnings)

    def future_latents(self, encoder: VideoEncoder, features: Features) -> Tensor | None:
        """The true future as the run's targets are, `(1, step, patch, dim)`; None past the video's end."""
        if len(self.frames.future) < len(self.frames.future_times_s):
            return None
        future = replace(self._clip, observed_frames=self.frames.future)
        return self._encoded("future", future, encoder, features)

    def _encoded(self, array: str, clip: ClipRow, encoder: VideoEncoder, features: Features) -> Tensor:
        """The clip's only window, as the run reads it from the cache."""
        latents = encoder.encode(watch(clip, encoder, self._decoding))
        return features.viewed(as_stored(latents, array, features.encoder), torch.device("cpu"))

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


def watched(
    source: SourceVideo,
    split: SplitChoice,
    run: TrainedRun,
    features: Features,
    *,
    decoder: VideoDecoder,
    device: str,
) -> Watched:
    """Choose the frames of a video. Raises StageError where it cannot be decoded or split so."""
    try:
        info = decoder.open(source.path)
    except DecodeError as error:
        raise StageError(f"--video {str(source.path)!r}: {error}") from error
    thinker = features.thinker if run.shape.thinker else None
    frames = choose_frames(info.times_s, split, encoder=features.encoder, thinker=thinker)
    return Watched(source, info, frames, thinker, decoder, device)


def _tokens(thought: Thought, kinds: Sequence[int], made: FeatureSet) -> TokenBatch | None:
    """The tokens that guide by cross-attention, as a batch of one clip; None where none do."""
    if not kinds:
        return None
    hidden_LSD = as_stored(thought.hidden_LSD, "tokens", made)
    return packed([of_kinds(hidden_LSD, thought.token_kind_S, kinds)]).to(torch.device("cpu"))
