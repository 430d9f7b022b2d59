"""What a folder of videos contains, as a small file: any change of a video, or of its name, changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinkjepa.stages.data.videos import display_name, find_videos, identify
from thinkjepa.stages.progress import Progress

UNREADABLE = "unreadable"
"""Stands for the digest of a file that cannot be read: extraction reports it."""


def folder_manifest(folder: Path, *, progress: Progress) -> dict[str, Any]:
    """Relative name and content digest of every video. Raises StageError where there is none."""
    files = find_videos(folder)
    progress.begin("reading", total=len(files), unit="videos")
    videos = {}
    for path in files:
        videos[display_name(path, folder)] = _digest(path, folder)
        progress.advance(1)
    return {"schema": "thinkjepa.clips.v1", "videos": videos}


def _digest(path: Path, folder: Path) -> str:
    try:
        return identify(path, folder=folder).digest
    except OSError:
        return UNREADABLE
