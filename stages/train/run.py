"""One training run: from a cache to a folder with weights, metrics, curve, split and a record of it all.

RUN/run.json       settings, feature sets, model shape, digests of clips, versions, weights file; no times
RUN/split.json     the split, with the clips of each split name
RUN/oracle.json    classes of the clips, of a run with --guidance-source oracle:COLUMN
RUN/metrics.json   losses, best epoch, counts of clips
RUN/curve.csv      losses by epoch, and curve.png
RUN/checkpoints/   model-<digest>.safetensors
RUN/resume.safetensors   only while a run is unfinished
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.data.labels.findings import describe_far, far_apart
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.tracked_files import Selection, selected_clip_ids
from thinkjepa.stages.data.videos import SUFFIXES
from thinkjepa.stages.device import chosen_threads, device_name, local_processes, torch_threads
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.json_files import read_json, write_json
from thinkjepa.stages.train.costs import count_parameters, memory_bytes, thinker_tokens
from thinkjepa.stages.train.data.features import Features, any_labels, choose_features
from thinkjepa.stages.train.data.ridge import fit_ridge
from thinkjepa.stages.train.data.sources import ORACLE_FILE
from thinkjepa.stages.train.data.statistics import latent_statistics, thinker_statistics
from thinkjepa.stages.train.events import Report, RunStarts, report_nothing
from thinkjepa.stages.train.fit.loop import TrainProgress, fit, untrained_loss
from thinkjepa.stages.train.fit.losses import persistence_loss
from thinkjepa.stages.train.fit.processes import make_accelerator, only_writer
from thinkjepa.stages.train.fit.state import FitState, ResumeFile, save_weights
from thinkjepa.stages.train.fit.tracking import tracked, write_curve
from thinkjepa.stages.train.init_from import WarmStart, start_from
from thinkjepa.stages.train.model.flex_attention import use_kernel
from thinkjepa.stages.train.model.forecast import ForecastModel, build_model
from thinkjepa.stages.train.plan import (
    RunPlan,
    divide_clips,
    plan_run,
    run_differences,
    same_run,
    selecting_figure,
)
from thinkjepa.stages.train.randomness import repeatable_kernels
from thinkjepa.stages.train.settings import Task, TrainSettings

RESUME = "resume.safetensors"
RUN_FILES = ("run.json", RESUME, "split.json", "metrics.json", "tensorboard")


def ignore_steps(*, epoch: int, step: int, total_steps: int, loss: float) -> None:
    """Report no progress, as on all processes but the main one."""


def train(
    cache_dir: Path,
    out_dir: Path,
    settings: TrainSettings,
    *,
    thinker_set: str | None = None,
    encoder_set: str | None = None,
    history_set: str | None = None,
    split: SplitRule | None = None,
    progress: TrainProgress = ignore_steps,
    selection: Selection | None = None,
    warm_start: WarmStart | None = None,
    oracle_table: Path | None = None,
    on_wait: Callable[[str], None] | None = None,
    report: Report = report_nothing,
    owns_out_dir: bool = False,
) -> dict[str, Any]:
    """Train one model on a cache, write the run to `out_dir` and return its metrics.

    `thinker_set`, `encoder_set` and `history_set` name feature sets (or the beginning of their names). None
    takes the only one there is. A `selection` names those that are read and limits the run to its clips.
    Without `split` the default rule divides them. A run that was interrupted continues. `warm_start` is the
    checkpoint of settings.init_from, `oracle_table` the file of settings.oracle_table, None at its path.
    One process at a time writes a folder: another is refused, or waits after a call of `on_wait`. Of several
    processes the main one reports. An unfinished run of other settings or a folder of other files is refused,
    unless the caller `owns_out_dir`. Raises StageError or CacheError for all that a user can correct.
    """
    accelerator = make_accelerator(settings, out_dir)
    if not accelerator.is_main_process:
        progress, report = ignore_steps, report_nothing
    refuse_foreign_files(out_dir, owned=owns_out_dir)
    threads = asked_or_recorded_threads(settings, out_dir, report)
    with torch_threads(chosen_threads(threads, processes=local_processes())):
        features = choose_features(
            FeatureCache.open(cache_dir),
            settings,
            thinker_set=selection.thinker or None if selection else thinker_set,
            history_set=None if selection else history_set,
            encoder_set=selection.encoder if selection else encoder_set,
            only=selected_clip_ids(cache_dir, selection) if selection else None,
        )
        settings = resolved(settings, features)
        with accelerator.main_process_first():  # one process makes the split, the others read it
            clips = divide_clips(features, cache_dir, split or SplitRule(), share=settings.share)
        chosen = selecting_figure(settings, features, clips.ids["validation"])
        plan = plan_run(
            cache_dir,
            replace(settings, select_by=chosen),
            features,
            clips,
            num_processes=accelerator.num_processes,
            warm_start=warm_start,
            oracle_table=oracle_table,
        )
        with only_writer(accelerator, out_dir, on_wait=on_wait):
            if (metrics := finished_metrics(out_dir, plan)) is not None:
                return metrics
            resume = ResumeFile(out_dir / RESUME, plan.key, plan.record)
            drop_another_run(resume, plan, out_dir, owned=owns_out_dir, report=report)
            return carry_out(plan, resume, out_dir, accelerator, progress, report)


def resolved(settings: TrainSettings, features: Features) -> TrainSettings:
    """The settings with the task that the labels allow. A run is the same on any GPU."""
    task: Task = "trajectory" if features.supervision else "latent"
    return replace(settings, task=task, device=settings.device.partition(":")[0])


def drop_another_run(
    resume: ResumeFile, plan: RunPlan, out_dir: Path, *, owned: bool, report: Report
) -> None:
    """Report that another unfinished run, if there is one, is dropped.

    Raises StageError unless the caller owns the folder.
    """
    if not resume.holds_another:
        return
    apart = unfinished_differences(resume, plan)
    if not owned:
        raise StageError(
            f"{str(out_dir)!r} holds an unfinished run that differs in {apart}: repeat its "
            "settings to continue it, choose another --out, or remove the folder"
        )
    report(
        f"{str(out_dir)!r} has an unfinished run of other settings or features: it begins anew; "
        f"it differs in {apart}"
    )


def asked_or_recorded_threads(settings: TrainSettings, out_dir: Path, report: Report) -> int:
    """Threads of the settings, else those that the run in this folder was begun with, which are reported."""
    recorded = recorded_threads(out_dir)
    if not settings.threads and recorded not in (0, chosen_threads(0)):
        report(f"threads          {recorded}, as this run was begun with: its results depend on them")
    return settings.threads or recorded


def recorded_threads(out_dir: Path) -> int:
    """Threads of the run in this folder, on which its bits depend. 0 where there is none."""
    if (out_dir / "run.json").is_file():
        return int(read_json(out_dir / "run.json").get("threads", 0))
    return ResumeFile(out_dir / RESUME, key="").threads()


def refuse_foreign_files(out_dir: Path, *, owned: bool) -> None:
    """Raises StageError for a folder that holds files and no run, unless the caller owns it."""
    if owned or not out_dir.is_dir() or any((out_dir / name).exists() for name in RUN_FILES):
        return
    for path in sorted(out_dir.rglob("*")):
        name = path.relative_to(out_dir)
        is_visible_file = len(name.parts) == 1 and path.is_file() and path.name[0] != "."
        if path.suffix.lower() in SUFFIXES or is_visible_file:
            raise StageError(
                f"--out {str(out_dir)!r} holds other files and no run, e.g. {name.as_posix()!r}: "
                "choose a new or empty folder"
            )


def unfinished_differences(resume: ResumeFile, plan: RunPlan) -> str:
    """Names and values that tell the run in the file from the planned one."""
    found = resume.found_record()
    return run_differences(found, plan.record) if found else "settings or features"


def carry_out(
    plan: RunPlan,
    resume: ResumeFile,
    out_dir: Path,
    accelerator: Accelerator,
    progress: TrainProgress,
    report: Report,
) -> dict[str, Any]:
    """Train as planned, from where an earlier process stopped, write the run and return its metrics."""
    settings, clips = plan.settings, plan.clips
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
            groups=clips.groups,
        )
    metrics = run_metrics(plan, state) | before
    if accelerator.is_main_process:
        write_run(out_dir, plan, state, metrics)
        resume.remove()
    accelerator.wait_for_everyone()
    return metrics


def start_of(plan: RunPlan, done: FitState, accelerator: Accelerator) -> RunStarts:
    """The event before the first step of this process, in a run that has come as far as `done`."""
    num_parameters = count_parameters(plan.shape)["total"]
    num_tokens = thinker_tokens(plan.features)
    train_ids, batch_size = plan.clips.ids["train"], plan.settings.batch_size
    supervision = plan.features.supervision
    return RunStarts(
        variant=plan.settings.variant,
        num_joints=len(supervision.joints) if supervision else 0,
        has_labels=any_labels(plan.features.cache, plan.features.clips),
        unknown_joints=supervision.never_known if supervision else (),
        labels_warning=describe_far(far_apart(supervision)) if supervision else "",
        device=device_name(accelerator.device),
        processes=accelerator.num_processes,
        threads=torch.get_num_threads(),
        parameters=num_parameters,
        memory_bytes=memory_bytes(plan.shape, plan.settings, num_tokens, num_parameters=num_parameters),
        sizes=plan.clips.sizes,
        grouping=plan.clips.stored.grouping,
        split_warning=plan.clips.warning,
        without_tokens=plan.without_tokens,
        guidance_source=plan.features.source.describe(plan.clips.ids),
        epochs=plan.settings.epochs,
        select_by=plan.settings.select_by,
        epochs_done=len(done.curve),
        steps_done=done.partial.steps_done,
        steps_per_epoch=-(-len(train_ids) // batch_size),
    )


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


def untrained_model(plan: RunPlan) -> ForecastModel:
    """The model before training, standardized by the training clips' thinker states, latents and joints.

    The head starts at the ridge on observed poses, which reads validation clips for its strength alone.
    """
    model, train_ids = build_model(plan.shape, seed=plan.settings.seed), plan.clips.ids["train"]
    use_kernel(model, plan.settings.attention_kernel)
    if plan.shape.target.whitened:
        assert model.forecaster is not None, "whitened latents are forecast"
        model.forecaster.units.set_statistics(latent_statistics(plan.features, train_ids))
    if plan.shape.thinker is not None:
        model.set_thinker_statistics(*thinker_statistics(plan.features, train_ids))
    if model.head is not None:
        model.head.ridge.set_fit(fit_ridge(plan.features, train_ids, plan.clips.ids["validation"]))
    return model


def warm_started(model: ForecastModel, plan: RunPlan, accelerator: Accelerator) -> dict[str, float]:
    """Load the checkpoint's weights. Returns the loss before training, and that of random weights.

    Without a checkpoint it does nothing and returns nothing.
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


def run_metrics(plan: RunPlan, state: FitState) -> dict[str, Any]:
    """Losses of the best epoch, latent persistence on the same validation clips, and counts.

    What a run does not forecast, latents or joints, is left out. Clips without labels are not in a run with
    joints. `unlabelled` counts them and gives the first one's reason.
    """
    best, last = state.best, state.curve[-1]
    return {
        "train_loss": best.train_loss,
        "validation_loss": best.validation_loss,
        "best_epoch": best.epoch,
        "select_by": state.select_by,
        "epochs": last.epoch,
        "last_train_loss": last.train_loss,
        "last_validation_loss": last.validation_loss,
        "num_clips": {split_name: len(ids) for split_name, ids in plan.clips.ids.items()},
        **({"without_tokens": dict(plan.without_tokens)} if plan.without_tokens else {}),
        **_latent_figures(plan, state),
        **_joint_metrics(plan, state),
    }


def _latent_figures(plan: RunPlan, state: FitState) -> dict[str, float | None]:
    """Figures of a run that forecasts latents; none of another."""
    if not plan.shape.has_latents:
        return {}
    validation_ids, size = plan.clips.ids["validation"], plan.settings.clips_per_forward
    return {
        "validation_latent_error": state.best.validation_latent_error,
        "persistence_validation_loss": persistence_loss(plan.features, validation_ids, batch_size=size),
    }


def _joint_metrics(plan: RunPlan, state: FitState) -> dict[str, Any]:
    """Metrics of a run with trajectories; none of another."""
    if (supervision := plan.features.supervision) is None:
        return {}
    without = supervision.without
    reason = without[min(without)] if without else ""
    return {
        "validation_distance_m": state.best.validation_distance_m,
        "head_share": state.best.head_share,
        "num_joints": len(supervision.joints),
        "unlabelled": {"clips": len(without), "first": reason},
    }


def write_run(out_dir: Path, plan: RunPlan, state: FitState, metrics: Mapping[str, Any]) -> None:
    """Write all files of a run; `run.json` last, so that the other files are never older than it."""
    checkpoint = save_weights(out_dir, state.best_weights)
    write_curve(out_dir, state, persistence_loss=metrics.get("persistence_validation_loss"))
    write_json(out_dir / "split.json", plan.clips.to_json())
    if plan.features.source.kind == "oracle":
        write_json(out_dir / ORACLE_FILE, plan.features.source.to_json())
    write_json(out_dir / "metrics.json", metrics)
    best = {"by": state.select_by, "value": state.selected(state.best), "epoch": state.best.epoch}
    write_json(out_dir / "run.json", {**plan.record, "selection": best, "checkpoint": asdict(checkpoint)})
