"""Videos and clips found by what people type: a path, a file name, a pattern, a video and a split frame."""

from __future__ import annotations

from collections.abc import Callable, Collection
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import PurePosixPath

import numpy as np

from thinkjepa.cache.reader import FeatureCache
from thinkjepa.cache.records import CacheError
from thinkjepa.cache.tables.clips import ClipSelection

MOST_LISTED = 8
"""Candidates that a message lists; the others are counted."""

MOST_COMPARED = 50_000
"""Videos whose names are compared with a mistyped one: a second of work."""


def videos_named(videos: Collection[str], name: str) -> set[str]:
    """The videos that a name means, by the first of these rules that finds any.

    The path in the videos' folder; the end of it; a pattern (`*`, `?`, `[...]`) for either; either without
    its extension; a longer path that ends with it, as a shell completes it.
    """
    rules: tuple[Callable[[str], bool], ...] = (
        lambda video: video == name,
        lambda video: video.endswith(f"/{name}"),
        lambda video: fnmatchcase(video, name) or fnmatchcase(video, f"*/{name}"),
        lambda video: f"/{PurePosixPath(video).with_suffix('')}".endswith(f"/{name}"),
        lambda video: name.endswith(f"/{video}"),
    )
    return next((found for rule in rules if (found := set(filter(rule, videos)))), set())


def clips_of(cache: FeatureCache, video: str) -> ClipSelection:
    """The clips of the videos that a name or a pattern means, sorted by id. Raises CacheError for none."""
    clips = cache.clips.all().by_clip_id()
    videos = clips.values("video")
    meant = videos_named(set(videos), video)
    if not meant:
        near = _nearest(videos, video)
        raise CacheError(
            f"no video matches {video!r} in {str(cache.path)!r}{near}: thinkjepa-cache ls lists all"
        )
    return clips.where(np.array([path in meant for path in videos], dtype=bool))


def find_clip_id(cache: FeatureCache, name: str, *, set_names: Collection[str] = ()) -> str:
    """The clip that `name` means: a clip id, a video's id or name, or `<name>@<split frame>`.

    Clips with features, in the named sets where some are given, go before those without. Raises CacheError
    with the candidates where several are meant, and with the nearest names where none is.
    """
    clips = cache.clips.all().by_clip_id()
    if len(clips.only([name])):
        return name
    held = np.zeros(len(clips), dtype=bool)
    for set_name in set_names or cache.feature_sets:
        held |= cache.index(set_name).holds(clips.clip_ids)
    for some in (clips.where(held), clips):
        found = _named(some, name)
        if len(found) == 1:
            return next(iter(found))
        if found:
            raise CacheError(f"{name!r} means {len(found)} clips, name one: {_listed(found.values())}")
    of_video = _named(clips, name.rpartition("@")[0])
    near = (
        f"; its video has {_listed(of_video.values())}" if of_video else _nearest(clips.values("video"), name)
    )
    raise CacheError(f"no clip is named {name!r} in {str(cache.path)!r}{near}: thinkjepa-cache ls lists all")


def _named(clips: ClipSelection, name: str) -> dict[str, str]:
    """The clips that `name` means, by id, each as `<video>@<split frame>`, in this order."""
    videos, split_frames = clips.values("video"), clips.values("split_frame")
    video, _, frame = name.rpartition("@")
    split_frame = int(frame) if video and frame.isascii() and frame.isdigit() else None
    meant = videos_named(set(videos), name if split_frame is None else video)
    rows = zip(videos, split_frames, clips.clip_ids.to_pylist(), strict=True)
    found = sorted(
        row
        for row in rows
        if (row[0] in meant and split_frame in (None, row[1])) or row[2].rpartition("@")[0] == name
    )
    return {clip_id: f"{path}@{split}" for path, split, clip_id in found}


def _nearest(videos: Collection[str], name: str) -> str:
    """The names most like a mistyped one, as the end of a message."""
    some = sorted(set(videos))[:MOST_COMPARED]
    by_spelling = {PurePosixPath(path).name: path for path in some} | {path: path for path in some}
    near = get_close_matches(name.rpartition("@")[0] or name, by_spelling, n=3)
    return f"; the nearest are {_listed({by_spelling[spelling]: None for spelling in near})}" if near else ""


def _listed(names: Collection[str]) -> str:
    some = ", ".join(map(repr, islice(names, MOST_LISTED)))
    return some if len(names) <= MOST_LISTED else f"{some} and {len(names) - MOST_LISTED} more"
