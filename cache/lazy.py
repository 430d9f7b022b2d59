"""Features as lazy arrays: dask's, and xarray's with names; nothing is read until it is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import torch

from thinkjepa.cache.records import CacheError

if TYPE_CHECKING:
    from thinkjepa.cache.reader import FeatureCache


class ClipsOnDemand:
    """One array of a feature set as numpy sees arrays, clips in the order of the set's index.

    bfloat16, which numpy lacks, comes as float32. Travels to worker processes as the cache does.
    """

    def __init__(self, cache: FeatureCache, set_name: str, array: str) -> None:
        spec = cache.feature_sets[set_name].arrays[array]
        self._cache, self._set_name, self._array = cache, set_name, array
        self.clip_ids: list[str] = cache.index(set_name).clip_ids.to_pylist()
        self.dims = ("clip", *spec.dims)
        self.shape = (len(self.clip_ids), *spec.shape)
        self.ndim = len(self.shape)
        self.dtype: np.dtype[Any] = self._as_numpy(torch.empty(0, dtype=spec.torch_dtype)).dtype

    def __getitem__(self, key: tuple[slice, ...]) -> npt.NDArray[Any]:
        """The chosen part, by slices; clips are read whole. Raises CacheError for damaged bytes."""
        chosen = self.clip_ids[key[0]]
        values = self._as_numpy(self._cache.read(self._set_name, self._array, chosen))
        return values[(slice(None), *key[1:])]

    @staticmethod
    def _as_numpy(values: torch.Tensor) -> npt.NDArray[Any]:
        numbers: npt.NDArray[Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return numbers


def dask_array(cache: FeatureCache, set_name: str, array: str) -> da.Array:
    """`(clip, *array shape)`, a chunk a clip."""
    clips = ClipsOnDemand(cache, set_name, array)
    return da.from_array(clips, chunks=(1, *clips.shape[1:]), asarray=False, fancy=False)


def data_tree(cache: FeatureCache) -> Any:
    """An `xarray.DataTree` with a group for each feature set, its clips named by their ids.

    Raises CacheError where xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise CacheError("xarray is not installed: pip install 'thinkjepa[xarray]'") from error
    groups = {}
    for name, feature_set in cache.feature_sets.items():
        arrays = {array: ClipsOnDemand(cache, name, array) for array in feature_set.arrays}
        variables = {array: (clips.dims, dask_array(cache, name, array)) for array, clips in arrays.items()}
        ids = next(iter(arrays.values())).clip_ids
        groups[name] = xarray.Dataset(variables, coords={"clip": ids}, attrs={"kind": feature_set.kind})
    return xarray.DataTree.from_dict(groups)
