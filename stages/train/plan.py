"""All that determines a training run, decided before the first step: features, clips by side, model shape."""

import hashlib
import json
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from thinkjepa.cache import FeatureCache, FeatureSet, differing, shown
from thinkjepa.stages.data.partition import (
    SIDES,
    Side,
    SideSize,
    SplitRule,
    group_of,
    side_sizes,
    split_warning,
)
from thinkjepa.stages.data.stored_partition import StoredSplit, planned_split, stored_split
from thinkjepa.stages.data.tracked_files import labels_digest
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.json_files import json_bytes
from thinkjepa.stages.train.costs import TrainingCosts, training_costs
from thinkjepa.stages.train.data.features import Features, choose_features
from thinkjepa.stages.train.fit.state import shape_to_json
from thinkjepa.stages.train.init_from import WarmStart
from thinkjepa.stages.train.model.config import HeadShape, ModelShape
from thinkjepa.stages.train.settings import TrainSettings

RUN_SCHEMA = "thinkjepa.run.v1"
LIBRARIES = ("thinkjepa", "torch", "accelerate", "safetensors", "numpy", "zarr")
PLACE: Mapping[str, Any] = {"cache": None, "checkpoint": None}
"""What two contents of `run.json` may differ in and still be of one run: a cache may have moved."""
MOST_CAUSES = 6
"""Differences that a refusal names; one changed preset changes a dozen settings."""

SplitOf = Callable[[Path, SplitRule, Collection[tuple[str, str]]], StoredSplit]
"""The split of a cache's videos by a rule."""


@dataclass(frozen=True, slots=True)
class DividedClips:
    """A split, applied to the clips of a run: ids by side, each sorted, and the size of each side."""

    stored: StoredSplit
    ids: Mapping[Side, tuple[str, ...]]
    sizes: Mapping[Side, SideSize]

    def sizes_to_json(self) -> dict[str, Any]:
        """What each side has of groups, videos and clips."""
        sides: dict[str, Any] = {side: asdict(size) for side, size in self.sizes.items()}
        return {"grouping": self.stored.grouping, **sides, "warning": self.warning}

    @property
    def warning(self) -> str:
        """What to say of sides that are far from what was asked for, empty where none is."""
        return split_warning(self.sizes, self.stored.rule, grouping=self.stored.grouping)

    def to_json(self) -> dict[str, Any]:
        return {**self.stored.to_json(), "clips": {side: list(ids) for side, ids in self.ids.items()}}


@dataclass(frozen=True, slots=True)
class RunPlan:
    """All that determines a run, decided before the first step. `record` is it in JSON, without times."""

    settings: TrainSettings
    features: Features
    clips: DividedClips
    shape: ModelShape
    record: Mapping[str, Any]
    warm_start: WarmStart | None = None

    @property
    def key(self) -> str:
        """Equal for runs that give equal results."""
        return hashlib.sha256(json_bytes({**self.record, "cache": None})).hexdigest()


def run_differences(finished: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What tells two contents of `run.json` apart: each name with its value in `finished` and in `other`.

    The model's shape is left out where anything else differs, as it follows from the rest.
    """
    apart, wanted = differing([json.loads(json_bytes({**item, **PLACE})) for item in (finished, other)])
    causes = [name for name in apart if not name.startswith("model.")] or list(apart)
    more = f" and {len(causes) - MOST_CAUSES} more" if len(causes) > MOST_CAUSES else ""
    return (
        ", ".join(
            f"{name} ({shown(apart[name])}, now {shown(wanted[name])})" for name in causes[:MOST_CAUSES]
        )
        + more
    )


def same_run(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two contents of `run.json` are of one run: a cache may have moved."""
    return json_bytes({**one, **PLACE}) == json_bytes({**other, **PLACE})


def library_versions() -> dict[str, str]:
    """What a run's bits may depend on beside its settings."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def divide_clips(
    features: Features, cache_dir: Path, rule: SplitRule, *, split_of: SplitOf = stored_split
) -> DividedClips:
    """The run's clips by side of the cache's split, which is made or extended where needed.

    With `planned_split` nothing is written.
    """
    clips = features.clips
    names, digests = clips.values("video"), clips.values("video_digest")
    videos = sorted(set(zip(names, digests, strict=True)))
    stored = split_of(cache_dir, rule, videos)
    sides = [stored.split.videos[digest] for digest in digests]
    named = list(zip(clips.clip_ids.to_pylist(), sides, strict=True))
    ids: dict[Side, tuple[str, ...]] = {
        side: tuple(clip_id for clip_id, of in named if of == side) for side in SIDES
    }
    if empty := [side for side in SIDES if not ids[side]]:
        raise StageError(_no_clips(len(clips), empty, labelled=features.supervision is not None))
    groups = [group_of(name, stored.grouping) for name in names]
    sizes = side_sizes(zip(sides, groups, digests, strict=True))
    return DividedClips(stored=stored, ids=ids, sizes=sizes)


def _no_clips(num_clips: int, empty: Sequence[Side], *, labelled: bool) -> str:
    """What to say of a split that leaves sides without clips."""
    sides = " or ".join(empty)
    if labelled:
        return (
            f"of {num_clips} clips with features and hand labels none is in {sides}: label more videos "
            "(thinkjepa-data check), use another --split-seed, or train latents alone with --task latent"
        )
    return (
        f"of {num_clips} clips with features none is in {sides}: this cache keeps its split, and its videos "
        "there have no features now; extract those, or use another --split-seed"
    )


def plan_run(
    cache_dir: Path,
    settings: TrainSettings,
    features: Features,
    clips: DividedClips,
    *,
    num_processes: int,
    warm_start: WarmStart | None = None,
) -> RunPlan:
    """Put together what the settings ask for and what the features' sizes require."""
    features = features.knowing(clips.ids["train"])
    shape = model_shape(features, settings)
    if (warm_start is None) == bool(settings.init_from and settings.variant != "vlm"):
        raise StageError(f"init_from is {settings.init_from!r}, and no checkpoint was found for it")
    record = {
        "schema": RUN_SCHEMA,
        "cache": str(cache_dir),
        "settings": {name: value for name, value in asdict(settings).items() if name != "threads"},
        "feature_sets": {
            "encoder": _set_record(features.encoder),
            "thinker": _set_record(features.thinker),
        },
        "model": shape_to_json(shape),
        "init_from_digest": warm_start.digest if warm_start else "",
        "reference_frames": list(features.supervision.reference_frames) if features.supervision else [],
        "labels": used_labels(features),
        "split_sha256": hashlib.sha256(json_bytes(clips.to_json())).hexdigest(),
        "processes": num_processes,
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }
    return RunPlan(settings, features, clips, shape, record, warm_start)


def model_shape(features: Features, settings: TrainSettings) -> ModelShape:
    """The model that the settings ask for, in the sizes of the features."""
    return ModelShape(
        variant=settings.variant,
        grid=features.grid,
        trunk=settings.trunk,
        thinker=None if settings.variant == "jepa" else features.thinker_shape,
        fusion_width=settings.fusion_width,
        head=head_shape(features, settings),
        guidance=settings.guidance_shape,
        view=settings.transform,
    )


def plan_costs(
    cache_dir: Path,
    settings: TrainSettings,
    *,
    thinker_set: str | None,
    encoder_set: str | None,
    split: SplitRule,
) -> tuple[TrainingCosts, DividedClips]:
    """What `train` with these arguments would take, and on which clips; nothing is trained or written."""
    cache = FeatureCache.open(cache_dir)
    features = choose_features(cache, settings, thinker_set=thinker_set, encoder_set=encoder_set)
    clips = divide_clips(features, cache_dir, split, split_of=planned_split)
    features = features.knowing(clips.ids["train"])
    shape = model_shape(features, settings)
    return training_costs(features, shape, settings), clips


def used_labels(features: Features) -> str:
    """Tells apart the hand labels of a run's clips, empty without any: corrected ones make another run."""
    if features.supervision is None:
        return ""
    return labels_digest(features.cache, set(features.clips.values("video_digest")))


def head_shape(features: Features, settings: TrainSettings) -> HeadShape | None:
    """The trajectory head that the labels and the settings ask for, None without labels."""
    if features.supervision is None:
        return None
    return HeadShape(
        joints=features.supervision.joints,
        frames_per_step=features.tubelet,
        anchor=settings.anchor,
        width=settings.head_width,
    )


def _set_record(item: FeatureSet | None) -> dict[str, str] | None:
    return None if item is None else {"name": item.name, "fingerprint": item.fingerprint}
