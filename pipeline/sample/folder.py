"""A manifest in each folder of sample files, so that a second run replaces its own files and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from thinkjepa.cache import ThinkJepaError

MANIFEST = ".thinkjepa-sample.json"

Kind = Literal["models", "videos", "episodes", "hands", "maze"]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Kind and files of an earlier run: paths are relative to the folder, with forward slashes."""

    kind: str
    files: tuple[str, ...]


def claim_folder(out: Path, *, kind: Kind, force: bool) -> None:
    """Make `out` ready to be written: new, empty, or rid of the files that an earlier run of this kind wrote.

    With `force` any other folder is accepted too, and nothing of it is removed. Raises ThinkJepaError
    otherwise: a folder with a user's own files is never written to unasked.
    """
    if out.exists() and not out.is_dir():
        raise ThinkJepaError(f"{out} is a file; name a folder to write the sample {kind} to")
    manifest = read_manifest(out)
    if manifest is not None and manifest.kind == kind:
        for name in manifest.files:
            (out / name).unlink(missing_ok=True)
    elif not force and out.is_dir() and any(out.iterdir()):
        raise ThinkJepaError(
            f"{out} is not empty and holds no sample {kind}: name another folder, or add --force"
        )
    out.mkdir(parents=True, exist_ok=True)
    write_manifest(out, kind=kind, files=[])


def write_manifest(out: Path, *, kind: Kind, files: list[Path]) -> None:
    """Record `files`, which are under `out`, as written by this run."""
    names = sorted(path.relative_to(out).as_posix() for path in files)
    (out / MANIFEST).write_text(json.dumps({"kind": kind, "files": names}, indent=2) + "\n", encoding="utf-8")


def read_manifest(out: Path) -> Manifest | None:
    """The folder's manifest, or None where there is none. Raises ThinkJepaError where it cannot be read."""
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = [str(name) for name in content["files"]]
        manifest = Manifest(kind=str(content["kind"]), files=tuple(names))
    except (ValueError, KeyError, TypeError) as error:
        raise ThinkJepaError(f"{path} is damaged ({error}): remove it, or name another folder") from error
    for name in manifest.files:
        if not (out / name).resolve().is_relative_to(out.resolve()):
            raise ThinkJepaError(f"{path} names {name!r}, which is outside its folder: remove {path}")
    return manifest
