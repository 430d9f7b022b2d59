"""A reader of caches written from docs/cache-format.md alone: nothing of thinkjepa, nothing of zarr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd

Bytes = npt.NDArray[np.uint8]
Record = dict[str, Any]

MISSING = 2**64 - 1
STORED = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "uint8": "u1"}


def crc32c(content: bytes) -> int:
    """CRC-32C: reflected polynomial 0x82F63B78, all ones before and after."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _crc_of_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]


def catalog(root: Path) -> list[Record]:
    """The feature sets of a cache."""
    content = json.loads((root / "cache.json").read_text("utf-8"))
    assert content["schema"] == "thinkjepa.cache.v2"
    sets: list[Record] = content["feature_sets"]
    return sets


def clips(root: Path) -> dict[tuple[str, str, str], Record]:
    """Clip rows by their key, of equal keys the row in the later file."""
    rows = [
        row for path in sorted((root / "clips").glob("*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    return {(row["clip_id"], row["thinker_sampling"], row["dense_sampling"]): row for row in rows}


def index(root: Path, set_name: str) -> dict[str, Record]:
    """The clips of a set that have features, with their rows."""
    files = {_range(path): path for path in (root / set_name / "index").glob("*.parquet")}
    alone = [
        path
        for (first, last), path in files.items()
        if not any(a <= first and last <= b and (a, b) != (first, last) for a, b in files)
    ]
    rows = [row for path in alone for row in pq.read_table(path).to_pylist()]
    return {row["clip_id"]: row for row in rows if row["status"] == "ok"}


def _range(path: Path) -> tuple[int, int]:
    first, _, last = path.stem.partition("-")
    return int(first), int(last or first)


def stored(root: Path, item: Record, array: str, row: int) -> npt.NDArray[Any]:
    """The values of an array at a position on the clip axis, `shape`, in the stored dtype."""
    spec = item["arrays"][array]
    dtype = np.dtype("u1" if spec.get("encoding") == "fp8" else STORED[spec["dtype"]])
    shape, chunks = spec["shape"], spec["chunks"]
    counts = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
    shard, slot = divmod(row, item["rows_per_shard"])
    folder = root / "features.zarr" / item["name"] / array / "c" / str(shard)
    content = folder.joinpath(*["0"] * len(shape)).read_bytes()
    num_chunks = item["rows_per_shard"] * int(np.prod(counts))
    raw_index, index_crc = content[-16 * num_chunks - 4 : -4], content[-4:]
    assert crc32c(raw_index) == int.from_bytes(index_crc, "little"), "the index is damaged"
    table = np.frombuffer(raw_index, "<u8").reshape(item["rows_per_shard"], *counts, 2)[slot]
    values = np.zeros([count * chunk for count, chunk in zip(counts, chunks, strict=True)], dtype)
    for position in np.ndindex(*counts):
        offset, size = (int(number) for number in table[position])
        if offset == size == MISSING:
            continue
        chunk, crc = content[offset : offset + size - 4], content[offset + size - 4 : offset + size]
        assert crc32c(chunk) == int.from_bytes(crc, "little"), "a chunk is damaged"
        slices = tuple(slice(p * c, (p + 1) * c) for p, c in zip(position, chunks, strict=True))
        values[slices] = np.frombuffer(_raw(chunk, spec.get("codec", "none")), dtype).reshape(chunks)
    return values[tuple(map(slice, shape))]


def _raw(chunk: bytes, codec: str) -> bytes:
    decoders = {"none": bytes, "zstd": Zstd().decode, "blosc": Blosc().decode}
    return bytes(decoders[codec](chunk))


def values(root: Path, item: Record, array: str, row: int) -> npt.NDArray[Any]:
    """The values of an array in float32 (uint8 as it is)."""
    spec, found = item["arrays"][array], stored(root, item, array, row)
    if spec.get("encoding") == "fp8":
        exponent, mantissa = (found >> 3 & 15).astype(int), (found & 7).astype(np.float32)
        size = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
        numbers = np.where(found & 128, -size, size).astype(np.float32)
        return _rounded(numbers * stored(root, item, array + "_scale", row)[..., None], spec["dtype"])
    if spec["dtype"] == "bfloat16":
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found if spec["dtype"] == "uint8" else found.astype(np.float32)


def _rounded(numbers: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float32]:
    """To the nearest number of a dtype, of two equally near ones to the even one."""
    if dtype == "bfloat16":
        bits = numbers.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    return numbers.astype(STORED[dtype]).astype(np.float32)


def checksum(root: Path, item: Record, row: Record) -> str:
    """The index's `checksum` of a clip, recomputed."""
    return f"{crc32c(b''.join(_clip_bytes(root, item, row))):08x}"


def _clip_bytes(root: Path, item: Record, row: Record) -> Iterator[bytes]:
    added = {
        name + end
        for name, spec in item["arrays"].items()
        for end in ("_scale", "_error")
        if "encoding" in spec
    }
    for name, spec in sorted(item["arrays"].items()):
        if name in added:
            continue
        found = values(root, item, name, row["row"])
        if "token" in spec["dims"]:
            found = found.take(range(row["token_count"]), axis=spec["dims"].index("token"))
        if spec["dtype"] == "bfloat16":
            found = (np.ascontiguousarray(found).view(np.uint32) >> 16).astype("<u2")
        yield (
            np.ascontiguousarray(found)
            .astype(found.dtype if found.dtype.kind == "u" else STORED[spec["dtype"]])
            .tobytes()
        )


def ledger_faults(root: Path) -> list[str]:
    """Small files whose content is not what checksums.jsonl says."""
    lines: dict[str, list[Record]] = {}
    for line in (root / "checksums.jsonl").read_bytes().split(b"\n")[:-1]:
        crc, _, body = line.partition(b" ")
        assert int(crc, 16) == crc32c(body), "the ledger is damaged"
        entry = json.loads(body)
        earlier = lines.get(entry["file"], []) if entry["state"] == "writing" else []
        lines[entry["file"]] = [*earlier, entry]
    return [file for file, entries in lines.items() if not _is_right(root / file, entries)]


def _is_right(path: Path, entries: list[Record]) -> bool:
    if not path.exists():
        return entries[0]["state"] != "written"
    content = path.read_bytes()
    found = len(content), f"{crc32c(content):08x}"
    return any(found == (entry.get("bytes"), entry.get("crc32c")) for entry in entries)
