"""The two frozen models of a run, their common protocol, and the feature sets that they fill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from thinkjepa.cache import ArraySpec, ClipFeatures, ClipRow, Codec, FeatureSet, Kind, describe_set
from thinkjepa.cache.shards.format import stored_bytes
from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.data.framing import Framing
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.extract.encoder.base import VideoEncoder, open_encoder
from thinkjepa.stages.extract.encoder.history import HistoryEncoder
from thinkjepa.stages.extract.models.runtime import choose_dtype, quiet_transformers
from thinkjepa.stages.extract.models.weights import ModelFolder, find_model
from thinkjepa.stages.extract.settings import GPU_BATCH, ModelSettings, VllmSettings
from thinkjepa.stages.extract.thinker.base import Thinker
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.thinker.kept import TYPICAL
from thinkjepa.stages.extract.thinker.vllm.thinker import VllmThinker

BYTES_PER_MB = 10**6

FP8_ARRAYS: Mapping[Kind, tuple[str, tuple[str, ...]]] = {
    "thinker": ("tokens", ("slots", "text_tokens", "tokens")),
    "encoder": ("latents", ("observed", "future")),
    "history": ("latents", ()),
}
"""The value of `--fp8` that concerns each kind of set, and the arrays that it then stores in 8 bits."""

TRANSFORMERS = VllmSettings()


class FrozenModel(Protocol):
    """One frozen model, as extraction uses it. `load` brings its weights; all but `run` does without."""

    @property
    def kind(self) -> Kind:
        """The kind of feature set that it fills."""
        ...

    @property
    def folder(self) -> ModelFolder:
        """The model's files."""
        ...

    @property
    def origin(self) -> dict[str, Any]:
        """Everything that determines the features, without the sampling of frames."""
        ...

    @property
    def source(self) -> dict[str, Any]:
        """Model name, revision, versions and device, for people."""
        ...

    def sampling(self, clips: ClipSettings) -> dict[str, Any]:
        """The rule that chooses the frames."""
        ...

    def arrays(self, clips: ClipSettings) -> tuple[ArraySpec, ...]:
        """The arrays of the feature set. Raises StageError for clips that the model does not take."""
        ...

    def windows(self, clip: ClipRow) -> Sequence[Sequence[int]]:
        """Frame indices of a clip's windows."""
        ...

    def preprocess(self, frames: FrameStack) -> Tensor:
        """Frames `(frame, height, width, 3)` uint8, each by itself, as a tensor `(frame, ...)`."""
        ...

    def prepare(self, clip: ClipRow, windows: Sequence[Tensor], *, frame_px: tuple[int, int]) -> Any:
        """The inputs of `run` for a clip, from its preprocessed windows. May run in another thread.

        `frame_px` is the width and height of the video's frames.
        """
        ...

    def load_processor(self) -> None:
        """Load what `preprocess` and `prepare` need. Raises StageError where that fails."""
        ...

    def load(self) -> None:
        """Load processor and weights. Raises StageError where that fails."""
        ...

    def run(self, prepared: Sequence[tuple[ClipRow, Any]], *, batch_size: int) -> list[ClipFeatures]:
        """Features of prepared clips, in their order, on the CPU."""
        ...


@dataclass(frozen=True, slots=True)
class Storing:
    """Storage of new sets: shards of `shard_mb`, a codec, and the part in 8 bits."""

    shard_mb: int
    codec: Codec = "none"
    fp8: str = "none"


def describe_features(model: FrozenModel, clips: ClipSettings, storing: Storing) -> FeatureSet:
    """The set that a model fills, named by the model's origin and the way its frames are chosen."""
    origin = {**model.origin, "sampling": model.sampling(clips)}
    return _described(model, clips, storing, origin=origin, source=model.source)


def _described(
    model: FrozenModel,
    clips: ClipSettings,
    storing: Storing,
    *,
    origin: Mapping[str, Any],
    source: Mapping[str, Any],
) -> FeatureSet:
    arrays = model.arrays(clips)
    clip_bytes = sum(stored_bytes(spec, TYPICAL) for spec in arrays)
    part, names = FP8_ARRAYS[model.kind]
    in_8_bits = [spec.name for spec in arrays if spec.name in names and storing.fp8 in (part, "all")]
    return describe_set(
        model.kind,
        origin=origin,
        source=source,
        arrays=arrays,
        shard_bytes=storing.shard_mb * BYTES_PER_MB,
        typical_clip_bytes=clip_bytes,
        codec=storing.codec,
        fp8_arrays=in_8_bits,
    )


@dataclass(frozen=True, slots=True)
class FrozenModels:
    """Thinker and encoder, their weights loaded only when there is something to extract."""

    thinker: Thinker
    encoder: VideoEncoder
    history: HistoryEncoder | None = None
    """The encoder over the thinker's frames, where its features are kept."""

    @classmethod
    def find(
        cls,
        settings: ModelSettings,
        *,
        device: str,
        vllm: VllmSettings = TRANSFORMERS,
        batch_size: int = 0,
        need_weights: bool = True,
    ) -> FrozenModels:
        """Find both and read their configuration. Raises StageError with the remedy.

        Without `need_weights` the models can be described but not loaded.
        """
        quiet_transformers()
        chosen = choose_device(device)
        dtype = choose_dtype(settings.dtype, chosen)
        thinker = find_model(
            settings.thinker, revision=settings.revision, role="thinker", need_weights=need_weights
        )
        encoder = find_model(
            settings.encoder, revision=settings.encoder_revision, role="encoder", need_weights=need_weights
        )
        video_encoder = open_encoder(encoder, dtype=dtype, device=chosen, fit=settings.encoder_fit)
        view = video_encoder.framing if settings.thinker_view == "encoder" else None
        return cls(
            _open_thinker(
                thinker, settings, vllm, dtype=dtype, device=chosen, batch_size=batch_size, view=view
            ),
            video_encoder,
            HistoryEncoder.of(video_encoder, settings) if settings.keep_history else None,
        )

    def __enter__(self) -> FrozenModels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thinker.close()

    @property
    def by_kind(self) -> dict[Kind, FrozenModel]:
        """The models by the kind of set that they fill, in the order in which they run."""
        models: tuple[FrozenModel | None, ...] = (self.thinker, self.encoder, self.history)
        return {model.kind: model for model in models if model}

    @property
    def device(self) -> torch.device:
        """The device of both."""
        return self.thinker.device

    @property
    def dtype(self) -> str:
        """The precision of both."""
        return self.thinker.dtype

    def load(self, kinds: Iterable[Kind]) -> None:
        """Load the weights of the named models."""
        for kind in kinds:
            self.by_kind[kind].load()

    def sets(self, clips: ClipSettings, storing: Storing, *, batch_size: int = 1) -> dict[Kind, FeatureSet]:
        """The sets that a run fills.

        Shards of all hold equally many clips, as a unit of work fills all, and whole batches, as forwards
        have as many rows for a part of one.
        """
        return _with_equal_shards(
            {kind: describe_features(model, clips, storing) for kind, model in self.by_kind.items()},
            batch_size=batch_size,
        )

    def layouts(
        self, clips: ClipSettings, storing: Storing, *, batch_size: int = 1
    ) -> dict[Kind, FeatureSet]:
        """Arrays and shards of `sets`, under other names: an origin takes the weights, a layout does not."""
        return _with_equal_shards(
            {
                kind: _described(model, clips, storing, origin={}, source={})
                for kind, model in self.by_kind.items()
            },
            batch_size=batch_size,
        )


def _with_equal_shards(sets: Mapping[Kind, FeatureSet], *, batch_size: int) -> dict[Kind, FeatureSet]:
    """The sets with as many clips a shard, in whole batches."""
    rows = min(item.rows_per_shard for item in sets.values())
    rows = max(batch_size, rows - rows % batch_size)
    return {kind: replace(item, rows_per_shard=rows) for kind, item in sets.items()}


def _open_thinker(
    folder: ModelFolder,
    settings: ModelSettings,
    vllm: VllmSettings,
    *,
    dtype: str,
    device: torch.device,
    batch_size: int,
    view: Framing | None,
) -> Thinker:
    if vllm.backend == "transformers":
        return HookedThinker(folder, settings, dtype=dtype, device=device, view=view)
    rows = batch_size or GPU_BATCH
    return VllmThinker(folder, settings, vllm, dtype=dtype, device=device, batch_size=rows, view=view)
