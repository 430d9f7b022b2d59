"""The record by which a sealed shard tells its set, its array, its number and its clips.

It stands between the inner chunks and the shard's index, where zarr does not look: canonical JSON, its crc32c
(4 bytes), its length (uint32, little-endian) and a mark of 8 bytes. Shards of earlier versions have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thinkjepa.cache.disk.files import Bytes, checksum
from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.cache.records import CacheError, FeatureSet, canonical_json

MARK = b"tjshard1"

LENGTH_BYTES, CRC_BYTES = 4, 4

TAIL_BYTES = CRC_BYTES + LENGTH_BYTES + len(MARK)


DAMAGED_BITS = 8
"""A mark with so many other bits is a damaged one. Payload is as near to it by chance once in 10^9 shards."""


@dataclass(frozen=True, slots=True)
class ShardIdentity:
    """Set, array, number and clips of a shard file."""

    fingerprint: str
    array: str
    shard: int
    clips: tuple[str, ...]
    """Ids of its clips in their order."""

    @classmethod
    def of(
        cls, feature_set: FeatureSet, array: str, shard: int, *, clips: Sequence[str] = ()
    ) -> ShardIdentity:
        """The identity of a shard of a set."""
        return cls(feature_set.fingerprint, array, shard, tuple(clips))

    def encoded(self) -> bytes:
        """The record as it stands in the file."""
        record = {
            "array": self.array,
            "clips": self.clips,
            "fingerprint": self.fingerprint,
            "shard": self.shard,
        }
        body = canonical_json(record).encode()
        crc = int(checksum([body]), 16).to_bytes(CRC_BYTES, "little")
        return b"".join((body, crc, len(body).to_bytes(LENGTH_BYTES, "little"), MARK))

    def differs_from(self, wanted: ShardIdentity) -> bool:
        """True for a shard of another set, array or number."""
        return (self.fingerprint, self.array, self.shard) != (wanted.fingerprint, wanted.array, wanted.shard)


def read_identity(chunks: Bytes) -> ShardIdentity | None:
    """The identity at the end of a shard's bytes before its index, or None where it has none.

    Raises CacheError for a damaged one.
    """
    if _flipped_bits(chunks[-len(MARK) :].tobytes()) > DAMAGED_BITS:
        return None
    tail = chunks[-TAIL_BYTES:].tobytes()
    size = int.from_bytes(tail[CRC_BYTES : CRC_BYTES + LENGTH_BYTES], "little")
    body = chunks[max(len(chunks) - TAIL_BYTES - size, 0) : len(chunks) - TAIL_BYTES].tobytes()
    intact = int(checksum([body]), 16) == int.from_bytes(tail[:CRC_BYTES], "little")
    if not intact or not tail.endswith(MARK):
        raise CacheError("the record of its set and clips is damaged")
    try:
        record: Mapping[str, Any] = parse_json(body)
        return ShardIdentity(
            str(record["fingerprint"]), str(record["array"]), int(record["shard"]), tuple(record["clips"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"the record of its set and clips is damaged ({error})") from error


def _flipped_bits(mark: bytes) -> int:
    return (int.from_bytes(mark) ^ int.from_bytes(MARK)).bit_count()
