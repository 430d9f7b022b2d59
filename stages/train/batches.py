"""Which clips make up which batch, on which process: pure functions, so that a run can be repeated."""

from collections.abc import Sequence
from dataclasses import dataclass

from thinkjepa.stages.train.randomness import epoch_order


@dataclass(frozen=True, slots=True)
class Share:
    """Clips of a global batch that go through the model at once, on one process.

    Weights are 1, or 0 for a clip that only fills an empty part.
    """

    clip_ids: tuple[str, ...]
    weights: tuple[float, ...]


def training_batches(
    clip_ids: Sequence[str], *, batch_size: int, seed: int, epoch: int
) -> list[tuple[str, ...]]:
    """An epoch's global batches: every clip once, in the order of (seed, epoch); the last may be smaller."""
    shuffled = [clip_ids[index] for index in epoch_order(len(clip_ids), seed=seed, epoch=epoch)]
    return batches_in_order(shuffled, batch_size=batch_size)


def batches_in_order(clip_ids: Sequence[str], *, batch_size: int) -> list[tuple[str, ...]]:
    """Consecutive batches, every clip once."""
    return [tuple(clip_ids[start : start + batch_size]) for start in range(0, len(clip_ids), batch_size)]


def shares_of(batch: tuple[str, ...], *, process: int, num_processes: int, most_clips: int) -> list[Share]:
    """The parts of `batch` that `process` works on one after another, of at most `most_clips` each.

    Together the processes have every clip once. All have the same number of parts, because they exchange
    gradients in step: a part that would be empty runs the batch's first clip at weight 0.
    """
    own = batch[process::num_processes]
    largest = -(-len(batch) // num_processes)
    parts = [own[start : start + most_clips] for start in range(0, largest, most_clips)]
    return [Share(part, (1.0,) * len(part)) if part else Share(batch[:1], (0.0,)) for part in parts]
