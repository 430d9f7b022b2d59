"""The cost of an extraction before it runs: clips, bytes on disk, memory and hours.

The folder is planned exactly as `extract` plans it. Configuration and processors describe the models, whose
weights are neither needed nor read. Clips and bytes hold as far as every clip succeeds. Hours and memory are
estimates, and `assumptions` says what they rest on.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thinkjepa.cache import ArraySpec, Failure, FeatureSet, Kind
from thinkjepa.cache.shards.format import stored_bytes
from thinkjepa.stages.data.cutting.folder import plan_folder, record, wanted_videos
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder
from thinkjepa.stages.data.repeated_frames import describe_repeats
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.figures import (
    Estimate,
    FolderEstimate,
    MemoryFigures,
    ModelFigures,
    index_bytes,
    known_clip_bytes,
    label_bytes,
)
from thinkjepa.stages.extract.models.costs import (
    EncoderCosts,
    PromptSizes,
    ThinkerCosts,
    encoder_costs,
    given_size,
    thinker_costs,
)
from thinkjepa.stages.extract.models.pair import FrozenModel, FrozenModels, Storing
from thinkjepa.stages.extract.models.runtime import TERA, choose_dtype, decoder_beside, measured_tflops
from thinkjepa.stages.extract.models.weights import ModelUnavailableError
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.thinker.kept import TYPICAL
from thinkjepa.stages.extract.work.frames import RAW_BYTES, ClipDecoding
from thinkjepa.stages.progress import Progress

UTILISATION = 0.3
"""Share of the peak that the models reach: an assumption. V-JEPA 2 ViT-L, float32, on two CPU cores reached
0.4 of the rate that `measured_tflops` gave there."""

MEASURED_CLIPS = 3

STATE_COPIES = 3
"""Copies of a batch's hidden states in memory: as captured, cut to its length, being written."""

LATENT_COPIES = 2
"""Copies of the encoder's latents: one batch leaves the model while the one before is written."""

PREPARED_BATCHES = 2
"""Batches of preprocessed frames: one is in the models, the next one comes from the decoder."""

FRAME_COPIES = 2
"""Copies of decoded frames while they are preprocessed: as decoded, and as tensor."""


@dataclass(frozen=True, slots=True)
class ClipCost:
    """Tokens and FLOPs of one clip in one model, and what the cache can hold of its features."""

    num_tokens: int
    flops: int
    lengths: Mapping[str, int] = field(default_factory=dict)
    """Entries along the ragged axes of the set's arrays."""
    is_stored: bool = True


@dataclass(frozen=True, slots=True)
class DescribedModels:
    """Both models without weights, and the costs of their forwards."""

    frozen: FrozenModels
    clips: ClipSettings
    sets: Mapping[Kind, FeatureSet]
    """Arrays and shards of the sets that would be filled."""
    thinker: ThinkerCosts
    encoder: EncoderCosts

    @classmethod
    def find(
        cls, settings: ModelSettings, clips: ClipSettings, execution: ExecutionSettings
    ) -> DescribedModels:
        """Find configuration and processors. Raises StageError with the remedy."""
        frozen = FrozenModels.find(settings, device=execution.device, need_weights=False)
        for model in frozen.by_kind.values():
            model.load_processor()
        costs = thinker_costs(frozen.thinker), encoder_costs(frozen.encoder)
        sets = frozen.layouts(  # clips that a model does not take are refused here, before planning
            clips,
            Storing(execution.shard_mb, execution.codec, settings.fp8),
            batch_size=execution.clips_per_batch(frozen.device.type),
        )
        return cls(frozen, clips, sets, *costs)

    @property
    def window_frames(self) -> list[int]:
        """Frames of each window that goes through the encoder for its own set."""
        return [self.clips.observed_frames, *[self.clips.future_frames] * self.clips.future_windows]

    @property
    def history_frames(self) -> list[int]:
        """Frames of the window that goes through the encoder for the history set, where it is kept."""
        return [int(self.clips.thinker_sampling["frames"])] if self.frozen.history else []

    def sequences(self, windows: Sequence[int]) -> list[Sequence[int]]:
        """Tokens that attend to each other, of each window of the encoder by its frames."""
        return [self.frozen.encoder.sequences(number) for number in windows]

    @property
    def item_bytes(self) -> int:
        """Bytes of one value of weights and features."""
        dtype: torch.dtype = getattr(torch, self.frozen.dtype)
        return dtype.itemsize

    def thinker_figures(self, prompts: PromptSizes, planned: PlannedFolder) -> ModelFigures:
        """The thinker's part. Clips that the processor refuses cost nothing, too long ones are not stored."""
        sizes = [size for clip in planned.clips if (size := prompts.of(clip)) is not None]
        costs = [
            ClipCost(
                prompts.num_tokens(size),
                self.thinker.flops(size, new_tokens=prompts.new_tokens),
                lengths=prompts.lengths(size),
                is_stored=not prompts.overlong(size),
            )
            for size in sizes
        ]
        return self._figures(self.frozen.thinker, self.thinker.parameters, costs)

    def encoder_figures(self, planned: PlannedFolder) -> ModelFigures:
        """The encoder's part. Every clip costs the same: frames are cropped to the encoder's size."""
        costs = [self._encoder_cost(self.window_frames)] * len(planned.clips)
        return self._figures(self.frozen.encoder, self.encoder.parameters, costs)

    def history_figures(self, planned: PlannedFolder) -> ModelFigures | None:
        """The part of the encoder over the thinker's frames: its weights are the encoder's."""
        if self.frozen.history is None:
            return None
        (num_frames,) = self.history_frames
        lengths = {"slot": self.frozen.history.num_slots(num_frames)}
        cost = replace(self._encoder_cost([num_frames]), lengths=lengths)
        return self._figures(self.frozen.history, 0, [cost] * len(planned.clips))

    def _encoder_cost(self, windows: Sequence[int]) -> ClipCost:
        sequences = [number for window in self.sequences(windows) for number in window]
        return ClipCost(sum(sequences), sum(map(self.encoder.flops, sequences)))

    def _figures(self, model: FrozenModel, parameters: int, costs: Sequence[ClipCost]) -> ModelFigures:
        stored, item = [cost.lengths for cost in costs if cost.is_stored], self.sets[model.kind]
        array_bytes = {name: _stored_bytes(spec, stored) for name, spec in item.arrays.items()}
        of_shards = index_bytes(item, num_clips=len(stored))
        lengths = [cost.num_tokens for cost in costs]
        return ModelFigures(
            model=model.folder.name,
            parameters=parameters,
            weights_bytes=parameters * self.item_bytes,
            tokens_per_clip=[min(lengths), max(lengths)] if lengths else None,
            total_flops=sum(cost.flops for cost in costs),
            disk_bytes=sum(array_bytes.values()) + of_shards,
            array_bytes=array_bytes,
            index_bytes=of_shards,
        )

    def memory_figures(
        self, planned: PlannedFolder, prompts: PromptSizes, *, batch_size: int
    ) -> MemoryFigures:
        """Memory of a batch of the largest clips, as held at the same time, without allocators' overhead."""
        thinker, encoder = self.frozen.thinker, self.frozen.encoder
        batch_bytes = min(batch_size, len(planned.clips)) * self.item_bytes
        windows = [*self.window_frames, *self.history_frames]
        window_tokens = [sum(sequences) for sequences in self.sequences(windows)]
        window_pixels = sum(windows) * 3 * math.prod(encoder.frame_px)
        longest = max(prompts.sizes.values(), key=lambda size: size.prompt_tokens, default=None)
        num_tokens = prompts.num_tokens(longest) if longest else 0
        frame_sizes = {
            given_size(size, thinker) for size in {video.info.size_px for video in planned.videos.values()}
        }
        frame_bytes = 3 * max((width * height for width, height in frame_sizes), default=0)
        num_frames = max((len(clip.thinker_frames) for clip in planned.clips), default=0)
        live_values = max(
            self.thinker.live_values(longest) if longest else 0,
            self.encoder.live_values(max(window_tokens)),
        )
        prepared_bytes = (longest.pixel_bytes if longest else 0) + window_pixels
        return MemoryFigures(
            weights_bytes=(self.thinker.parameters + self.encoder.parameters) * self.item_bytes,
            activation_bytes=batch_bytes * live_values,
            key_value_bytes=batch_bytes * self.thinker.cached_values(num_tokens),
            frame_bytes=PREPARED_BATCHES * min(batch_size, len(planned.clips)) * prepared_bytes
            + num_frames * frame_bytes
            + window_pixels
            + FRAME_COPIES * RAW_BYTES,
            state_bytes=batch_bytes
            * (
                STATE_COPIES * len(thinker.layers) * num_tokens * thinker.width
                + LATENT_COPIES * sum(window_tokens) * encoder.width
            ),
        )


def _stored_bytes(spec: ArraySpec, clips: Sequence[Mapping[str, int]]) -> int:
    """Bytes of clips with these lengths along ragged axes."""
    counted = Counter(lengths.get(spec.ragged, 0) for lengths in clips)
    return sum(number * stored_bytes(spec, {spec.ragged: length}) for length, number in counted.items())


def estimate(
    videos: Path,
    *,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
    tflops: float | None,
    progress: Progress,
    clips_file: Path | None = None,
) -> FolderEstimate:
    """The cost of `extract` with the same settings. Nothing is written.

    Returns an Estimate, or what is known without the models where a hub's one is out of reach. `tflops` is
    the peak of the machine that will extract, TFLOP/s, and None measures the one here. Raises StageError for
    wrong use.
    """
    if tflops is not None and not (math.isfinite(tflops) and tflops > 0):
        raise StageError(f"--tflops {tflops:g}: give a number above 0")
    files, table = wanted_videos(videos, clips_file, clips)
    try:
        described = DescribedModels.find(models, clips, execution)
    except ModelUnavailableError as error:
        with VideoDecoder(timeout_s=execution.decode_timeout) as decoder:
            planned = plan_folder(files, videos, clips, decoder=decoder, progress=progress, table=table)
        return _without_models(planned, videos, clips, models, execution, reason=str(error))
    frozen = described.frozen
    device = frozen.device.type
    with decoder_beside(device, timeout_s=execution.decode_timeout) as decoder:
        planned = plan_folder(files, videos, clips, decoder=decoder, progress=progress, table=table)
        prompts = PromptSizes.count(planned.clips, planned.videos, frozen.thinker)
        decode_times_s = _measured_decoding(planned, frozen, prompts, decoder, progress)
    batch_size = execution.clips_per_batch("cuda" if tflops else device)
    peak = tflops or measured_tflops(frozen.device, getattr(torch, frozen.dtype))
    thinker = described.thinker_figures(prompts, planned)
    encoder, history = described.encoder_figures(planned), described.history_figures(planned)
    parts = [part for part in (thinker, encoder, history) if part]
    decode_s = len(planned.clips) * sum(decode_times_s) / max(1, len(decode_times_s))
    folder = _folder_figures(planned, videos, execution)
    return Estimate(
        **folder,
        device=device,
        dtype=frozen.dtype,
        batch_size=batch_size,
        thinker=thinker,
        encoder=encoder,
        history=history,
        disk_bytes=sum(part.disk_bytes for part in parts) + folder["label_bytes"],
        memory=described.memory_figures(planned, prompts, batch_size=batch_size),
        tflops=peak,
        tflops_measured=tflops is None,
        utilisation=UTILISATION,
        model_hours=sum(part.total_flops for part in parts) / (peak * TERA * UTILISATION) / 3600,
        decode_hours=decode_s / 3600,
        decode_clips=len(decode_times_s),
        warnings=_repeat_warning(planned)
        + prompts.problems(planned.clips)
        + _precision_warning(models, device, tflops),
        assumptions=_assumptions(device, tflops),
    )


def _folder_figures(planned: PlannedFolder, videos: Path, execution: ExecutionSettings) -> dict[str, Any]:
    """The figures of a plan, which do not depend on the models."""
    windows = [(clip.observed_frames, *clip.future_frames) for clip in planned.clips]
    return {
        "videos": planned.num_videos,
        "usable_videos": len(planned.videos),
        "label_bytes": label_bytes(planned, videos),
        "video_hours": planned.duration_s / 3600,
        "clips": len(planned.clips),
        "thinker_frames": sum(len(clip.thinker_frames) for clip in planned.clips),
        "encoder_windows": sum(map(len, windows)),
        "encoder_frames": sum(len(window) for of_clip in windows for window in of_clip),
        "failed_videos": len({failure.video for failure in planned.failures}),
        "allowed_failed_videos": execution.failure_limit(num_videos=planned.num_videos),
        "failures": planned.failures,
        "too_short": planned.too_short,
        "repeats": planned.repeats,
        "dense_fps": planned.fps,
        "repeated_frames": planned.repeated_frames,
        "histories": planned.histories,
    }


def _repeat_warning(planned: PlannedFolder) -> list[str]:
    return [text] if (text := describe_repeats(planned.repeated_frames, fps=planned.fps)) else []


def _without_models(
    planned: PlannedFolder,
    videos: Path,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
    *,
    reason: str,
) -> FolderEstimate:
    """The figures of the videos alone, and bytes by the published shapes of well-known models."""
    dtype = choose_dtype(models.dtype, choose_device(execution.device))
    clip_bytes = known_clip_bytes(models, clips, dtype=dtype)
    known = (
        f"disk is by the models' published shapes, with {TYPICAL['token']:,} thinker tokens and "
        f"{TYPICAL['slot']} slots a clip"
        if clip_bytes
        else "disk is not known: the models are none of the well-known ones"
    )
    folder = _folder_figures(planned, videos, execution)
    return FolderEstimate(
        **folder,
        dtype=dtype,
        disk_bytes=None
        if clip_bytes is None
        else len(planned.clips) * sum(clip_bytes) + folder["label_bytes"],
        warnings=[*_repeat_warning(planned), f"tokens, memory and hours need the models: {reason}"],
        assumptions=[known],
    )


def _measured_decoding(
    planned: PlannedFolder,
    frozen: FrozenModels,
    prompts: PromptSizes,
    decoder: VideoDecoder,
    progress: Progress,
) -> list[float]:
    """Seconds to decode and prepare a clip, as extraction does, for a few clips spread over the plan."""
    chosen = planned.clips[:: max(1, math.ceil(len(planned.clips) / MEASURED_CLIPS))]
    decoding = ClipDecoding(decoder, planned.videos)
    times_s = []
    frozen.encoder.preprocess(np.zeros((2, 32, 32, 3), dtype=np.uint8))  # its first call is slower
    progress.begin("measuring", total=len(chosen), unit="clips")
    for clip in chosen:
        started = time.perf_counter()
        try:
            for model in frozen.by_kind.values():
                if model is not frozen.thinker or prompts.of(clip):
                    decoding.prepared(clip, model)
                else:
                    decoding.windows(clip, model)
        except DecodeError as error:
            failure = Failure(clip.video, "decode", str(error), clip.clip_id, clip.video_digest)
            record([failure], planned.failures, progress)
        else:
            times_s.append(time.perf_counter() - started)
        progress.advance(1)
    return times_s


def _precision_warning(models: ModelSettings, device: str, tflops: float | None) -> list[str]:
    """A warning that `auto` is chosen for the device here, which need not be that of `tflops`."""
    if tflops is None or models.dtype != "auto" or device != "cpu":
        return []
    return [
        "--tflops with --dtype auto: figures are for float32, the choice on this CPU; a GPU would take "
        "bfloat16, half the bytes: give --dtype bfloat16"
    ]


def _assumptions(device: str, tflops: float | None) -> list[str]:
    peak = "measured here with matrix products" if tflops is None else "given by --tflops"
    return [
        f"the models reach {UTILISATION:.0%} of the peak, which was {peak}",
        "answers run to --max-new-tokens; waiting of the single generation steps for memory and kernel "
        "starts is not counted, which weighs on a GPU with a small --batch-size",
        "decoding and preprocessing take as long as on this machine, at the same time as the models"
        + (", on the same cores" if tflops is None and device == "cpu" else ""),
        "memory is weights, activations, key-value cache, frames and states of one batch; the libraries "
        "and the allocator's reserve come on top",
    ]
