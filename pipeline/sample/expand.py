"""Poses in an HDF5 file as EgoDex (arXiv 2505.11709) lays them out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from thinkjepa.pipeline.sample.archive import POSES_FILE, ArchiveError, Episode, read_archive
from thinkjepa.pipeline.sample.skeleton import Skeleton, camera_poses

Floats = npt.NDArray[np.float64]


def write_egodex(
    path: Path,
    *,
    transforms: Mapping[str, Floats],
    camera: Floats,
    intrinsics: Floats,
    description: str,
    confidences: Mapping[str, npt.NDArray[np.float32]],
) -> None:
    """Write joint-to-world transforms `(frame, 4, 4)` by joint name, and the camera's, y up, metres.

    `intrinsics` `(3, 3)` in pixels; `confidences` `(frame,)` from 0 to 1 by joint name.
    """
    with h5py.File(path, "w") as file:
        file["camera/intrinsic"] = np.asarray(intrinsics, np.float32)
        for name, poses in {"camera": camera, **transforms}.items():
            file[f"transforms/{name}"] = np.asarray(poses, np.float32)
        for name, values in confidences.items():
            file[f"confidences/{name}"] = np.asarray(values, np.float32)
        file.attrs["llm_description"] = description
        file.attrs["which_llm_description"] = "1"
        file.attrs["llm_type"] = "reset"


FACTS_FILE = "episodes.json"

# EgoDex's world is ARKit's: y up. Ours has z up, as MuJoCo's.
Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])


def expand_shipped(out: Path, *, advance: Callable[[int], None] = lambda count: None) -> list[Path]:
    """Write out the episodes that come with the package."""
    with as_file(files("thinkjepa.pipeline.sample") / "hands") as folder:
        return expand(folder, out, advance=advance)


def expand(folder: Path, out: Path, *, advance: Callable[[int], None] = lambda count: None) -> list[Path]:
    """Write `out/<task>/<i>.mp4` and `.hdf5` of all episodes of a folder, and `out/episodes.json`.

    Returns the files written. Raises ArchiveError where the folder lacks poses or a video.
    """
    skeleton, episodes = read_archive(folder / POSES_FILE)
    written = [out / FACTS_FILE]
    for episode in episodes:
        source, video = folder / episode.facts.video, out / episode.facts.video
        if not source.is_file():
            raise ArchiveError(f"{str(folder)!r} has poses of {episode.facts.video!r}, and not the video")
        video.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, video)
        _write_poses(video.with_suffix(".hdf5"), skeleton, episode)
        written += [video, video.with_suffix(".hdf5")]
        advance(1)
    facts = {episode.facts.video: asdict(episode.facts) for episode in episodes}
    written[0].write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return written


def joint_transforms(skeleton: Skeleton, episode: Episode) -> dict[str, Floats]:
    """Joint to world `(frame, 4, 4)`, y up, by EgoDex's name of the joint."""
    poses = Y_UP @ skeleton.joint_poses(episode.hand)
    return {name: poses[:, joint] for joint, name in enumerate(skeleton.joints)}


def camera_transforms(episode: Episode) -> Floats:
    """Camera to world `(frame, 4, 4)`, y up; of the camera x right, y down, z forward."""
    return np.asarray(Y_UP @ camera_poses(episode.camera))


def _write_poses(path: Path, skeleton: Skeleton, episode: Episode) -> None:
    certain = np.ones(episode.facts.num_frames, np.float32)
    write_egodex(
        path,
        transforms=joint_transforms(skeleton, episode),
        camera=camera_transforms(episode),
        intrinsics=episode.intrinsics,
        description=episode.facts.description,
        confidences=dict.fromkeys(skeleton.joints, certain),
    )
