"""What features take on disk, and whether there is room for them, told before the models are loaded."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence

from thinkjepa.cache import ArraySpec, ClipRow, FeatureSet, Kind, WriteSession
from thinkjepa.cache.shard import CRC_BYTES
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.thinker import TYPICAL_TOKENS

GB = 10**9


def stored_bytes(spec: ArraySpec, *, num_tokens: int) -> int:
    """Bytes of one clip in an array's shards: whole chunks, each with its checksum; ragged arrays have only
    the chunks that their tokens reach into."""
    sizes = [
        num_tokens if name == "token" else size for name, size in zip(spec.dims, spec.shape, strict=True)
    ]
    num_chunks = math.prod(math.ceil(size / chunk) for size, chunk in zip(sizes, spec.chunks, strict=True))
    return num_chunks * (spec.chunk_bytes + CRC_BYTES)


def require_space(session: WriteSession, sets: Mapping[Kind, FeatureSet], clips: Sequence[ClipRow]) -> None:
    """Raise StageError where the features that clips lack, uncompressed, take more than what is free.

    A clip of the thinker counts with a typical number of tokens.
    """
    missing = {
        kind: {clip.clip_id for clip in clips} - session.done_clip_ids(item) for kind, item in sets.items()
    }
    needed = sum(
        len(missing[kind]) * stored_bytes(spec, num_tokens=TYPICAL_TOKENS)
        for kind, item in sets.items()
        for spec in item.arrays.values()
    )
    free = shutil.disk_usage(session.root).free
    if needed > free:
        number = len(set.union(*missing.values()))
        raise StageError(
            f"{number} clips without features take about {needed / GB:.2g} GB, and {str(session.root)!r} has "
            f"{free / GB:.2g} GB free: free space, choose another --cache-dir, keep fewer --layers or give "
            "--fp8 all; --ignore-space extracts as much as there is room for"
        )
