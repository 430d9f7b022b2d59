"""Rate at which clips become durable: our writer against a raw sequential write of the same bytes.

Both write the thinker's ragged states and the encoder's arrays of the same clips at the paper's sizes. Ours
checks shapes and finiteness, computes checksums, journals every batch, seals shards and publishes their
index; raw writes every array's bytes to one file and syncs it once a batch, which is what survives a power
cut equally often, and, as `raw_once`, only at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from measure import interleaved, machine, median_ratio, report, rounded, work_folder
from paper_features import (
    CLIPS_PER_BATCH,
    batches_of,
    encoder_features,
    encoder_set,
    thinker_features,
    thinker_set,
    write_cache,
)

from thinkjepa.cache import ClipFeatures, FeatureSet

CLIP_BYTES = 56 * 10**6
"""Thinker and encoder arrays of one clip, rounded up, for choosing how many clips there are."""

Features = Sequence[tuple[FeatureSet, Sequence[ClipFeatures]]]


def make_features(num_clips: int) -> Features:
    encoder, thinker = encoder_set(), thinker_set()
    return (
        (encoder, [encoder_features(encoder, number) for number in range(num_clips)]),
        (thinker, [thinker_features(number) for number in range(num_clips)]),
    )


def write_ours(features: Features, folder: Path) -> None:
    for feature_set, clips in features:
        write_cache(folder, feature_set, clips)


def write_raw(features: Features, folder: Path, *, sync_batches: bool) -> None:
    folder.mkdir()
    for feature_set, clips in features:
        with (folder / feature_set.name).open("wb", buffering=0) as file:
            for batch in batches_of(clips, CLIPS_PER_BATCH):
                for clip in batch:
                    for values in clip.arrays.values():
                        write_all(file.fileno(), memoryview(values.numpy()).cast("B"))
                if sync_batches:
                    os.fsync(file.fileno())
            os.fsync(file.fileno())


def write_all(descriptor: int, raw: memoryview) -> None:
    """A single write takes at most 2 GiB and may take less than it is given."""
    while raw:
        raw = raw[os.write(descriptor, raw) :]


SUBJECTS = {
    "ours": write_ours,
    "raw": partial(write_raw, sync_batches=True),
    "raw_once": partial(write_raw, sync_batches=False),
}


def measure(features: Features, folder: Path, *, repetitions: int) -> Mapping[str, Sequence[float]]:
    """Seconds of every subject; what each leaves behind is removed at once, outside its time."""
    seconds: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    for number in range(repetitions):
        names = list(SUBJECTS)[number % len(SUBJECTS) :] + list(SUBJECTS)[: number % len(SUBJECTS)]
        for name in names:
            taken = interleaved({name: partial(SUBJECTS[name], features, folder / name)}, rounds=1)
            seconds[name] += taken[name]
            shutil.rmtree(folder / name)
            os.sync()
    return seconds


def run(folder: Path, *, num_clips: int, repetitions: int) -> dict[str, object]:
    features = make_features(num_clips)
    num_bytes = sum(
        values.nbytes for _, clips in features for clip in clips for values in clip.arrays.values()
    )
    seconds = measure(features, folder, repetitions=repetitions)
    return rounded(
        {
            "vs_raw": median_ratio(seconds["raw"], seconds["ours"]),
            "vs_raw_once": median_ratio(seconds["raw_once"], seconds["ours"]),
            **{f"{name}_gb_s": num_bytes / median(taken) / 1e9 for name, taken in seconds.items()},
            "mb_per_clip": num_bytes / num_clips / 1e6,
            "written_gb": num_bytes / 1e9,
            "clips_per_batch": CLIPS_PER_BATCH,
            "repetitions": repetitions,
            **machine(folder),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one object of figures")
    parser.add_argument("--folder", type=Path, help="where to work (default: the folder of temporary files)")
    parser.add_argument("--gigabytes", type=float, default=1.8, help="features, held in memory and written")
    parser.add_argument("--repetitions", type=int, default=5, help="times that everything is written")
    options = parser.parse_args()
    num_clips = max(1, round(options.gigabytes * 1e9 / CLIP_BYTES))
    with work_folder(options.folder, needed_bytes=2 * num_clips * CLIP_BYTES) as folder:
        figures = run(folder, num_clips=num_clips, repetitions=options.repetitions)
    report(figures, as_json=options.json)


if __name__ == "__main__":
    main()
