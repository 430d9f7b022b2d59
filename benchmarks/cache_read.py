"""Speed at which clips reach a batch: our reader against litdata, a mapped file, zarr-python and npz.

Every subject copies the same clips, in random order, into the same preallocated batch tensor, in one
process, with the files in the page cache, batch by batch in turn. A repetition opens the subjects anew and
goes twice through the clips: `first` (page faults of a new mapping and checksums included) and `steady`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import zarr
from litdata import StreamingDataset, optimize
from measure import interleaved, machine, median_ratio, report, rounded, work_folder
from paper_features import (
    OBSERVED,
    clip_id,
    encoder_features,
    encoder_set,
    observed_set,
    thinker_features,
    thinker_set,
    write_cache,
)

from thinkjepa.cache import FeatureCache
from thinkjepa.cache.disk.layout import array_dir
from thinkjepa.stages.train.data.features import Features

Values = np.ndarray[Any, np.dtype[np.float16]]

CLIP_BYTES = 2 * int(np.prod(OBSERVED))
STEP_CLIPS = 4
NO_LIMIT = "1000GB"
"""litdata may use all of the disk: it must not remove chunks."""

PEERS = ("litdata", "mmap", "zarr", "npz")

LITDATA_SCRATCH = ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER")
"""Where litdata prepares its files; without them it leaves folders outside ours."""

EPOCHS = ("first", "steady")

ReadBatch = Callable[[Sequence[int], Values], None]
"""Copy the clips of these numbers to the first places of the batch."""


@dataclass(frozen=True, slots=True)
class Stores:
    """The same clips in every format."""

    folder: Path
    num_clips: int
    num_npz: int

    @property
    def flat(self) -> Path:
        return self.folder / "flat.bin"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def litdata(self) -> Path:
        return self.folder / "litdata"

    def npz(self, number: int) -> Path:
        return self.folder / "npz" / f"{number:06d}.npz"

    def mapped(self) -> np.memmap[Any, np.dtype[np.float16]]:
        return np.memmap(self.flat, dtype=np.float16, mode="r", shape=(self.num_clips, *OBSERVED))


@dataclass(frozen=True, slots=True)
class MappedClip:
    """A picklable function of the clip's number, which litdata calls for each."""

    stores: Stores

    def __call__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(self.stores.mapped()[number].copy())


def write_stores(stores: Stores, *, litdata_chunk_mb: int) -> None:
    """Every clip in every format, written through to the disk so that no write-back runs beside the reads."""
    feature_set = observed_set()
    with stores.flat.open("wb") as file:
        for number in range(stores.num_clips):
            values = encoder_features(feature_set, number).arrays["observed"].numpy()
            file.write(values.data)
            if number < stores.num_npz:
                stores.npz(number).parent.mkdir(exist_ok=True)
                np.savez_compressed(stores.npz(number), observed=values)
    write_cache(
        stores.cache, feature_set, (encoder_features(feature_set, n) for n in range(stores.num_clips))
    )
    for variable in LITDATA_SCRATCH:
        os.environ[variable] = str(stores.folder / variable.lower())
    optimize(
        MappedClip(stores),
        inputs=list(range(stores.num_clips)),
        output_dir=str(stores.litdata),
        chunk_bytes=f"{litdata_chunk_mb}MB",
        num_workers=1,
        verbose=False,
    )
    sync_files(stores.folder)


def sync_files(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


# -- subjects --------------------------------------------------------------------------------------


def open_ours(stores: Stores) -> ReadBatch:
    cache = FeatureCache.open(stores.cache)
    set_name = cache.choose_set("encoder").name

    def read(numbers: Sequence[int], batch: Values) -> None:
        out = torch.from_numpy(batch)[: len(numbers)]
        cache.read(set_name, "observed", [clip_id(number) for number in numbers], out=out)

    return read


def open_mmap(stores: Stores) -> ReadBatch:
    flat = stores.mapped()

    def read(numbers: Sequence[int], batch: Values) -> None:
        for place, number in enumerate(numbers):
            np.copyto(batch[place], flat[number])

    return read


def open_litdata(stores: Stores) -> ReadBatch:
    """litdata's own shuffled iteration, which it is made for: other numbers, equally many clips.

    Its tensors are copied by numpy as everyone's: torch's copy of 8 MB waits for a second thread, which on a
    busy machine takes several times as long.
    """
    dataset = StreamingDataset(str(stores.litdata), shuffle=True, max_cache_size=NO_LIMIT)
    clips = (clip for _ in EPOCHS for clip in dataset)

    def read(numbers: Sequence[int], batch: Values) -> None:
        for place in range(len(numbers)):
            np.copyto(batch[place], next(clips).numpy())

    return read


def open_zarr(stores: Stores) -> ReadBatch:
    """zarr-python on our own files; clip `n` was written as the n-th, so it is row `n`."""
    array = zarr.open_array(array_dir(stores.cache, observed_set().name, "observed"), mode="r")

    def read(numbers: Sequence[int], batch: Values) -> None:
        for place, number in enumerate(numbers):
            batch[place] = array[number]

    return read


def open_npz(stores: Stores) -> ReadBatch:
    """Only some clips exist as npz: inflating sets the pace, not the size of the working set."""

    def read(numbers: Sequence[int], batch: Values) -> None:
        for place, number in enumerate(numbers):
            with np.load(stores.npz(number % stores.num_npz)) as archive:
                batch[place] = archive["observed"]

    return read


OPENERS: dict[str, Callable[[Stores], ReadBatch]] = {
    "ours": open_ours,
    "litdata": open_litdata,
    "mmap": open_mmap,
    "zarr": open_zarr,
    "npz": open_npz,
}

CLIPS_READ = {"npz": 1}
"""Clips of each batch that a subject reads, where not all of them: npz takes a minute for a working set."""


def measure(stores: Stores, *, batch_size: int, repetitions: int) -> dict[str, dict[str, list[float]]]:
    """Seconds per clip of every batch, by epoch and subject."""
    rng = np.random.default_rng(0)
    batch: Values = np.zeros((batch_size, *OBSERVED), dtype=np.float16)
    seconds: dict[str, dict[str, list[float]]] = {epoch: {name: [] for name in OPENERS} for epoch in EPOCHS}
    for _ in range(repetitions):
        readers = {name: opener(stores) for name, opener in OPENERS.items()}
        for epoch in EPOCHS:
            order = rng.permutation(stores.num_clips).reshape(-1, batch_size).tolist()
            subjects = {
                name: partial(read_next, read, iter(order), batch, CLIPS_READ.get(name, batch_size))
                for name, read in readers.items()
            }
            for name, taken in interleaved(subjects, rounds=len(order)).items():
                num_read = CLIPS_READ.get(name, batch_size)
                seconds[epoch][name] += [value / num_read for value in taken]
    return seconds


def read_next(read: ReadBatch, order: Iterator[list[int]], batch: Values, num_read: int) -> None:
    read(next(order)[:num_read], batch)


def check_subjects(stores: Stores) -> None:
    """Every subject must deliver the clips themselves. Raises RuntimeError where one does not."""
    numbers = range(stores.num_npz)
    wanted = stores.mapped()[: stores.num_npz]
    dataset = StreamingDataset(str(stores.litdata), max_cache_size=NO_LIMIT)
    for name, opener in OPENERS.items():
        found = np.zeros_like(wanted)
        if name == "litdata":  # its shuffled order is its own
            found[:] = [dataset[number].numpy() for number in numbers]
        else:
            opener(stores)(numbers, found)
        if not np.array_equal(found.view(np.uint16), wanted.view(np.uint16)):
            raise RuntimeError(f"{name} does not return the clips that were written")


# -- bytes of a training step ----------------------------------------------------------------------


class CountingCache(FeatureCache):
    """A cache that adds up the bytes it delivers."""

    bytes_read = 0

    def read(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        values = super().read(*args, **kwargs)
        self.bytes_read += values.nbytes
        return values


def step_mb_per_clip(folder: Path) -> float:
    """Megabytes a clip that the training's own batch of a FiLM model reads from the cache."""
    numbers = range(STEP_CLIPS)
    wanted = encoder_set()
    write_cache(folder, wanted, (encoder_features(wanted, number) for number in numbers))
    write_cache(folder, thinker_set(), (thinker_features(number) for number in numbers))
    cache = CountingCache.open(folder)
    features = Features(cache, cache.choose_set("encoder"), cache.choose_set("thinker"), cache.clips.all())
    features.batch([clip_id(number) for number in numbers], torch.device("cpu"))
    assert isinstance(cache, CountingCache)
    return cache.bytes_read / STEP_CLIPS / 1e6


def run(
    folder: Path, *, num_clips: int, batch_size: int, repetitions: int, npz_clips: int, litdata_chunk_mb: int
) -> dict[str, object]:
    stores = Stores(folder, num_clips=num_clips, num_npz=min(npz_clips, num_clips))
    write_stores(stores, litdata_chunk_mb=litdata_chunk_mb)
    check_subjects(stores)
    seconds = measure(stores, batch_size=batch_size, repetitions=repetitions)
    first, steady = seconds["first"], seconds["steady"]
    ours_first_s, ours_s = median(first["ours"]), median(steady["ours"])
    faults_s = median(first["mmap"]) - median(steady["mmap"])
    return rounded(
        {
            **{f"vs_{peer}": median_ratio(steady[peer], steady["ours"]) for peer in PEERS},
            **{f"first_vs_{peer}": median_ratio(first[peer], first["ours"]) for peer in PEERS},
            "first_touch_cost": 1 - ours_s / ours_first_s,
            "crc_cost": (ours_first_s - ours_s - faults_s) / ours_first_s,
            "mb_per_clip": step_mb_per_clip(folder / "step"),
            **{f"{name}_gb_s": CLIP_BYTES / median(steady[name]) / 1e9 for name in OPENERS},
            **{f"{name}_first_gb_s": CLIP_BYTES / median(first[name]) / 1e9 for name in OPENERS},
            "working_set_gb": num_clips * CLIP_BYTES / 1e9,
            "npz_clips": stores.num_npz,
            "batch_size": batch_size,
            "repetitions": repetitions,
            "litdata_chunk_mb": litdata_chunk_mb,
            **machine(folder),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one object of figures")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder of temporary files)")
    parser.add_argument("--gigabytes", type=float, default=2.2, help="working set, per format")
    parser.add_argument("--batch-size", type=int, default=8, help="clips per batch")
    parser.add_argument("--repetitions", type=int, default=5, help="times that everything is opened")
    parser.add_argument("--npz-clips", type=int, default=16, help="clips that also exist as npz")
    parser.add_argument("--litdata-chunk-mb", type=int, default=256, help="litdata's chunk_bytes")
    options = parser.parse_args()
    num_batches = max(1, round(options.gigabytes * 1e9 / CLIP_BYTES / options.batch_size))
    num_clips = num_batches * options.batch_size
    with work_folder(options.folder, needed_bytes=4 * num_clips * CLIP_BYTES) as folder:
        figures = run(
            folder,
            num_clips=num_clips,
            batch_size=options.batch_size,
            repetitions=options.repetitions,
            npz_clips=options.npz_clips,
            litdata_chunk_mb=options.litdata_chunk_mb,
        )
    report(figures, as_json=options.json)


if __name__ == "__main__":
    main()
