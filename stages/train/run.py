"""One training run: from a cache to a folder with weights, metrics, curve, split and all that was decided.

RUN/run.json       settings, feature sets, model shape, split digest, versions, weights file; no times
RUN/split.json     the split, with the clips of each side
RUN/metrics.json   losses, best epoch, counts of clips
RUN/curve.csv      losses by epoch, and curve.png
RUN/checkpoints/   model-<digest>.safetensors
RUN/resume.safetensors   only while a run is unfinished
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from thinkjepa.cache import CacheError, FeatureCache
from thinkjepa.cache.disk.lock import WAIT, WriteLock
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.tracked_files import Selection, selected_clip_ids
from thinkjepa.stages.device import choose_device, chosen_threads, device_name, local_processes, torch_threads
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.json_files import read_json, write_json
from thinkjepa.stages.train.costs import count_parameters, memory_bytes, thinker_tokens
from thinkjepa.stages.train.data.batches import batches_in_order
from thinkjepa.stages.train.data.features import any_labels, choose_features
from thinkjepa.stages.train.data.statistics import (
    JointStatistics,
    StateStatistics,
    joint_statistics,
    pooled_statistics,
    token_statistics,
)
from thinkjepa.stages.train.events import Report, RunStarts, report_nothing
from thinkjepa.stages.train.fit.loop import TrainProgress, fit, persistence_loss, untrained_loss
from thinkjepa.stages.train.fit.state import FitState, ResumeFile, save_weights
from thinkjepa.stages.train.fit.tracking import chosen_tracker, tracked, write_curve
from thinkjepa.stages.train.init_from import WarmStart, start_from
from thinkjepa.stages.train.model.flex_attention import check_kernel, use_kernel
from thinkjepa.stages.train.model.forecast import ForecastModel, build_model
from thinkjepa.stages.train.plan import (
    RunPlan,
    divide_clips,
    plan_run,
    run_differences,
    same_run,
)
from thinkjepa.stages.train.randomness import epoch_order, repeatable_kernels
from thinkjepa.stages.train.settings import TrainSettings

RESUME = "resume.safetensors"
STATISTICS_CLIPS = 4096  # enough for a mean and spread per dim; reading more takes time and adds nothing
STATISTICS_BATCH = 256
TOKEN_STATISTICS_CLIPS = 64  # a thousand tokens each


def train(
    cache_dir: Path,
    out_dir: Path,
    settings: TrainSettings,
    *,
    thinker_set: str | None,
    encoder_set: str | None,
    split: SplitRule,
    progress: TrainProgress,
    selection: Selection | None = None,
    warm_start: WarmStart | None = None,
    on_wait: Callable[[str], None] | None = None,
    report: Report = report_nothing,
) -> dict[str, Any]:
    """Train one model on a cache, write the run to `out_dir` and return its metrics.

    `thinker_set` and `encoder_set` name feature sets (or the beginning of their names); None takes the only
    one there is. A `selection` names those that are read and limits the run to its clips; without one, all
    clips count. A run that was interrupted continues. `warm_start` is the checkpoint that settings.init_from
    names. One process at a time writes a folder: another is refused, or waits and is told so by `on_wait`.
    Of several processes the main one reports. Raises StageError or CacheError for what its user can put
    right.
    """
    accelerator = make_accelerator(settings, out_dir)
    if not accelerator.is_main_process:
        progress, report = ignore_steps, report_nothing
    recorded = recorded_threads(out_dir)
    threads = settings.threads or recorded
    if not settings.threads and recorded not in (0, chosen_threads(0)):
        report(f"threads          {recorded}, as this run was begun with: its results depend on them")
    with torch_threads(chosen_threads(threads, processes=local_processes())):
        features = choose_features(
            FeatureCache.open(cache_dir),
            settings,
            thinker_set=selection.thinker or None if selection else thinker_set,
            encoder_set=selection.encoder if selection else encoder_set,
            only=selected_clip_ids(cache_dir, selection) if selection else None,
        )
        settings = replace(
            settings,
            task="trajectory" if features.supervision else "latent",
            device=settings.device.partition(":")[0],  # a run is the same on any GPU
        )
        with accelerator.main_process_first():  # one process makes the split, the others read it
            clips = divide_clips(features, cache_dir, split)
        processes = accelerator.num_processes
        plan = plan_run(cache_dir, settings, features, clips, num_processes=processes, warm_start=warm_start)
        with only_writer(accelerator, out_dir, on_wait=on_wait):
            return finished_metrics(out_dir, plan) or carry_out(plan, out_dir, accelerator, progress, report)


def recorded_threads(out_dir: Path) -> int:
    """Threads that the run in this folder was begun with, on which its bits depend; 0 where there is none."""
    if (out_dir / "run.json").is_file():
        return int(read_json(out_dir / "run.json").get("threads", 0))
    return ResumeFile(out_dir / RESUME, key="").threads()


@contextmanager
def only_writer(
    accelerator: Accelerator, out_dir: Path, *, on_wait: Callable[[str], None] | None
) -> Iterator[None]:
    """Hold the run's folder: the main process does, for all processes. Raises StageError where it is held."""
    refusal, refused = "another process writes this run", torch.zeros(1, device=accelerator.device)
    with ExitStack() as held:
        if accelerator.is_main_process:
            try:
                held.enter_context(
                    WriteLock(out_dir, remedy=f"{WAIT}, or choose another --out", on_wait=on_wait)
                )
            except CacheError as error:
                refusal, refused = str(error), refused + 1
        if accelerator.reduce(refused, reduction="sum").item():
            raise StageError(refusal)
        yield


def carry_out(
    plan: RunPlan, out_dir: Path, accelerator: Accelerator, progress: TrainProgress, report: Report
) -> dict[str, Any]:
    """Train as planned, from where an earlier process stopped, write the run and return its metrics."""
    settings, clips = plan.settings, plan.clips
    resume = ResumeFile(out_dir / RESUME, plan.key)
    if resume.holds_another:
        report(f"{str(out_dir)!r} has an unfinished run of other settings or features: it begins anew")
    report(start_of(plan, resume.peek(), accelerator))
    with repeatable_kernels(accelerator.device), tracked(accelerator, settings, out_dir):
        model = untrained_model(plan)
        before = warm_started(model, plan, accelerator)
        state = fit(
            model,
            plan.features,
            train_ids=clips.ids["train"],
            validation_ids=clips.ids["validation"],
            settings=settings,
            accelerator=accelerator,
            resume=resume,
            progress=progress,
            report=report,
        )
    metrics = run_metrics(plan, state) | before
    if accelerator.is_main_process:
        write_run(out_dir, plan, state, metrics)
        resume.remove()
    accelerator.wait_for_everyone()
    return metrics


def start_of(plan: RunPlan, done: FitState, accelerator: Accelerator) -> RunStarts:
    """What is said before the first step of a run of which `done` is done."""
    num_parameters = count_parameters(plan.shape)["total"]
    num_tokens = thinker_tokens(plan.features)
    train_ids, batch_size = plan.clips.ids["train"], plan.settings.batch_size
    supervision = plan.features.supervision
    return RunStarts(
        variant=plan.settings.variant,
        num_joints=len(supervision.joints) if supervision else 0,
        has_labels=any_labels(plan.features.cache, plan.features.clips),
        unknown_joints=supervision.never_known if supervision else (),
        device=device_name(accelerator.device),
        processes=accelerator.num_processes,
        threads=torch.get_num_threads(),
        parameters=num_parameters,
        memory_bytes=memory_bytes(plan.shape, plan.settings, num_tokens, num_parameters=num_parameters),
        sizes=plan.clips.sizes,
        grouping=plan.clips.stored.grouping,
        split_warning=plan.clips.warning,
        epochs=plan.settings.epochs,
        epochs_done=len(done.curve),
        steps_done=done.partial.steps_done,
        steps_per_epoch=-(-len(train_ids) // batch_size),
    )


def ignore_steps(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
    """The progress of a process that says nothing."""


def finished_metrics(out_dir: Path, plan: RunPlan) -> dict[str, Any] | None:
    """The metrics of this very run where it is finished, None where there is no finished run.

    Raises StageError where the folder holds another finished run: its results are never overwritten.
    """
    if not (out_dir / "run.json").is_file():
        return None
    record = read_json(out_dir / "run.json")
    if same_run(record, plan.record):
        return read_json(out_dir / "metrics.json")
    raise StageError(
        f"{str(out_dir)!r} holds a finished run that differs in {run_differences(record, plan.record)}: "
        "choose another --out, or remove it"
    )


def make_accelerator(settings: TrainSettings, out_dir: Path) -> Accelerator:
    """accelerate's view of the processes and device; it also reads what `accelerate launch` set.

    Raises StageError where the settings ask for what the device cannot do.
    """
    device = choose_device(settings.device)
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise StageError(f"--device {settings.device}: several processes take a GPU each; give cuda")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # accelerate takes the current one
    precision = {"fp32": "no", "bf16": "bf16"}[settings.precision]
    AcceleratorState._reset_state()  # else a second run in one process cannot have another precision
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        log_with=chosen_tracker(settings.tracker),
        project_dir=str(out_dir),
    )
    check_kernel(settings.attention_kernel, accelerator.device)
    return accelerator


def untrained_model(plan: RunPlan) -> ForecastModel:
    """The model before training, in units of the training clips' thinker states and joints."""
    model = build_model(plan.shape, seed=plan.settings.seed)
    use_kernel(model, plan.settings.attention_kernel)
    if plan.shape.thinker is not None:
        model.forecaster.set_thinker_statistics(pooled_states(plan), token_states(plan))
    if model.head is not None:
        model.head.set_joint_statistics(target_statistics(plan))
    return model


def warm_started(model: ForecastModel, plan: RunPlan, accelerator: Accelerator) -> dict[str, float]:
    """Put the checkpoint's weights into `model`; its loss before training, and that of random weights.

    Without a checkpoint nothing is done or measured.
    """
    if plan.warm_start is None:
        return {}
    validation_ids = plan.clips.ids["validation"]
    random_loss = untrained_loss(model, plan.features, validation_ids, plan.settings, accelerator)
    start_from(model, plan.warm_start)
    return {
        "initial_validation_loss": untrained_loss(
            model, plan.features, validation_ids, plan.settings, accelerator
        ),
        "random_start_validation_loss": random_loss,
    }


def pooled_states(plan: RunPlan) -> StateStatistics:
    """Mean and spread of the thinker's pooled states over the training clips."""
    return pooled_statistics(plan.features.pooled(batch) for batch in statistics_batches(plan))


def token_states(plan: RunPlan) -> StateStatistics | None:
    """The same of its tokens, None where they are not read."""
    if not plan.features.token_kinds:
        return None
    clip_ids = [clip_id for batch in statistics_batches(plan) for clip_id in batch][:TOKEN_STATISTICS_CLIPS]
    return token_statistics(plan.features.tokens([clip_id]).states[0] for clip_id in clip_ids)


def target_statistics(plan: RunPlan) -> JointStatistics:
    """Mean and spread of what the head predicts over the training clips: positions or displacements."""
    device = torch.device("cpu")
    batches = (plan.features.trajectories(batch, device) for batch in statistics_batches(plan))
    if plan.settings.anchor == "none":
        return joint_statistics((batch.future_m, batch.future_confidence) for batch in batches)
    return joint_statistics(
        (
            batch.future_m - batch.last_pose_m[:, None, None],
            batch.future_confidence * batch.last_known[:, None, None],
        )
        for batch in batches
    )


def statistics_batches(plan: RunPlan) -> list[tuple[str, ...]]:
    """The training clips, or a fixed sample where there are many."""
    train_ids = plan.clips.ids["train"]
    order = epoch_order(len(train_ids), seed=0, epoch=0)[:STATISTICS_CLIPS]
    return batches_in_order([train_ids[index] for index in sorted(order)], batch_size=STATISTICS_BATCH)


def run_metrics(plan: RunPlan, state: FitState) -> dict[str, Any]:
    """Losses of the best epoch, latent persistence on the same validation clips, and counts.

    Clips without labels are not in the run; `unlabelled` counts them and gives the first one's reason.
    """
    best, last = state.best, state.curve[-1]
    persistence = persistence_loss(
        plan.features, plan.clips.ids["validation"], batch_size=plan.settings.clips_per_forward
    )
    return {
        "train_loss": best.train_loss,
        "validation_loss": best.validation_loss,
        "validation_latent_error": best.validation_latent_error,
        "best_epoch": best.epoch,
        "epochs": last.epoch,
        "last_train_loss": last.train_loss,
        "last_validation_loss": last.validation_loss,
        "persistence_validation_loss": persistence,
        "num_clips": {side: len(ids) for side, ids in plan.clips.ids.items()},
        **_joint_metrics(plan, state),
    }


def _joint_metrics(plan: RunPlan, state: FitState) -> dict[str, Any]:
    """What only a run with trajectories has to say."""
    if (supervision := plan.features.supervision) is None:
        return {}
    without = supervision.without
    reason = without[min(without)] if without else ""
    return {
        "validation_distance_m": state.best.validation_distance_m,
        "num_joints": len(supervision.joints),
        "unlabelled": {"clips": len(without), "first": reason},
    }


def write_run(out_dir: Path, plan: RunPlan, state: FitState, metrics: Mapping[str, Any]) -> None:
    """Write all files of a run; `run.json` last, so that where it is new, the rest is, too."""
    checkpoint = save_weights(out_dir, state.best_weights)
    write_curve(out_dir, state.curve, persistence_loss=metrics["persistence_validation_loss"])
    write_json(out_dir / "split.json", plan.clips.to_json())
    write_json(out_dir / "metrics.json", metrics)
    write_json(out_dir / "run.json", {**plan.record, "checkpoint": asdict(checkpoint)})
