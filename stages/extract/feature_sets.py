"""The two feature sets that a run asks of the cache."""

from __future__ import annotations

from dataclasses import dataclass

from thinkjepa.cache import ArraySpec, Codec, FeatureSet, describe_set
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.extract.encoder import VideoEncoder, encoder_arrays
from thinkjepa.stages.extract.thinker import TOKEN_CAPACITY, TYPICAL_TOKENS, Thinker, thinker_arrays

BYTES_PER_MB = 10**6


@dataclass(frozen=True, slots=True)
class Storing:
    """How new sets are stored: shards of `shard_mb`, a codec, and what of them in 8 bits."""

    shard_mb: int
    codec: Codec = "none"
    fp8: str = "none"

    def fp8_arrays(self, part: str, *names: str) -> tuple[str, ...]:
        """These arrays, where their part of the features is to be stored in 8 bits."""
        return names if self.fp8 in (part, "all") else ()


def thinker_set(thinker: Thinker, clips: ClipSettings, *, dtype: str, storing: Storing) -> FeatureSet:
    """Named by the model's origin and the way its frames are chosen."""
    arrays = thinker_arrays(thinker.layers, width=thinker.width, dtype=dtype)
    full = sum(spec.clip_bytes for spec in arrays)
    return describe_set(
        "thinker",
        origin={**thinker.origin, "sampling": clips.thinker_sampling},
        source=thinker.source,
        arrays=arrays,
        shard_bytes=storing.shard_mb * BYTES_PER_MB,
        typical_clip_bytes=full * TYPICAL_TOKENS // TOKEN_CAPACITY,
        codec=storing.codec,
        fp8_arrays=storing.fp8_arrays("tokens", "tokens"),
    )


def latent_arrays(encoder: VideoEncoder, clips: ClipSettings) -> tuple[ArraySpec, ...]:
    """The encoder's arrays. Raises StageError where it does not take windows of these lengths."""
    return encoder_arrays(
        encoder,
        observed_frames=clips.observed_frames,
        future_frames=clips.future_frames,
        future_windows=clips.future_windows,
    )


def encoder_set(encoder: VideoEncoder, clips: ClipSettings, *, storing: Storing) -> FeatureSet:
    """Named by the model's origin and the way its frames are chosen."""
    arrays = latent_arrays(encoder, clips)
    return describe_set(
        "encoder",
        origin={**encoder.origin, "sampling": clips.dense_sampling},
        source=encoder.source,
        arrays=arrays,
        shard_bytes=storing.shard_mb * BYTES_PER_MB,
        typical_clip_bytes=sum(spec.clip_bytes for spec in arrays),
        codec=storing.codec,
        fp8_arrays=storing.fp8_arrays("latents", "observed", "future"),
    )
