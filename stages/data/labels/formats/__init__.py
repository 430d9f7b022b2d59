"""The label formats: a module here that offers a `READER` is one, and nothing else names it."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from thinkjepa.stages.data.labels.contract import LabelReader

READERS: tuple[LabelReader, ...] = tuple(
    import_module(f"{__name__}.{item.name}").READER for item in pkgutil.iter_modules(__path__)
)
"""The formats, by the names of their modules."""

OWN_FILES = {suffix: reader for reader in READERS for suffix in reader.suffixes}
"""Readers of a video's own file, by the end of its name."""

FOLDER_FILES = {name: reader for reader in READERS for name in reader.folder_files}
"""Readers of files with the labels of many videos, by the file's name."""

NAMES_HELP = ", ".join([*(f"<video>{suffix}" for suffix in OWN_FILES), *FOLDER_FILES])
