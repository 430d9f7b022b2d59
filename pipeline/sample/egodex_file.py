"""Poses in an HDF5 file as EgoDex (arXiv 2505.11709) lays them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

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
