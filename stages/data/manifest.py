"""What a folder of videos contains, as a small file: a change of a video, a name or labels changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinkjepa.cache import file_digest
from thinkjepa.stages.data.digest_memory import DigestMemory
from thinkjepa.stages.data.labels.readers import is_readable_place, label_files
from thinkjepa.stages.data.videos import display_name, find_videos
from thinkjepa.stages.progress import Progress

UNREADABLE = "unreadable"
"""Stands for the digest of a file that cannot be read: extraction reports it."""


def folder_manifest(folder: Path, *, progress: Progress, memory: DigestMemory) -> dict[str, Any]:
    """Relative name and content digest of every video, and of the label files next to them, if any.

    Files that `memory` knows are not read. Raises StageError where there is no video.
    """
    files = find_videos(folder)
    progress.begin("reading", total=len(files), unit="videos")
    root = folder.resolve()
    videos: dict[str, str] = {}
    labels: dict[str, str] = {}
    for path in files:
        videos[display_name(path, folder)] = _digest(path, root, memory)
        for found in label_files(path, folder):
            labels[display_name(found, folder)] = _digest(found, root, memory)
        progress.advance(1)
    manifest = {"schema": "thinkjepa.clips.v1", "videos": videos}
    return {**manifest, "labels": labels} if labels else manifest


def _digest(path: Path, root: Path, memory: DigestMemory) -> str:
    try:
        return memory.digest(path, file_digest) if is_readable_place(path, root) else UNREADABLE
    except OSError:
        return UNREADABLE
