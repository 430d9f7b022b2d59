"""The feature cache: frozen models' features, standard zarr on disk, mapped in memory."""

from thinkjepa.cache.batch import ArrayKey, BatchBuffers, FeatureBatch
from thinkjepa.cache.catalog import describe_set
from thinkjepa.cache.clips import ClipSelection
from thinkjepa.cache.dataset import FeatureDataset
from thinkjepa.cache.differences import differing, set_differences, shown
from thinkjepa.cache.errors import CacheError, ThinkJepaError
from thinkjepa.cache.fingerprint import VIDEO_ID_HEX, file_digest, fingerprint
from thinkjepa.cache.labels import LabelTable, ReferenceFrame, VideoLabels
from thinkjepa.cache.merging import MergeReport, count_features, merge
from thinkjepa.cache.open_shard import OpenShard
from thinkjepa.cache.reader import FeatureCache
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
from thinkjepa.cache.removal import Removal, plan_clip_removal, plan_set_removal, remove
from thinkjepa.cache.session import WriteSession
from thinkjepa.cache.verify import Problem, count_clips, drop_clips, verify
from thinkjepa.cache.writer import SetWriter, done_clip_ids

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
