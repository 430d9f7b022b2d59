"""Episodes written out as EgoDex has them: a video, and an HDF5 file of transforms (arXiv 2505.11709)."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path

import h5py
import numpy as np

from thinkjepa.pipeline.sample.episodes import (
    POSES_FILE,
    ArchiveError,
    Episode,
    Facts,
    camera_transforms,
    joint_transforms,
    read_archive,
)
from thinkjepa.pipeline.sample.skeleton import Skeleton
from thinkjepa.pipeline.sample.tables import CLASSES_FILE, CLIPS_FILE, write_tables

FACTS_FILE = "episodes.json"


def expand_shipped(out: Path) -> list[Path]:
    """Write out the episodes of the package, as `expand` does."""
    with as_file(files("thinkjepa.pipeline.sample") / "hands") as folder:
        return expand(folder, out)


def expand(folder: Path, out: Path) -> list[Path]:
    """Write `out/<task>/<i>.mp4` and `.hdf5` of all episodes of a folder, and what happens in each.

    Where episodes are in folders of the folder, with an archive each, they are written to folders of the same
    names. `out/episodes.json` has the facts by video; `tables` says what is in `clips.csv` and `classes.csv`.
    Returns the files written. Nothing is read or written through a link that leads out of these folders.
    Raises ArchiveError where poses or a video are missing.
    """
    archives = sorted(path.relative_to(folder) for path in folder.rglob(POSES_FILE)) or [Path(POSES_FILE)]
    written: list[Path] = []
    facts: dict[str, Facts] = {}
    for archive in archives:
        skeleton, episodes = read_archive(folder / archive)
        for episode in episodes:
            name = (archive.parent / episode.facts.video).as_posix()
            source, video = folder / name, out / name
            if not source.is_file() or not source.resolve().is_relative_to(folder.resolve()):
                raise ArchiveError(f"{str(folder)!r} has poses of {name!r}, and not the video")
            _make_way(video, out)
            shutil.copyfile(source, video)
            _make_way(video.with_suffix(".hdf5"), out)
            _write_poses(video.with_suffix(".hdf5"), skeleton, episode)
            written += [video, video.with_suffix(".hdf5")]
            facts[name] = episode.facts
    for name in (FACTS_FILE, CLIPS_FILE, CLASSES_FILE):
        _make_way(out / name, out)
    records = {video: asdict(record) for video, record in facts.items()}
    (out / FACTS_FILE).write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return [out / FACTS_FILE, *write_tables(out, facts), *written]


def _make_way(path: Path, out: Path) -> None:
    """Make the folder of a new file, and remove a file or link of its name, which would be written to."""
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise ArchiveError(f"{str(path.parent)!r} is a link that leads out of {str(out)!r}: remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)


def _write_poses(path: Path, skeleton: Skeleton, episode: Episode) -> None:
    """Write an HDF5 file: `transforms` and `confidences` by joint, the camera, and the description."""
    certain = np.ones(episode.facts.num_frames, np.float32)
    poses = {"camera": camera_transforms(episode), **joint_transforms(skeleton, episode)}
    with h5py.File(path, "w") as file:
        file["camera/intrinsic"] = np.asarray(episode.intrinsics, np.float32)
        for name, values in poses.items():
            file[f"transforms/{name}"] = np.asarray(values, np.float32)
        for name in skeleton.joints:
            file[f"confidences/{name}"] = certain
        file.attrs["llm_description"] = episode.facts.description
        file.attrs["which_llm_description"] = "1"
        file.attrs["llm_type"] = "reset"
