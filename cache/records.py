"""Frozen records of a cache, the contract between extraction and training, and the base exceptions.

Only the standard library is imported, so that commands which check settings start at once.

Shape letters: L thinker layers, S tokens of a clip (ragged), D feature width, T latent time steps,
P patches (row-major height x width), W future windows. Slots are means of a thinker's visual tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

if TYPE_CHECKING:
    import torch


class ThinkJepaError(Exception):
    """Something the user can act on. The message states the fault, its location and the remedy.

    Command lines print it as one line and exit with status 2. Anything else is a defect and keeps its
    traceback.
    """


class CacheError(ThinkJepaError):
    """The feature cache is missing, of another schema, damaged, locked by another process, or full."""


SET_NAME_HEX = 12

VIDEO_ID_HEX = 16


def canonical_json(value: Any) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SET_NAME = re.compile(r"(thinker|encoder|history)-[0-9a-f]{12}")

ARRAY_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

Codec = Literal["none", "zstd", "blosc"]
"""Compression of inner chunks. `none` can be mapped into memory: float16 features shrink by 8 %."""

Encoding = Literal["plain", "fp8"]
"""`fp8`: float8 e4m3 with a scale per token, which halves the disk and adds an error."""

Kind = Literal["thinker", "encoder", "history"]
"""A feature set comes from one frozen model: the vision-language model, the video encoder, or the encoder
over the vision-language model's frames (`history`)."""

KINDS = get_args(Kind)
"""All kinds, in the order in which they are shown and preferred."""

DTYPES = ("float16", "bfloat16", "float32", "uint8")
"""Dtypes of stored values, by their names in torch."""

SCALE, ERROR = "_scale", "_error"
"""Endings of the names of the two arrays that are stored with an fp8 array."""

TOKEN_CHUNK = 64
"""Tokens per inner chunk: at the paper's sizes 64 x 2048 x 2 B = 256 KiB, and 1,166 tokens waste 4 %."""

STREAMS = ("prompt", "visual", "text", "last", "generated")
"""Order of the `stream` axis of `pooled`: means over all prompt tokens, over the visual ones, over the text
after the last visual one, the last prompt token alone, and the mean over generated tokens."""

FIRST_STREAMS = ("prompt", "generated")
"""Streams of sets that name none, of versions up to 0.2."""

STORAGE = ("keep", "slot_segments", "streams")
"""Names in an origin that tell which arrays a set has of a model's states. They do not change any value."""

RAGGED: Mapping[str, str] = {"token": "token_count", "slot": "slot_count", "text": "text_count"}
"""Axes of which each clip has a length of its own, by their names, and the columns with that length."""

POSITIONS = ("slot_position", "token_position")
"""Arrays in which NaN has a meaning: the whole frame, or no place in it."""

TOKEN_KINDS = ("text", "visual", "generated", "reasoning")
"""Values 1..4 of `token_kind`, where 0 marks the unused rest of the token axis."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a feature set, described per clip (the clip axis comes first on disk)."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    """Dtype of the values as they are written and read."""
    codec: Codec = "none"
    encoding: Encoding = "plain"

    def __post_init__(self) -> None:
        if not ARRAY_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no name of an array")
        if self.dtype not in DTYPES:
            raise ValueError(f"array {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if not len(self.dims) == len(self.shape) == len(self.chunks):
            raise ValueError(
                f"array {self.name!r}: {self.dims}, {self.shape} and {self.chunks} differ in rank"
            )
        sizes = (*self.shape, *self.chunks)
        if not all(isinstance(size, int) and size >= 0 for size in sizes) or 0 in self.chunks:
            raise ValueError(f"array {self.name!r}: {self.shape} in chunks of {self.chunks} is no shape")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the values, as torch's."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the bytes on disk: fp8 is kept as its bits."""
        import torch

        return torch.uint8 if self.encoding == "fp8" else self.torch_dtype

    @property
    def ragged(self) -> str:
        """The axis of which each clip has a length of its own, empty where there is none."""
        return next((dim for dim in self.dims if dim in RAGGED), "")

    @property
    def clip_bytes(self) -> int:
        """Bytes of one clip when every chunk of it is written."""
        return math.prod(self.shape) * self.stored_dtype.itemsize

    @property
    def chunk_grid(self) -> tuple[int, ...]:
        """Inner chunks per axis of one clip."""
        return tuple(math.ceil(size / chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk before compression."""
        return math.prod(self.chunks) * self.stored_dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        """As cache.json holds it: codec and encoding only where they are not the default."""
        plain = {"codec": "none", "encoding": "plain"}
        return {name: value for name, value in asdict(self).items() if plain.get(name) != value}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ArraySpec:
        """The array of a record. Raises ValueError, KeyError or TypeError for an invalid one."""
        known = {field.name: record[field.name] for field in fields(cls) if field.name in record}
        return cls(**known | {name: tuple(record[name]) for name in ("dims", "shape", "chunks")})


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Features of one origin. Two sets with another `origin` never share an array.

    `origin` determines the values and is fingerprinted. `source` informs people (model name, exact versions,
    device) and is not.
    """

    name: str
    kind: Kind
    fingerprint: str
    origin: Mapping[str, Any]
    source: Mapping[str, Any]
    arrays: Mapping[str, ArraySpec]
    rows_per_shard: int

    def __post_init__(self) -> None:
        if not SET_NAME.fullmatch(self.name) or not self.name.startswith(f"{self.kind}-"):
            raise ValueError(f"{self.name!r} is no name of a {self.kind} set")
        if any(name != spec.name for name, spec in self.arrays.items()):
            raise ValueError(f"{self.name}: an array has the key of another")
        if not isinstance(self.rows_per_shard, int) or self.rows_per_shard < 1:
            raise ValueError(f"{self.name}: {self.rows_per_shard!r} clips a shard")

    @property
    def layers(self) -> tuple[int, ...]:
        """Thinker layers in the order of the `layer` axis, empty for other kinds."""
        return tuple(self.origin.get("layers", ()))

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams in the order of the `stream` axis of `pooled`, empty for an encoder."""
        return () if self.kind == "encoder" else tuple(self.origin.get("streams", FIRST_STREAMS))

    @property
    def given_arrays(self) -> dict[str, ArraySpec]:
        """The arrays that features consist of, without the scales and errors that the writer adds."""
        encoded = [name for name, spec in self.arrays.items() if spec.encoding == "fp8"]
        added = {name + ending for name in encoded for ending in (SCALE, ERROR)}
        return {name: spec for name, spec in self.arrays.items() if name not in added}

    def to_json(self) -> dict[str, Any]:
        """The record of the set in cache.json."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**record, "arrays": {name: spec.to_json() for name, spec in self.arrays.items()}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> FeatureSet:
        """The set of a record. Raises ValueError, KeyError or TypeError for an invalid one."""
        arrays = {name: ArraySpec.from_json(spec) for name, spec in record["arrays"].items()}
        return cls(**{**record, "arrays": arrays})


def clip_name(video_id: str, split_frame: int, *, first_frame: int = 0) -> str:
    """The id of a clip, by the first frame that it may use and its split."""
    return f"{video_id}@{first_frame}-{split_frame}" if first_frame else f"{video_id}@{split_frame}"


@dataclass(frozen=True, slots=True)
class ClipRow:
    """One clip: a video and a split frame, and the frames chosen around the split.

    `clip_id` is `<first 16 hex digits of the video's sha256>@<split_frame>`: the same content is the same
    clip wherever the file is. It is `...@<first frame>-<split_frame>` in a segment that begins later than the
    video, as the thinker's frames depend on both. Indices count decoded frames from 0, times are presentation
    times in seconds. Every thinker and observed index is < `split_frame`, every future index is >= it.
    """

    clip_id: str
    video: str
    video_digest: str
    thinker_sampling: str
    dense_sampling: str
    split_frame: int
    split_time_s: float
    thinker_frames: tuple[int, ...]
    thinker_times_s: tuple[float, ...]
    observed_frames: tuple[int, ...]
    observed_times_s: tuple[float, ...]
    future_frames: tuple[tuple[int, ...], ...]
    future_times_s: tuple[tuple[float, ...], ...]
    group: str = ""
    partition: str = ""  # train, validation or test; both are of the user's table, else empty

    @property
    def label(self) -> str:
        """Name of the clip in messages."""
        return f"clip {self.clip_id!r} ({self.video!r})"

    def sampling(self, kind: Kind) -> str:
        """Fingerprint of the sampling of the frames for one model."""
        return self.dense_sampling if kind == "encoder" else self.thinker_sampling


@dataclass(frozen=True, slots=True)
class ClipFeatures:
    """Features of one clip to be written. Ragged arrays are shorter along their ragged axis.

    `token_count` counts the thinker's states of the clip, whether or not they are stored. The size of the
    video's frames is 0 where it is not known.
    """

    clip_id: str
    arrays: Mapping[str, torch.Tensor]
    token_count: int = 0
    prompt_token_count: int = 0
    token_ids: tuple[int, ...] = ()
    generated_text: str = ""
    slot_count: int = 0
    text_count: int = 0
    frame_width_px: int = 0
    frame_height_px: int = 0


DROPPED = "verify"
"""Stage of an index row whose features were damaged: the next extraction computes them again."""

FailureStage = Literal["open", "plan", "decode", "thinker", "encoder", "history", "worker", "labels"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Reason why a video, or one clip of it, has no features, or at stage `labels` no hand labels.

    `clip_id` is empty where no clip could be planned, and for labels.
    """

    video: str
    stage: FailureStage
    reason: str
    clip_id: str = ""
    video_digest: str = ""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One clip of a feature set. `row` is its position on the clip axis, -1 where extraction failed."""

    clip_id: str
    status: Literal["ok", "failed"]
    row: int = -1
    shard: int = -1
    token_count: int = 0
    slot_count: int = 0
    text_count: int = 0
    frame_width_px: int = 0
    frame_height_px: int = 0
    prompt_token_count: int = 0
    token_ids: tuple[int, ...] = field(default=())
    generated_text: str = ""
    checksum: str = ""
    stage: str = ""
    reason: str = ""

    @property
    def failure(self) -> Failure:
        """The failure that the row records."""
        return Failure("", cast(FailureStage, self.stage), self.reason, clip_id=self.clip_id)


def length_of(clip: ClipFeatures | IndexRow, spec: ArraySpec) -> int | None:
    """A clip's own length along the ragged axis of an array, None for an array without one."""
    return int(getattr(clip, RAGGED[spec.ragged])) if spec.ragged else None


SHOWN_HEX = 12
"""Digits of a digest that tell two apart for a person."""


def differing(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings that are not equal in all records, for each record by dotted name.

    A record without a setting that another has is given None. Names are in the order of the records.
    """
    flat = [dict(_flattened(record)) for record in records]
    names = dict.fromkeys(name for record in flat for name in record)
    apart = [name for name in names if any(record.get(name) != flat[0].get(name) for record in flat)]
    return [{name: record.get(name) for name in apart} for record in flat]


def set_differences(feature_sets: Iterable[FeatureSet]) -> dict[str, str]:
    """Differences of feature sets of a kind, in words by the set's name: `prompt 'a', dtype bfloat16`.

    A digest is left out where a name that implies it differs too: digests of weights and preprocessing files
    where the model's name does, that of a sampling where its settings do.
    """
    items = list(feature_sets)
    if len(items) < 2:
        return {item.name: "" for item in items}
    apart = differing([{"model": item.source.get("model"), **item.origin} for item in items])
    implied = {"sampling.fingerprint"} if any(_is_sampling(name) for name in apart[0]) else set[str]()
    if "model" in apart[0] and "weights" in items[0].origin and "weights" not in apart[0]:
        implied.add("model")  # one model, by two paths
    elif "model" in apart[0]:
        implied |= {"weights", "preprocessing.files"}
    return {
        item.name: ", ".join(
            f"{name} {shown(value)}" for name, value in settings.items() if name not in implied
        )
        for item, settings in zip(items, apart, strict=True)
    }


def shown(value: Any) -> str:
    """A setting's value for a message."""
    if value is None:
        return "not set"
    if isinstance(value, str):
        is_digest = len(value) == 64 and set(value) <= set("0123456789abcdef")
        return value[:SHOWN_HEX] if is_digest else repr(value)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return str(value)


def _is_sampling(name: str) -> bool:
    return name.startswith("sampling.") and name != "sampling.fingerprint"


def _flattened(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
