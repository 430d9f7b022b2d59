"""Measure a trained run on one side of its split, next to latent persistence on the same clips.

RUN/eval-<split>.json        whole-split means, and the curve over the horizon
RUN/eval-<split>-clips.csv   one row per clip, so that runs can be compared clip by clip
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thinkjepa.cache import ClipRow
from thinkjepa.cache.disk import replace_file
from thinkjepa.stages.data.splits import as_side
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.evaluate.horizon import horizon_summary
from thinkjepa.stages.evaluate.latent_metrics import LATENT_METRICS, latent_metrics
from thinkjepa.stages.evaluate.trained_run import TrainedRun
from thinkjepa.stages.json_files import write_json
from thinkjepa.stages.train.batches import batches_in_order
from thinkjepa.stages.train.features import TRAINED_WINDOW, Features
from thinkjepa.stages.train.losses import persistence
from thinkjepa.stages.train.model import ForecastModel
from thinkjepa.stages.train.settings import Device

EVALUATION_SCHEMA = "thinkjepa.eval.v1"

Scores = Mapping[str, Mapping[str, Tensor]]
"""Forecast ("model" or "persistence") -> metric -> `(clip, step)`."""


def evaluate(
    run_dir: Path, *, split: str = "test", cache_dir: Path | None = None, device: Device = "auto"
) -> dict[str, Any]:
    """Latent metrics of a run on `split` (train, validation or test); written to the run and returned.

    Arithmetic is fp32. `cache_dir` overrides the cache that the run names; `device` is cpu, or auto for CUDA
    where there is one. Clips are those of the run's own split, all of which
    must still have features.
    """
    side = as_side(split)
    run = TrainedRun.open(run_dir)
    features = run.features(cache_dir)
    clips = _rows_of(run.clip_ids(side), features)
    clip_ids = [clip.clip_id for clip in clips]
    batches = batches_in_order(clip_ids, batch_size=run.clips_per_forward)
    scores = score(run.model(), features, batches, device=_torch_device(device))
    result = {
        "schema": EVALUATION_SCHEMA,
        "split": side,
        "variant": run.variant,
        "checkpoint_sha256": run.record["checkpoint"]["sha256"],
        "num_clips": len(clips),
        "latent": {forecast: _means(metrics) for forecast, metrics in scores.items()},
        "horizon": horizon_curve(scores, clips, tubelet=int(features.encoder.origin["tubelet"])),
    }
    replace_file(run_dir / f"eval-{side}-clips.csv", clip_table(scores, clip_ids).encode())
    write_json(run_dir / f"eval-{side}.json", result)
    return result


@torch.no_grad()
def score(
    model: ForecastModel, features: Features, batches: Iterable[Sequence[str]], *, device: torch.device
) -> Scores:
    """Metrics of the model and of latent persistence, of every clip in the batches' order, at every step."""
    model = model.to(device).eval()
    parts: dict[str, list[dict[str, Tensor]]] = {"model": [], "persistence": []}
    for clip_ids in batches:
        batch = features.batch(clip_ids, device)
        predicted = model(batch.observed, batch.pooled, batch.last_pose_m, batch.tokens).latents
        repeated = persistence(batch.observed, future_steps=batch.future.shape[1])
        for name, forecast in (("model", predicted), ("persistence", repeated)):
            parts[name].append(latent_metrics(forecast, batch.future))
    return {
        forecast: {name: torch.cat([part[name] for part in list_]).cpu() for name in LATENT_METRICS}
        for forecast, list_ in parts.items()
    }


def horizon_curve(scores: Scores, clips: Sequence[ClipRow], *, tubelet: int) -> list[dict[str, Any]]:
    """One record per latent step: its horizon in seconds, and each forecast's means at that step."""
    steps = horizon_summary(clips, window=TRAINED_WINDOW, tubelet=tubelet)
    return [
        {**record, **{name: _means(metrics, step=step) for name, metrics in scores.items()}}
        for step, record in enumerate(steps)
    ]


def clip_table(scores: Scores, clip_ids: Sequence[str]) -> str:
    """CSV with one row per clip: each forecast's metrics, means over the horizon."""
    columns = {
        f"{forecast}_{name}": values.mean(dim=1).tolist()
        for forecast, metrics in scores.items()
        for name, values in metrics.items()
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip_id", *columns])
    writer.writerows(zip(clip_ids, *columns.values(), strict=True))
    return text.getvalue()


def _means(metrics: Mapping[str, Tensor], *, step: int | None = None) -> dict[str, float]:
    """Means over clips, at one step or over all of them."""
    return {
        name: float(values.mean() if step is None else values[:, step].mean())
        for name, values in metrics.items()
    }


def _torch_device(device: Device) -> torch.device:
    return torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu")


def _rows_of(clip_ids: Sequence[str], features: Features) -> list[ClipRow]:
    rows = {clip.clip_id: clip for clip in features.clips().only(clip_ids)}
    if lost := [clip_id for clip_id in clip_ids if clip_id not in rows]:
        raise StageError(
            f"{len(lost)} of {len(clip_ids)} clips of the run have no features in "
            f"{str(features.cache.path)!r} any more, the first is {lost[0]!r}: extract them, or train again"
        )
    return [rows[clip_id] for clip_id in clip_ids]
