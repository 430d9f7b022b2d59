"""The two feature sets that a run asks of the cache."""

from __future__ import annotations

from thinkjepa.cache import FeatureSet, describe_set
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.extract.encoder import VideoEncoder, encoder_arrays
from thinkjepa.stages.extract.thinker import TOKEN_CAPACITY, TYPICAL_TOKENS, Thinker, thinker_arrays

BYTES_PER_MB = 10**6


def thinker_set(thinker: Thinker, clips: ClipSettings, *, dtype: str, shard_mb: int) -> FeatureSet:
    """Named by the model's origin and the way its frames are chosen."""
    arrays = thinker_arrays(thinker.layers, width=thinker.width, dtype=dtype)
    full = sum(spec.clip_bytes for spec in arrays)
    return describe_set(
        "thinker",
        origin={**thinker.origin, "sampling": clips.thinker_sampling},
        source=thinker.source,
        arrays=arrays,
        shard_bytes=shard_mb * BYTES_PER_MB,
        typical_clip_bytes=full * TYPICAL_TOKENS // TOKEN_CAPACITY,
    )


def encoder_set(encoder: VideoEncoder, clips: ClipSettings, *, shard_mb: int) -> FeatureSet:
    """Named by the model's origin and the way its frames are chosen."""
    arrays = encoder_arrays(
        encoder,
        observed_frames=clips.observed_frames,
        future_frames=clips.future_frames,
        future_windows=clips.future_windows,
    )
    return describe_set(
        "encoder",
        origin={**encoder.origin, "sampling": clips.dense_sampling},
        source=encoder.source,
        arrays=arrays,
        shard_bytes=shard_mb * BYTES_PER_MB,
        typical_clip_bytes=sum(spec.clip_bytes for spec in arrays),
    )
