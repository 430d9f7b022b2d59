"""All that determines a training run, decided before the first step: features, clips by side, model shape."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from thinkjepa.cache import TOKEN_KINDS, FeatureCache, differing, shown
from thinkjepa.stages.data.partition import (
    SPLIT_NAMES,
    SplitName,
    SplitRule,
    planned_partition,
    stored_partition,
)
from thinkjepa.stages.data.partitioned_clips import (
    PartitionedClips,
    PartitionOf,
    partition_clips,
    with_training_share,
)
from thinkjepa.stages.data.tracked_files import labels_digest
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.json_files import json_bytes, json_digest
from thinkjepa.stages.train.costs import TrainingCosts, training_costs
from thinkjepa.stages.train.data.feature_sets import set_records
from thinkjepa.stages.train.data.features import Features, choose_features
from thinkjepa.stages.train.data.oracle_table import columns_by_clip
from thinkjepa.stages.train.data.sources import GuidanceSource, oracle_source, shuffled_source
from thinkjepa.stages.train.data.states import settled_guidance
from thinkjepa.stages.train.init_from import WarmStart
from thinkjepa.stages.train.model.config import (
    WITHOUT_THINKER,
    HeadShape,
    ModelShape,
    parse_source,
    reads_joints_directly,
)
from thinkjepa.stages.train.model.reading import TOKEN_PARTS
from thinkjepa.stages.train.settings import SelectBy, TrainSettings

RUN_SCHEMA = "thinkjepa.run.v2"
LIBRARIES = ("thinkjepa", "torch", "accelerate", "safetensors", "numpy", "zarr")
MOVABLE: Mapping[str, Any] = {"cache": None, "checkpoint": None, "selection": None}
"""Fields of `run.json` in which records of one run may differ, emptied: a cache may have moved."""
MOST_CAUSES = 6
"""Differences that a refusal names, as one changed preset changes a dozen settings."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """All that determines a run, decided before the first step. `record` is it in JSON, without times."""

    settings: TrainSettings
    features: Features
    clips: PartitionedClips
    shape: ModelShape
    record: Mapping[str, Any]
    warm_start: WarmStart | None = None
    without_tokens: Mapping[SplitName, int] = field(default_factory=dict)
    """Clips of each split that have no slot or token that is read one by one. Empty where none are."""

    @property
    def key(self) -> str:
        """Equal for runs that give equal results."""
        return json_digest({**self.record, "cache": None})


def run_differences(finished: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Differences between two contents of `run.json`: each name with its value in `finished` and in `other`.

    The model's shape is left out where anything else differs, as it follows from the rest.
    """
    apart, wanted = differing([json.loads(json_bytes({**item, **MOVABLE})) for item in (finished, other)])
    causes = [name for name in apart if not name.startswith("model.")] or list(apart)
    more = f" and {len(causes) - MOST_CAUSES} more" if len(causes) > MOST_CAUSES else ""
    return (
        ", ".join(
            f"{name} ({shown(apart[name])}, now {shown(wanted[name])})" for name in causes[:MOST_CAUSES]
        )
        + more
    )


def same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if two contents of `run.json` are of one run: a cache may have moved."""
    return json_bytes({**one, **MOVABLE}) == json_bytes({**other, **MOVABLE})


def library_versions() -> dict[str, str]:
    """Versions of the libraries that a run's bits may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def divide_clips(
    features: Features,
    cache_dir: Path,
    rule: SplitRule,
    *,
    share: float = 1.0,
    partition_of: PartitionOf = stored_partition,
) -> PartitionedClips:
    """The run's clips by split name, of the training groups a share.

    Raises StageError where a split has none.
    """
    clips = partition_clips(features.clips, cache_dir, rule, partition_of=partition_of)
    if empty := [name for name in SPLIT_NAMES if not clips.ids[name]]:
        if clips.stored.rule.partition == "file":
            raise StageError(
                f"of {len(features.clips)} clips none is in {' or '.join(empty)} by the table of clips: give "
                "rows such a partition and extract again, or use --partition hash"
            )
        raise StageError(_no_clips(len(features.clips), empty, labelled=features.supervision is not None))
    return with_training_share(clips, features.clips, share=share)


def _no_clips(num_clips: int, empty: Sequence[SplitName], *, labelled: bool) -> str:
    """The error of a split that leaves split names without clips."""
    names = " or ".join(empty)
    if labelled:
        return (
            f"of {num_clips} clips with features and hand labels none is in {names}: label more videos "
            "(thinkjepa-data check), use another --split-seed, or train latents alone with --task latent"
        )
    return (
        f"of {num_clips} clips with features none is in {names}: this cache keeps its split, and its videos "
        "there have no features now; extract those, or use another --split-seed"
    )


def plan_run(
    cache_dir: Path,
    settings: TrainSettings,
    features: Features,
    clips: PartitionedClips,
    *,
    num_processes: int,
    warm_start: WarmStart | None = None,
    oracle_table: Path | None = None,
) -> RunPlan:
    """Put together what the settings ask for and what the features' sizes require."""
    features = features.knowing(clips.ids["train"])
    features = replace(features, source=guidance_source(settings, features, clips, oracle_table))
    shape = model_shape(features, settings)
    if (warm_start is None) == settings.starts_from_checkpoint:
        raise StageError(f"init_from is {settings.init_from!r}, and no checkpoint was found for it")
    record = {
        "schema": RUN_SCHEMA,
        "cache": str(cache_dir),
        "settings": {name: value for name, value in asdict(settings).items() if name != "threads"},
        "feature_sets": set_records(features.encoder, features.thinker, features.reading),
        "model": asdict(shape),
        "init_from_digest": warm_start.digest if warm_start else "",
        "oracle_digest": json_digest(source.to_json()) if (source := features.source).columns else "",
        "reference_frames": list(features.supervision.reference_frames) if features.supervision else [],
        "labels": used_labels(features),
        "clips": clips.digests,
        "split_sha256": json_digest(clips.to_json()),
        "processes": num_processes,
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }
    without_tokens = clips_without_tokens(features, clips, settings)
    return RunPlan(settings, features, clips, shape, record, warm_start, without_tokens)


def guidance_source(
    settings: TrainSettings, features: Features, clips: PartitionedClips, oracle_table: Path | None = None
) -> GuidanceSource:
    """The source of the settings, for the run's clips. `oracle_table` as in `train`."""
    kind, columns = parse_source(settings.guidance_source)
    if features.thinker is None or kind == "own":
        return GuidanceSource()
    if kind == "shuffled":
        return shuffled_source(clips.ids, seed=settings.seed)
    if kind in ("none", "history"):
        return GuidanceSource(kind)
    values = columns_by_clip(oracle_table or Path(settings.oracle_table), columns, features.clips)
    dim = features.thinker.arrays["pooled"].shape[-1]
    return oracle_source(values, train_ids=clips.ids["train"], dim=dim)


def clips_without_tokens(
    features: Features, clips: PartitionedClips, settings: TrainSettings
) -> dict[SplitName, int]:
    """Clips of each split without a slot or token that is read. Empty where none are read one by one.

    Raises StageError where that is all training clips: nothing could be learned of tokens.
    """
    if not features.reading or features.thinker is None:
        return {}
    counts = {name: features.count_tokens(ids) for name, ids in clips.ids.items()}
    if not counts["train"].any():
        held = [
            kind
            for number, kind in enumerate(TOKEN_KINDS, start=1)
            if features.count_tokens(
                clips.ids["train"], replace(features.reading, slots=False, kinds=(number,))
            ).any()
        ]
        names = [name for name, kinds in TOKEN_PARTS.items() if set(kinds) & set(held)]
        raise StageError(
            f"no training clip has a token of --cross-tokens {settings.cross_tokens} (--use-streams "
            f"{settings.use_streams}) in {features.thinker.name}: choose of {', '.join(names)}"
        )
    return {name: int((count == 0).sum()) for name, count in counts.items()}


def model_shape(features: Features, settings: TrainSettings) -> ModelShape:
    """The model that the settings ask for, in the sizes of the features."""
    return ModelShape(
        variant=settings.variant,
        grid=features.grid,
        trunk=settings.trunk,
        thinker=None if settings.variant in WITHOUT_THINKER else features.thinker_shape,
        fusion_width=settings.fusion_width,
        head=head_shape(features, settings),
        guidance=settings.guidance_shape
        if settings.variant in WITHOUT_THINKER
        else settled_guidance(settings.guidance_shape, features.thinker),
        view=settings.transform,
        target=settings.target,
        windows=settings.rollout_windows,
    )


def plan_costs(
    cache_dir: Path,
    settings: TrainSettings,
    *,
    thinker_set: str | None,
    encoder_set: str | None,
    split: SplitRule,
    history_set: str | None = None,
) -> tuple[TrainingCosts, PartitionedClips]:
    """Costs and clips of `train` with these arguments. Nothing is trained or written."""
    cache = FeatureCache.open(cache_dir)
    features = choose_features(
        cache, settings, thinker_set=thinker_set, history_set=history_set, encoder_set=encoder_set
    )
    clips = divide_clips(features, cache_dir, split, share=settings.share, partition_of=planned_partition)
    features = features.knowing(clips.ids["train"])
    features = replace(features, source=guidance_source(settings, features, clips))
    clips_without_tokens(features, clips, settings)
    shape = model_shape(features, settings)
    return training_costs(features, shape, settings), clips


def selecting_figure(settings: TrainSettings, features: Features, validation_ids: Sequence[str]) -> SelectBy:
    """The figure by which the best epoch is chosen. Raises StageError for joints that are not known."""
    if settings.select_by not in ("auto", "joints"):
        return settings.select_by
    otherwise: SelectBy = "latents" if features.reads_latents else "loss"
    has_joints = features.supervision is not None and any(
        features.trajectories([clip_id], torch.device("cpu")).counted.any() for clip_id in validation_ids
    )
    if settings.select_by == "auto":
        return "joints" if has_joints and settings.trajectory_weight else otherwise
    if not has_joints:
        raise StageError(
            "--select-by joints: no validation clip has a labelled joint that is seen before the split; use "
            f"--select-by {otherwise}, or label validation videos"
        )
    return "joints"


def used_labels(features: Features) -> str:
    """Digest of the hand labels of a run's clips, empty without any. Corrected labels make another run."""
    if features.supervision is None:
        return ""
    return labels_digest(features.cache, set(features.clips.values("video_digest")))


def head_shape(features: Features, settings: TrainSettings) -> HeadShape | None:
    """The trajectory head that the labels and the settings ask for, None without labels."""
    if features.supervision is None:
        return None
    directly = reads_joints_directly(settings.variant, settings.head_inputs)
    return HeadShape(
        joints=features.supervision.joints,
        frames_per_step=features.tubelet,
        anchor=settings.anchor,
        width=settings.head_width,
        inputs="poses" if directly else settings.head_inputs,
        reader_depth=settings.reader_depth if directly else 0,
    )
