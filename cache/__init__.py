"""The feature cache: frozen models' features, standard zarr on disk, mapped in memory."""

from thinkjepa.cache.errors import CacheError, ThinkJepaError

__all__ = ["CacheError", "ThinkJepaError"]
