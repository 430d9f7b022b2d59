"""The feature cache: frozen models' features, standard zarr on disk, mapped in memory.

Records, digests and errors are imported at once, everything else on first use (PEP 562). Torch, zarr and
Arrow take seconds to import, and commands that only check settings or files do not need them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from thinkjepa.cache.records import (
    RAGGED,
    STREAMS,
    TOKEN_CHUNK,
    TOKEN_KINDS,
    VIDEO_ID_HEX,
    ArraySpec,
    CacheError,
    ClipFeatures,
    ClipRow,
    Codec,
    Failure,
    FailureStage,
    FeatureSet,
    IndexRow,
    Kind,
    ThinkJepaError,
    differing,
    file_digest,
    fingerprint,
    set_differences,
    shown,
)

if TYPE_CHECKING:
    from thinkjepa.cache.dataset import FeatureDataset
    from thinkjepa.cache.reader import BatchBuffers, FeatureCache
    from thinkjepa.cache.session import SetWriter, WriteSession, done_clip_ids
    from thinkjepa.cache.shards.write import OpenShard
    from thinkjepa.cache.tables.catalog import describe_set
    from thinkjepa.cache.tables.clips import ClipSelection
    from thinkjepa.cache.tables.labels import LabelTable, ReferenceFrame, VideoLabels
    from thinkjepa.cache.upkeep.merge import MergeReport, count_features, merge
    from thinkjepa.cache.upkeep.removal import Removal
    from thinkjepa.cache.upkeep.remove import plan_clip_removal, plan_set_removal, remove
    from thinkjepa.cache.upkeep.verify import Problem, count_clips, drop_clips, repair, verify

_LAZY = {
    "dataset": ("FeatureDataset",),
    "reader": ("BatchBuffers", "FeatureCache"),
    "session": ("SetWriter", "WriteSession", "done_clip_ids"),
    "shards.write": ("OpenShard",),
    "tables.catalog": ("describe_set",),
    "tables.clips": ("ClipSelection",),
    "tables.labels": ("LabelTable", "ReferenceFrame", "VideoLabels"),
    "upkeep.merge": ("MergeReport", "count_features", "merge"),
    "upkeep.removal": ("Removal",),
    "upkeep.remove": ("plan_clip_removal", "plan_set_removal", "remove"),
    "upkeep.verify": ("Problem", "count_clips", "drop_clips", "repair", "verify"),
}
"""Names by the module that defines them. No name is that of a module, which its import would replace."""

__all__ = [
    "RAGGED",
    "STREAMS",
    "TOKEN_CHUNK",
    "TOKEN_KINDS",
    "VIDEO_ID_HEX",
    "ArraySpec",
    "BatchBuffers",
    "CacheError",
    "ClipFeatures",
    "ClipRow",
    "ClipSelection",
    "Codec",
    "Failure",
    "FailureStage",
    "FeatureCache",
    "FeatureDataset",
    "FeatureSet",
    "IndexRow",
    "Kind",
    "LabelTable",
    "MergeReport",
    "OpenShard",
    "Problem",
    "ReferenceFrame",
    "Removal",
    "SetWriter",
    "ThinkJepaError",
    "VideoLabels",
    "WriteSession",
    "count_clips",
    "count_features",
    "describe_set",
    "differing",
    "done_clip_ids",
    "drop_clips",
    "file_digest",
    "fingerprint",
    "merge",
    "plan_clip_removal",
    "plan_set_removal",
    "remove",
    "repair",
    "set_differences",
    "shown",
    "verify",
]

if not TYPE_CHECKING:  # mypy would take any name for one that exists

    def __getattr__(name: str) -> object:
        """Import an exported name on first use, and keep it."""
        for module, names in _LAZY.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
