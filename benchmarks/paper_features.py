"""Random features at the paper's sizes, written and described as the extraction would.

Shape letters: T latent steps, P patches, D width, L thinker layers, S tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from thinkjepa.cache import ArraySpec, ClipFeatures, FeatureSet, WriteSession, describe_set
from thinkjepa.stages.extract.thinker.kept import KIND, Kept
from thinkjepa.stages.extract.thinker.layout import WHOLE, VisualLayout

OBSERVED = FUTURE = (16, 256, 1024)
"""`(T, P, D)`: 32 frames by tubelets of 2, 256 px by patches of 16 px, ViT-L's width; 8.4 MB in float16."""

LAYERS, WIDTH = tuple(range(8)), 2048
PROMPT_TOKENS, GENERATED_TOKENS = 1166, 15
"""States of a clip: 1,166 prompt tokens and those of 15 generated ones, 38.7 MB in float16."""

TEXT_TOKENS = 12
"""Prompt tokens after the visual ones."""

LAYOUT = VisualLayout((128,) * 8, tuple((0.5 * pair, 0.5 * pair + 0.25) for pair in range(8)), (8, 16), WHOLE)
"""1,024 visual tokens: 8 frame pairs of 8 x 16 places."""

KEPT = Kept(slot_segments=1, text=True, tokens=True)

GRID, TUBELET = (16, 16), 2
"""What training reads of an encoder set's origin."""

DTYPE = "float16"
SHARD_BYTES = 512 * 10**6
"""The extraction's default `--shard-mb`."""

CLIPS_PER_BATCH = 8
"""Clips that the writer commits at a time."""


def observed_set() -> FeatureSet:
    """An encoder set of `observed` alone: one inner chunk of 8.4 MB a clip."""
    return _encoder_set((ArraySpec("observed", ("time", "patch", "dim"), OBSERVED, OBSERVED, DTYPE),))


def encoder_set() -> FeatureSet:
    """An encoder set as extracted with one future window: 16.8 MB a clip."""
    future = ArraySpec("future", ("window", "time", "patch", "dim"), (1, *FUTURE), (1, *FUTURE), DTYPE)
    return _encoder_set((*observed_set().arrays.values(), future))


def _encoder_set(arrays: tuple[ArraySpec, ...]) -> FeatureSet:
    return describe_set(
        "encoder",
        origin={
            "dtype": DTYPE,
            "grid": list(GRID),
            "tubelet": TUBELET,
            "sampling": {"fingerprint": "benchmark"},
            "arrays": [spec.name for spec in arrays],
        },
        source={"model": "random"},
        arrays=arrays,
        shard_bytes=SHARD_BYTES,
        typical_clip_bytes=sum(spec.clip_bytes for spec in arrays),
    )


def thinker_set() -> FeatureSet:
    """A thinker set of 8 layers x 2048 with all its arrays."""
    return describe_set(
        "thinker",
        origin={
            "layers": list(LAYERS),
            "dtype": DTYPE,
            "sampling": {"fingerprint": "benchmark"},
            **KEPT.origin,
        },
        source={"model": "random"},
        arrays=KEPT.arrays(LAYERS, width=WIDTH, dtype=DTYPE),
        shard_bytes=SHARD_BYTES,
        typical_clip_bytes=len(LAYERS) * (PROMPT_TOKENS + GENERATED_TOKENS) * WIDTH * 2,
    )


def clip_id(number: int) -> str:
    return f"{number:016x}@32"


def random_values(shape: tuple[int, ...], *, seed: int) -> Tensor:
    """Normal values in float16: like features they hardly compress."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half()


def encoder_features(feature_set: FeatureSet, number: int) -> ClipFeatures:
    arrays = {
        name: random_values(spec.shape, seed=2 * number + place)
        for place, (name, spec) in enumerate(feature_set.arrays.items())
    }
    return ClipFeatures(clip_id(number), arrays)


def thinker_features(number: int) -> ClipFeatures:
    """Token counts differ by up to 31 from clip to clip: frames of other sizes, other answers."""
    num_tokens = PROMPT_TOKENS + GENERATED_TOKENS + number % 32
    kinds = torch.full((num_tokens,), KIND["text"], dtype=torch.uint8)
    behind = PROMPT_TOKENS - TEXT_TOKENS
    kinds[behind - sum(LAYOUT.sizes) : behind] = KIND["visual"]
    kinds[PROMPT_TOKENS:] = KIND["generated"]
    states = random_values((len(LAYERS), num_tokens, WIDTH), seed=number)
    arrays = KEPT.features(states, kinds, LAYOUT, prompt_token_count=PROMPT_TOKENS, split_time_s=4.0)
    return ClipFeatures(
        clip_id(number),
        arrays,
        token_count=num_tokens,
        slot_count=len(arrays["slot_position"]),
        text_count=len(arrays["text_kind"]),
        prompt_token_count=PROMPT_TOKENS,
        token_ids=tuple(range(num_tokens - PROMPT_TOKENS + 1)),
        generated_text="a hand lifts the cup",
    )


def write_cache(root: Path, feature_set: FeatureSet, features: Iterable[ClipFeatures]) -> None:
    """Write a feature set into a cache, new or not."""
    with WriteSession(root) as session, session.writer(session.resolve(feature_set)) as writer:
        for batch in batches_of(features, CLIPS_PER_BATCH):
            if refused := writer.append(batch):
                raise RuntimeError(f"the writer refused {refused[0].clip_id}: {refused[0].reason}")


def batches_of(features: Iterable[ClipFeatures], size: int) -> Iterator[list[ClipFeatures]]:
    batch: list[ClipFeatures] = []
    for item in features:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
