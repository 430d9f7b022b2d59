"""Time that a consumer waits for the training's batches at the paper's sizes.

The consumer takes 50 ms for a batch of 16 clips, as a fast GPU would, without using a core. Batches come as
in training: copied from the mapped cache into buffers that are used again, by a thread that reads ahead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

from measure import machine, report, rounded, work_folder
from paper_features import clip_id, encoder_features, encoder_set, write_cache

from thinkjepa.cache import FeatureCache
from thinkjepa.stages.train.data.batches import new_buffers, prefetched, training_batches
from thinkjepa.stages.train.data.features import Batch, Features

CLIP_MB = 16.8


def main() -> None:
    parser = argparse.ArgumentParser(description="Waiting for batches at the paper's clip sizes.")
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--consumer-ms", type=float, default=50.0)
    parser.add_argument("--epochs", type=int, default=6, help="passes; the first, with checksums, is apart")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with work_folder(options.folder, needed_bytes=int(2 * options.clips * CLIP_MB * 1e6)) as folder:
        report(measured(folder, options), as_json=options.json)


def measured(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Share of the time that is waiting, reading ahead and (`without`) reading when asked."""
    item = encoder_set()
    write_cache(folder / "cache", item, (encoder_features(item, number) for number in range(options.clips)))
    cache = FeatureCache.open(folder / "cache")
    features = Features(cache, cache.choose_set("encoder"), None, cache.clips.all())
    ids = [clip_id(number) for number in range(options.clips)]
    consumer_s, ahead, without, buffers = options.consumer_ms / 1000, [], [], new_buffers()
    for epoch in range(options.epochs):
        batches = training_batches(ids, batch_size=options.batch_size, seed=0, epoch=epoch)
        ahead.append(wait_share(prefetched(batches, features.stored, buffers=buffers), consumer_s))
        without.append(wait_share((features.stored(batch, buffers[0]) for batch in batches), consumer_s))
    return rounded(
        {
            "wait_share": statistics.median(ahead[1:]),
            "wait_share_without": statistics.median(without[1:]),
            "first_wait_share": ahead[0],
            "consumer_ms": options.consumer_ms,
            "batch_mb": options.batch_size * CLIP_MB,
            **machine(folder),
        }
    )


def wait_share(batches: Iterable[Batch], consumer_s: float) -> float:
    """Waiting as a share of a pass, from the first batch's arrival on."""
    source, waited_s = iter(batches), 0.0
    next(source)
    began = time.perf_counter()
    while True:
        time.sleep(consumer_s)
        asked = time.perf_counter()
        arrived = next(source, None)
        if arrived is None:
            return waited_s / (asked - began)
        waited_s += time.perf_counter() - asked


if __name__ == "__main__":
    main()
