"""What an extraction will take, before it runs: clips, bytes on disk, memory and hours.

The folder is planned exactly as `extract` plans it. The models are described by their configuration and
processors; their weights are neither needed nor read. Clips and bytes hold as far as every clip succeeds;
hours and memory are estimates, and `assumptions` says what they rest on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thinkjepa.cache import ArraySpec, ClipRow, Failure
from thinkjepa.stages.data.decoding.client import DecodeError, VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings, PlannedFolder, plan_folder, record
from thinkjepa.stages.data.repeated_frames import describe_repeats
from thinkjepa.stages.data.videos import find_videos
from thinkjepa.stages.device import choose_device
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.encoder.base import VideoEncoder
from thinkjepa.stages.extract.encoder.families import open_encoder
from thinkjepa.stages.extract.figures import (
    Estimate,
    FolderEstimate,
    MemoryFigures,
    ModelFigures,
    known_clip_bytes,
    stored_bytes,
)
from thinkjepa.stages.extract.models.costs import (
    EncoderCosts,
    PromptSizes,
    ThinkerCosts,
    encoder_costs,
    seen_size,
    thinker_costs,
)
from thinkjepa.stages.extract.models.pair import latent_arrays
from thinkjepa.stages.extract.models.runtime import choose_dtype, decoder_beside, quiet_transformers
from thinkjepa.stages.extract.models.weights import ModelUnavailableError, find_model
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.thinker.contract import TYPICAL_TOKENS, thinker_arrays
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.extract.work.frames import RAW_BYTES, ClipDecoding, see, watch
from thinkjepa.stages.progress import Progress

UTILISATION = 0.3
"""Share of the peak that the models reach: an assumption. V-JEPA 2 ViT-L, float32, on two CPU cores reached
0.4 of the rate that `measured_tflops` gave there."""

MEASURED_CLIPS = 3

PEAK_SECONDS = 1.0
CPU_MATRIX_SIDE = 1024
ACCELERATOR_MATRIX_SIDE = 8192
"""A product of this side is 1.1 TFLOP: long against the start of a kernel. A CPU is busy with 2 GFLOP."""

STATE_COPIES = 3
"""Times a batch's hidden states lie in memory: as captured, cut to its length, being written."""

LATENT_COPIES = 2
"""Of the encoder's latents: one batch leaves the model while the one before is written."""

PREPARED_BATCHES = 2
"""Batches of preprocessed frames: one is in the models, the next one comes from the decoder."""

FRAME_COPIES = 2
"""Times decoded frames lie in memory while they are preprocessed: as decoded, and as tensor."""

TERA = 1e12


@dataclass(frozen=True, slots=True)
class DescribedModels:
    """The two models without weights, what a forward of each costs, and the arrays they fill."""

    thinker: HookedThinker
    encoder: VideoEncoder
    thinker_costs: ThinkerCosts
    encoder_costs: EncoderCosts
    thinker_arrays: tuple[ArraySpec, ...]
    encoder_arrays: tuple[ArraySpec, ...]
    window_frames: tuple[int, ...]
    """Frames of each window that goes through the encoder."""

    @classmethod
    def find(cls, settings: ModelSettings, clips: ClipSettings, *, device: str) -> DescribedModels:
        """Find configuration and processors. Raises StageError with the remedy."""
        quiet_transformers()
        place = choose_device(device)
        dtype = choose_dtype(settings.dtype, place)
        seeing = find_model(settings.thinker, revision=settings.revision, role="thinker", need_weights=False)
        dense = find_model(
            settings.encoder, revision=settings.encoder_revision, role="encoder", need_weights=False
        )
        thinker = HookedThinker(seeing, settings, dtype=dtype, device=place)
        encoder = open_encoder(dense, dtype=dtype, device=place)
        thinker.load_processor()
        encoder.load_processor()
        return cls(
            thinker=thinker,
            encoder=encoder,
            thinker_costs=thinker_costs(thinker),
            encoder_costs=encoder_costs(encoder),
            thinker_arrays=thinker_arrays(thinker.layers, width=thinker.width, dtype=dtype),
            encoder_arrays=latent_arrays(encoder, clips),
            window_frames=(clips.observed_frames, *[clips.future_frames] * clips.future_windows),
        )

    @property
    def window_sequences(self) -> tuple[Sequence[int], ...]:
        """Tokens that attend to each other, of each window."""
        return tuple(map(self.encoder.sequences, self.window_frames))

    @property
    def window_tokens(self) -> tuple[int, ...]:
        """Tokens of each window."""
        return tuple(map(sum, self.window_sequences))

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.thinker.dtype)
        return dtype


def estimate(
    videos: Path,
    *,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
    tflops: float | None,
    progress: Progress,
) -> FolderEstimate:
    """What `extract` will take with the same settings; nothing is written. An Estimate, or what is known
    without the models where a hub's one is out of reach.

    `tflops` is the peak of the machine that will extract, TFLOP/s; None measures the one here. Raises
    StageError for wrong use.
    """
    if tflops is not None and not (math.isfinite(tflops) and tflops > 0):
        raise StageError(f"--tflops {tflops:g}: give a number above 0")
    files = find_videos(videos)
    try:
        described = DescribedModels.find(models, clips, device=execution.device)
    except ModelUnavailableError as error:
        return _estimate_without_models(
            files, videos, clips, models=models, execution=execution, why=str(error), progress=progress
        )
    device = described.thinker.device.type
    with decoder_beside(device, timeout_s=execution.decode_timeout) as decoder:
        planned = plan_folder(files, videos, clips, decoder=decoder, progress=progress)
        prompts = PromptSizes.count(planned.clips, planned.videos, described.thinker)
        decode_times_s = _measured_decoding(planned, described, prompts, decoder, progress)
    batch_size = execution.clips_per_batch("cuda" if tflops else device)
    peak = tflops or measured_tflops(described.thinker.device, described.torch_dtype)
    thinker = thinker_figures(planned.clips, described, prompts)
    encoder = encoder_figures(len(planned.clips), described)
    model_s = (thinker.total_flops + encoder.total_flops) / (peak * TERA * UTILISATION)
    decode_s = len(planned.clips) * sum(decode_times_s) / max(1, len(decode_times_s))
    return Estimate(
        **_folder_figures(planned, execution),
        device=described.thinker.device.type,
        dtype=described.thinker.dtype,
        batch_size=batch_size,
        thinker=thinker,
        encoder=encoder,
        disk_bytes=thinker.disk_bytes + encoder.disk_bytes,
        memory=memory_figures(planned, described, prompts, batch_size=batch_size),
        tflops=peak,
        tflops_measured=tflops is None,
        utilisation=UTILISATION,
        model_hours=model_s / 3600,
        decode_hours=decode_s / 3600,
        decode_clips=len(decode_times_s),
        warnings=[
            *_repeat_warning(planned),
            *prompts.problems(planned.clips),
            *_precision_warning(models, described, tflops),
        ],
        assumptions=_assumptions(described, tflops),
    )


def _folder_figures(planned: PlannedFolder, execution: ExecutionSettings) -> dict[str, Any]:
    """The figures of a plan, which no model has a part in."""
    windows = [(clip.observed_frames, *clip.future_frames) for clip in planned.clips]
    return {
        "videos": planned.num_videos,
        "video_hours": planned.duration_s / 3600,
        "clips": len(planned.clips),
        "thinker_frames": sum(len(clip.thinker_frames) for clip in planned.clips),
        "encoder_windows": sum(map(len, windows)),
        "encoder_frames": sum(len(window) for of_clip in windows for window in of_clip),
        "failed_videos": len({failure.video for failure in planned.failures}),
        "allowed_failed_videos": execution.failure_limit(num_videos=planned.num_videos),
        "failures": planned.failures,
        "repeats": planned.repeats,
        "dense_fps": planned.fps,
        "repeated_frames": planned.repeated_frames,
    }


def _repeat_warning(planned: PlannedFolder) -> list[str]:
    return [text] if (text := describe_repeats(planned.repeated_frames, fps=planned.fps)) else []


def _estimate_without_models(
    files: Sequence[Path],
    videos: Path,
    clips: ClipSettings,
    *,
    models: ModelSettings,
    execution: ExecutionSettings,
    why: str,
    progress: Progress,
) -> FolderEstimate:
    """What the videos alone say, and the published shapes of well-known models."""
    dtype = choose_dtype(models.dtype, choose_device(execution.device))
    clip_bytes = known_clip_bytes(models, clips, dtype=dtype)
    with VideoDecoder(timeout_s=execution.decode_timeout) as decoder:
        planned = plan_folder(files, videos, clips, decoder=decoder, progress=progress)
    known = (
        f"disk is by the models' published shapes, with {TYPICAL_TOKENS:,} thinker tokens a clip"
        if clip_bytes
        else "disk is not known: the models are none of the well-known ones"
    )
    return FolderEstimate(
        **_folder_figures(planned, execution),
        dtype=dtype,
        disk_bytes=None if clip_bytes is None else len(planned.clips) * sum(clip_bytes),
        warnings=[*_repeat_warning(planned), f"tokens, memory and hours need the models: {why}"],
        assumptions=[known],
    )


def measured_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of square matrix products in `dtype`, over about a second."""
    side = CPU_MATRIX_SIDE if device.type == "cpu" else ACCELERATOR_MATRIX_SIDE
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    float((matrix @ matrix)[0, 0])
    started, products = time.perf_counter(), 0
    while (seconds := time.perf_counter() - started) < PEAK_SECONDS:
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        products += 1
    return max(1, products) * 2 * side**3 / seconds / TERA


def thinker_figures(
    clips: Sequence[ClipRow], described: DescribedModels, prompts: PromptSizes
) -> ModelFigures:
    """Clips of a frame size that the processor refuses cost nothing; those too long are not stored."""
    sizes = [size for clip in clips if (size := prompts.of(clip)) is not None]
    kept = [prompts.num_tokens(size) for size in sizes if prompts.fits(size)]
    costs = described.thinker_costs
    array_bytes = {
        spec.name: sum(stored_bytes(spec, num_tokens=number) for number in kept)
        for spec in described.thinker_arrays
    }
    lengths = [prompts.num_tokens(size) for size in sizes]
    return ModelFigures(
        model=described.thinker.folder.name,
        parameters=costs.parameters,
        weights_bytes=costs.parameters * described.torch_dtype.itemsize,
        tokens_per_clip=[min(lengths), max(lengths)] if lengths else None,
        total_flops=sum(costs.flops(size, new_tokens=prompts.new_tokens) for size in sizes),
        disk_bytes=sum(array_bytes.values()),
        array_bytes=array_bytes,
    )


def encoder_figures(num_clips: int, described: DescribedModels) -> ModelFigures:
    """Every clip costs the same: frames are cropped to the encoder's size."""
    costs, tokens = described.encoder_costs, described.window_tokens
    array_bytes = {
        spec.name: num_clips * stored_bytes(spec, num_tokens=0) for spec in described.encoder_arrays
    }
    return ModelFigures(
        model=described.encoder.folder.name,
        parameters=costs.parameters,
        weights_bytes=costs.parameters * described.torch_dtype.itemsize,
        tokens_per_clip=[sum(tokens)] * 2 if num_clips else None,
        total_flops=num_clips
        * sum(costs.flops(number) for part in described.window_sequences for number in part),
        disk_bytes=sum(array_bytes.values()),
        array_bytes=array_bytes,
    )


def memory_figures(
    planned: PlannedFolder, described: DescribedModels, prompts: PromptSizes, *, batch_size: int
) -> MemoryFigures:
    """A batch of the largest clips: what of it is held at the same time, allocators' overhead left out."""
    batch = min(batch_size, len(planned.clips))
    item_bytes = described.torch_dtype.itemsize
    thinker, encoder = described.thinker_costs, described.encoder_costs
    longest = max(prompts.sizes.values(), key=lambda size: size.prompt_tokens, default=None)
    num_tokens = prompts.num_tokens(longest) if longest else 0
    sizes = {video.info.size_px for video in planned.videos.values()}
    seen = {seen_size(size, described.thinker.settings.thinker_size) for size in sizes}
    seen_frame = 3 * max((width * height for width, height in seen), default=0)
    num_thinker_frames = max((len(clip.thinker_frames) for clip in planned.clips), default=0)
    window_pixels = sum(described.window_frames) * 3 * math.prod(described.encoder.frame_px)
    latent_values = sum(described.window_tokens) * described.encoder.width
    thinker_live = thinker.live_values(longest) if longest else 0
    return MemoryFigures(
        weights_bytes=(thinker.parameters + encoder.parameters) * item_bytes,
        activation_bytes=batch
        * item_bytes
        * max(thinker_live, encoder.live_values(max(described.window_tokens))),
        key_value_bytes=batch * item_bytes * thinker.cached_values(num_tokens),
        frame_bytes=PREPARED_BATCHES * batch * ((longest.pixel_bytes if longest else 0) + window_pixels)
        + num_thinker_frames * seen_frame
        + window_pixels
        + FRAME_COPIES * RAW_BYTES,
        state_bytes=batch
        * item_bytes
        * (
            STATE_COPIES * len(described.thinker.layers) * num_tokens * described.thinker.width
            + LATENT_COPIES * latent_values
        ),
    )


def _measured_decoding(
    planned: PlannedFolder,
    described: DescribedModels,
    prompts: PromptSizes,
    decoder: VideoDecoder,
    progress: Progress,
) -> list[float]:
    """Seconds to decode and preprocess a clip, as extraction does, for a few clips spread over the plan."""
    chosen = planned.clips[:: max(1, math.ceil(len(planned.clips) / MEASURED_CLIPS))]
    decoding = ClipDecoding(decoder, planned.videos)
    times_s = []
    described.encoder.preprocess(np.zeros((2, 32, 32, 3), dtype=np.uint8))  # its first call is slower
    progress.begin("measuring", total=len(chosen), unit="clips")
    for clip in chosen:
        started = time.perf_counter()
        try:
            scene = see(clip, described.thinker, decoding)
            if prompts.of(clip):
                described.thinker.prepare(scene)
            watch(clip, described.encoder, decoding)
        except DecodeError as error:
            failure = Failure(clip.video, "decode", str(error), clip.clip_id, clip.video_digest)
            record([failure], planned.failures, progress)
        else:
            times_s.append(time.perf_counter() - started)
        progress.advance(1)
    return times_s


def _precision_warning(models: ModelSettings, described: DescribedModels, tflops: float | None) -> list[str]:
    """`auto` is chosen for the device here, which need not be the one that `tflops` belongs to."""
    if tflops is None or models.dtype != "auto" or described.thinker.device.type != "cpu":
        return []
    return [
        "--tflops with --dtype auto: figures are for float32, the choice on this CPU; a GPU would take "
        "bfloat16, half the bytes: give --dtype bfloat16"
    ]


def _assumptions(described: DescribedModels, tflops: float | None) -> list[str]:
    peak = "measured here with matrix products" if tflops is None else "given by --tflops"
    return [
        f"the models reach {UTILISATION:.0%} of the peak, which was {peak}",
        "answers run to --max-new-tokens; waiting of the single generation steps for memory and kernel "
        "starts is not counted, which weighs on a GPU with a small --batch-size",
        "decoding and preprocessing take as long as on this machine, at the same time as the models"
        + (", on the same cores" if tflops is None and described.thinker.device.type == "cpu" else ""),
        "memory is weights, activations, key-value cache, frames and states of one batch; the libraries "
        "and the allocator's reserve come on top",
    ]
