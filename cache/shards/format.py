"""The file of one zarr v3 shard, streamed by the writer and mapped by the reader.

Format (zarr v3 specification, `sharding_indexed` codec, index at the end): encoded inner chunks in any
order, the shard's identity, then the index, a little-endian uint64 pair (offset, bytes) per inner chunk in C
order of the shard's chunk grid, (2^64 - 1, 2^64 - 1) where a chunk is missing, then the crc32c of the index.
An inner chunk is its raw little-endian values followed by their crc32c (4 bytes), by which any zarr
implementation detects a flipped bit.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from thinkjepa.cache.disk.files import (
    BackgroundSync,
    Bytes,
    crc32c,
    explained_os_errors,
    fsync_folder,
    make_folder,
    open_unlinked,
    write_all,
)
from thinkjepa.cache.records import SET_NAME_HEX, ArraySpec, CacheError
from thinkjepa.cache.shards.identity import ShardIdentity, read_identity

ChunkEntry = tuple[int, int, int]
"""Number of an inner chunk in C order of the shard's grid, offset in the file, encoded bytes."""

CRC_BYTES = 4

MISSING = np.uint64(2**64 - 1)

INDEX_DTYPE = np.dtype("<u8")


def trailer(raw: Bytes) -> bytes:
    """The crc32c that is stored after raw bytes."""
    return crc32c(raw).to_bytes(CRC_BYTES, "little")


def is_intact(encoded: Bytes) -> bool:
    """True if stored bytes end with the crc32c of the rest."""
    return trailer(encoded[:-CRC_BYTES]) == encoded[-CRC_BYTES:].tobytes()


class ShardWriter:
    """Appends inner chunks to `<shard>.partial`. Sealing adds the index and gives the file its name."""

    def __init__(self, path: Path, *, num_chunks: int, sync: BackgroundSync, size: int = 0) -> None:
        """Continue the partial file at `size` bytes (0: begin). Raises CacheError if it is shorter."""
        self._sync = sync
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self._index = np.full((num_chunks, 2), MISSING, dtype=INDEX_DTYPE)
        with explained_os_errors("write", self.partial):
            make_folder(path.parent)
            self._file = open_unlinked(self.partial, "r+b" if size else "wb")
            try:
                self._continue(size)
            except BaseException:
                self._file.close()
                raise
        self.size = size

    def _continue(self, size: int) -> None:
        """Make the file's name durable, and cut off what was not committed."""
        fsync_folder(self.path.parent)
        found = os.fstat(self._file.fileno()).st_size
        if found < size:
            raise CacheError(
                f"{str(self.partial)!r} has {found} bytes, the journal says {size}: the file was changed "
                "from outside; remove it and the journal next to the set's index, then extract again"
            )
        self._file.truncate(size)
        self._file.seek(size)

    def append_all(self, numbers: Sequence[int], raws: Sequence[Bytes]) -> list[ChunkEntry]:
        """Append inner chunks (their numbers and raw bytes, which must stay as they are until the flush).

        They are written in the background, in few system calls. `end_flush` raises the errors.
        """
        buffers: list[memoryview | bytes] = []
        entries: list[ChunkEntry] = []
        for number, raw in zip(numbers, raws, strict=True):
            buffers += [raw.data, trailer(raw)]
            entries.append((number, self.size, raw.nbytes + CRC_BYTES))
            self.size += raw.nbytes + CRC_BYTES
        self._sync.write(self._file.fileno(), buffers)
        self.adopt(entries)
        return entries

    def adopt(self, entries: Sequence[ChunkEntry]) -> None:
        """Take entries (of this run or an earlier one's journal) into the index."""
        for number, offset, length in entries:
            self._index[number] = (offset, length)

    def begin_flush(self) -> None:
        """Start to make everything appended durable. Several shards may do so at once."""
        with explained_os_errors("write", self.partial):
            self._sync.start(self._file.fileno())

    def end_flush(self) -> None:
        """Return when everything appended before `begin_flush` is durable."""
        with explained_os_errors("write", self.partial):
            self._sync.finish(self._file.fileno())

    def begin_seal(self, identity: ShardIdentity) -> None:
        """Append the identity and the index, and start to make them durable."""
        raw = self._index.view(np.uint8).reshape(-1)
        with explained_os_errors("write", self.partial):
            write_all(self._file.fileno(), [identity.encoded(), raw.data, trailer(raw)])
        self.begin_flush()

    def end_seal(self) -> None:
        """Make the whole shard visible under its own name."""
        self.end_flush()
        with explained_os_errors("write", self.partial):
            self._file.close()
            self.partial.replace(self.path)
            fsync_folder(self.path.parent)

    def close(self) -> None:
        """Leave the partial file for a later run. What was not flushed was never committed."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):
            self._sync.finish(self._file.fileno())
        self._file.close()


READ_AROUND_BYTES = 1 << 18
"""Chunks below this size are requested one by one, as the kernel reads megabytes around a touched page.

4,000 pooled states of 65 kB out of 100,000 clips are 0.3 GB then, instead of all 6.5.
"""


class MappedShard:
    """A sealed shard, mapped read-only. Chunks are checked against their crc32c when first touched."""

    def __init__(self, path: Path, *, num_chunks: int, chunk_bytes: int) -> None:
        """Raises CacheError where the file is too short or its index is damaged."""
        self.path = path
        self._fetches = chunk_bytes < READ_AROUND_BYTES and hasattr(mmap, "MADV_WILLNEED")
        with explained_os_errors("read", path), path.open("rb") as file:
            index_bytes = num_chunks * 2 * INDEX_DTYPE.itemsize
            size = os.fstat(file.fileno()).st_size
            if size < index_bytes + CRC_BYTES:
                raise CacheError(
                    f"shard {str(path)!r} is truncated: {size} bytes, its index alone has {index_bytes}"
                )
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._fetches:
            self._map.madvise(mmap.MADV_RANDOM)
        self._bytes: Bytes = np.frombuffer(self._map, dtype=np.uint8)
        encoded = self._bytes[-index_bytes - CRC_BYTES :]
        if not is_intact(encoded):
            raise CacheError(f"shard {str(path)!r} has a damaged or truncated index: restore it from a copy")
        self._index = encoded[:-CRC_BYTES].view(INDEX_DTYPE).reshape(num_chunks, 2)
        self._end = size - index_bytes - CRC_BYTES
        try:
            self.identity = read_identity(self._bytes[: self._end])
        except CacheError as error:
            raise CacheError(f"shard {str(path)!r}: {error}; restore it from a copy") from error
        self._checked = np.zeros(num_chunks, dtype=bool)

    def require(self, wanted: ShardIdentity) -> None:
        """Raise CacheError where this is the shard of another set, array or number."""
        if self.identity is not None and self.identity.differs_from(wanted):
            raise CacheError(
                f"shard {str(self.path)!r} is of another place: shard {self.identity.shard} of array "
                f"{self.identity.array!r}, set {self.identity.fingerprint[:SET_NAME_HEX]}; restore its own"
            )

    def require_clip(self, slot: int, clip_id: str) -> None:
        """Raise CacheError where the clip at a position is another one."""
        if self.identity is None:
            return
        clips = self.identity.clips
        found = clips[slot] if slot < len(clips) else "none"
        if found != clip_id:
            raise CacheError(
                f"shard {str(self.path)!r} has clip {found!r} in its place: the cache was changed from "
                "outside or since it was opened; run the command again, or thinkjepa-cache verify --repair"
            )

    def chunk(self, number: int) -> Bytes | None:
        """The raw bytes of an inner chunk, a view into the map, or None where it was never written."""
        offset, length = self._index[number]
        if offset == MISSING and length == MISSING:
            return None
        if length <= CRC_BYTES or offset + length > self._end:
            raise CacheError(f"shard {str(self.path)!r}: inner chunk {number} is outside the file")
        if self._fetches:
            page = int(offset) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, int(offset + length) - page)
        encoded = self._bytes[int(offset) : int(offset) + int(length)]
        if not self._checked[number]:
            if not is_intact(encoded):
                raise CacheError(
                    f"shard {str(self.path)!r}: inner chunk {number} is damaged (crc32c differs)"
                )
            self._checked[number] = True
        return encoded[:-CRC_BYTES]


def stored_bytes(spec: ArraySpec, lengths: Mapping[str, int]) -> int:
    """Bytes of one clip in an array's shards: whole chunks, each with its checksum, before compression.

    A clip is as long as `lengths` says along a ragged axis (by the axis's name), and has only the chunks that
    it reaches into.
    """
    sizes = [
        lengths[name] if name == spec.ragged else size
        for name, size in zip(spec.dims, spec.shape, strict=True)
    ]
    num_chunks = math.prod(math.ceil(size / chunk) for size, chunk in zip(sizes, spec.chunks, strict=True))
    return num_chunks * (spec.chunk_bytes + CRC_BYTES)


def chunk_number(grid: tuple[int, ...], row: int, position: tuple[int, ...]) -> int:
    """C-order number, within a shard, of the chunk at `position` of the clip in `row`."""
    return row * math.prod(grid) + int(np.ravel_multi_index(position, grid)) if grid else row
