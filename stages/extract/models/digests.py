"""Digests that identify a model's weights, and their memory in the user's own folder.

Reading gigabytes takes longer than many runs, so the digest of each file is remembered. It counts while size,
modification and change time (ns) and inode stay, and bytes sampled from all over the file. The memory is not
next to the weights: there it would come along with a copy or an archive, from whoever made that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from thinkjepa.cache import CacheError, file_digest, fingerprint
from thinkjepa.stages.data.videos import DigestMemory, FileState, file_state
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.weights import INFORMATIVE, ModelFolder

MEMORY_VARIABLE = "THINKJEPA_MEMORY"
"""Names the folder of the memory, in place of `thinkjepa` in the user's cache folder."""

SAMPLES = 32
"""Blocks that are read to know a file again: with the head and the end, 1 ms of a local disk."""

SAMPLE_BYTES = 4096


def memory_folder() -> Path:
    """The folder of the memory, which may not exist yet."""
    if chosen := os.environ.get(MEMORY_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "thinkjepa"


def weights_digest(model: ModelFolder) -> str:
    """sha256 over the names and contents of the weight files and config.json."""
    memory = _memory(model.path)
    digest = fingerprint([[path.name, memory.digest(path, file_digest)] for path in _identifying(model)])
    _save(memory)
    return digest


def is_identified(model: ModelFolder) -> bool:
    """True if the digest of a model's weights is known without reading all of them."""
    memory = _memory(model.path)
    return all(memory.known(path) is not None for path in _identifying(model))


def preprocessing_digest(model: ModelFolder) -> str:
    """sha256 over everything but the weights: tokenizer, chat template, processor settings."""
    weights = {path.name for path in model.weight_files}
    files = [
        path
        for path in sorted(model.path.iterdir())
        if path.is_file() and path.name not in weights and path.name not in ("config.json", *INFORMATIVE)
    ]
    joined = hashlib.sha256()
    for path in files:
        joined.update(f"{path.name} {file_digest(path)}\n".encode())
    return joined.hexdigest()


@dataclass(frozen=True, slots=True)
class Rehashed:
    """Remembered files of a model's folder, all read again."""

    folder: Path
    num_bytes: int
    changed: tuple[str, ...]
    """Names of the files whose content is another one, although nothing else tells it."""


def rehash() -> Iterator[Rehashed]:
    """Read all remembered files again, correct the memory, and forget models that are gone."""
    for file in sorted(_folder().glob("*.json")):
        before = DigestMemory(file, state=sampled_state)
        paths = [path for path in before.paths if path.is_file()]
        known = {path: before.known(path) for path in paths}
        file.unlink()
        if not paths:
            continue
        now = DigestMemory(file, state=sampled_state)
        changed = [path.name for path in paths if known[path] not in (None, now.digest(path, file_digest))]
        _save(now)
        yield Rehashed(paths[0].parent, sum(path.stat().st_size for path in paths), tuple(changed))


def sampled_state(path: Path) -> FileState:
    """The state of a file, and a digest of blocks from all over it. Raises OSError."""
    state = file_state(path)
    size, last = path.stat().st_size, max(0, path.stat().st_size - SAMPLE_BYTES)
    sampled = hashlib.sha256()
    with path.open("rb") as file:
        for number in range(SAMPLES):
            file.seek(last * number // (SAMPLES - 1))
            sampled.update(file.read(min(SAMPLE_BYTES, size)))
    return [*state, sampled.hexdigest()]


def _folder() -> Path:
    return memory_folder() / "weights"


def _memory(folder: Path) -> DigestMemory:
    """The memory of one model's files. Raises StageError where another user wrote it."""
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()
    file = _folder() / f"{name}.json"
    with suppress(OSError):
        if file.lstat().st_uid != os.getuid():
            raise StageError(
                f"{str(file)!r}, which remembers the digests of weights, is another user's: set "
                f"{MEMORY_VARIABLE} to a folder of your own"
            )
    return DigestMemory(file, state=sampled_state)


def _save(memory: DigestMemory) -> None:
    """Write the memory, if that is possible: elsewhere files are read again the next time."""
    with suppress(CacheError, OSError):
        _folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        memory.save()


def _identifying(model: ModelFolder) -> list[Path]:
    folder = model.path.resolve()
    return [folder / path.name for path in (model.path / "config.json", *model.weight_files)]
