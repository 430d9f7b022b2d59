"""The feature cache: frozen models' features, standard zarr on disk, mapped in memory.

Records, digests and errors are imported at once, the rest when it is asked for: torch, zarr and Arrow take
seconds to import, which commands that only check settings or files need not wait for.
"""

from typing import TYPE_CHECKING

from thinkjepa.cache.errors import CacheError, ThinkJepaError
from thinkjepa.cache.fingerprint import VIDEO_ID_HEX, file_digest, fingerprint
from thinkjepa.cache.lazy_names import lazy_names
from thinkjepa.cache.records import (
    STREAMS,
    TOKEN_CHUNK,
    TOKEN_KINDS,
    ArraySpec,
    ClipFeatures,
    ClipRow,
    Codec,
    Failure,
    FailureStage,
    FeatureSet,
    IndexRow,
    Kind,
)

if TYPE_CHECKING:
    from thinkjepa.cache.batch import ArrayKey, BatchBuffers, FeatureBatch
    from thinkjepa.cache.catalog import describe_set
    from thinkjepa.cache.clips import ClipSelection
    from thinkjepa.cache.dataset import FeatureDataset
    from thinkjepa.cache.differences import differing, set_differences, shown
    from thinkjepa.cache.labels import LabelTable, ReferenceFrame, VideoLabels
    from thinkjepa.cache.merging import MergeReport, count_features, merge
    from thinkjepa.cache.open_shard import OpenShard
    from thinkjepa.cache.reader import FeatureCache
    from thinkjepa.cache.removal import Removal, plan_clip_removal, plan_set_removal, remove
    from thinkjepa.cache.session import WriteSession
    from thinkjepa.cache.verification import Problem, count_clips, drop_clips, verify
    from thinkjepa.cache.writer import SetWriter, done_clip_ids
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "batch": ("ArrayKey", "BatchBuffers", "FeatureBatch"),
            "catalog": ("describe_set",),
            "clips": ("ClipSelection",),
            "dataset": ("FeatureDataset",),
            "differences": ("differing", "set_differences", "shown"),
            "labels": ("LabelTable", "ReferenceFrame", "VideoLabels"),
            "merging": ("MergeReport", "count_features", "merge"),
            "open_shard": ("OpenShard",),
            "reader": ("FeatureCache",),
            "removal": ("Removal", "plan_clip_removal", "plan_set_removal", "remove"),
            "session": ("WriteSession",),
            "verification": ("Problem", "count_clips", "drop_clips", "verify"),
            "writer": ("SetWriter", "done_clip_ids"),
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
