"""The feature cache: frozen models' features, standard zarr on disk, mapped in memory.

Records, digests and errors are imported at once, the rest when it is asked for: torch, zarr and Arrow take
seconds to import, which commands that only check settings or files need not wait for.
"""

from typing import TYPE_CHECKING

from thinkjepa.cache.lazy_names import lazy_names
from thinkjepa.cache.records import (
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
    from thinkjepa.cache.reader import ArrayKey, BatchBuffers, FeatureBatch, FeatureCache
    from thinkjepa.cache.session import SetWriter, WriteSession, done_clip_ids
    from thinkjepa.cache.shards.write import OpenShard
    from thinkjepa.cache.tables.catalog import describe_set
    from thinkjepa.cache.tables.clips import ClipSelection
    from thinkjepa.cache.tables.labels import LabelTable, ReferenceFrame, VideoLabels
    from thinkjepa.cache.upkeep.merge import MergeReport, count_features, merge
    from thinkjepa.cache.upkeep.remove import Removal, plan_clip_removal, plan_set_removal, remove
    from thinkjepa.cache.upkeep.verify import Problem, count_clips, drop_clips, verify
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "tables.catalog": ("describe_set",),
            "tables.clips": ("ClipSelection",),
            "dataset": ("FeatureDataset",),
            "tables.labels": ("LabelTable", "ReferenceFrame", "VideoLabels"),
            "upkeep.merge": ("MergeReport", "count_features", "merge"),
            "shards.write": ("OpenShard",),
            "reader": ("ArrayKey", "BatchBuffers", "FeatureBatch", "FeatureCache"),
            "upkeep.remove": ("Removal", "plan_clip_removal", "plan_set_removal", "remove"),
            "upkeep.verify": ("Problem", "count_clips", "drop_clips", "verify"),
            "session": ("SetWriter", "WriteSession", "done_clip_ids"),
        },
    )

__all__ = [
    "STREAMS",
    "TOKEN_CHUNK",
    "TOKEN_KINDS",
    "VIDEO_ID_HEX",
    "ArrayKey",
    "ArraySpec",
    "BatchBuffers",
    "CacheError",
    "ClipFeatures",
    "ClipRow",
    "ClipSelection",
    "Codec",
    "Failure",
    "FailureStage",
    "FeatureBatch",
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
    "set_differences",
    "shown",
    "verify",
]
