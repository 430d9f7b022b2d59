"""Measurement of the sample's thinker on videos of episodes that its training has never shown.

Episodes are rendered and encoded as the sample's are, and the thinker's states are extracted by the
project's own command. What it says is compared with the truth, and object and place are read linearly off
every array that the cache keeps.
"""

from __future__ import annotations

import csv
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from statistics import mean

from hands.plan import CONDITIONS, HELD_OUT_PAIRS, PLACES, Condition
from torch import Tensor

from sample_models.linear_readout import share_read_right
from sample_models.thinker.sights import write_videos
from sample_models.thinker.words import Sight, right_parts
from thinkjepa.cache import STREAMS, FeatureCache
from thinkjepa.pipeline.sample.models import write_tiny_models

LEAST_RIGHT = 0.9
"""Share of answers and of read-outs that have to be right where the card tells."""

CHANCE_MARGIN = 0.1
"""A read-out may exceed chance by as much with a neutral card: three standard errors of 200 clips."""

FOLDS = 8

VALIDATED = 0.15
"""Share of the clips that are not of a fold, which choose the read-out's strength."""


@dataclass(frozen=True, slots=True)
class CheckedClip:
    """A clip of an episode, with the truth."""

    clip_id: str
    condition: Condition
    sight: Sight
    said: str

    @property
    def pair(self) -> tuple[str, str]:
        """Color of the thing that is taken, and the place where it goes."""
        return self.sight.names[0].split()[0], PLACES[self.sight.place]


def check_thinker(
    thinker: Path,
    work: Path,
    *,
    seed: int,
    num_episodes: int,
    workers: int,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, object]:
    """Figures of a thinker, and whether they are good enough, from `num_episodes` under each condition.

    Videos and features go to `work`, which is made anew. Needs `hands.generate.check_renderable`.
    """
    shutil.rmtree(work, ignore_errors=True)
    write = partial(write_videos, work / "videos", seed=seed)
    written = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for told in pool.map(write, range(num_episodes)):
            written.append(told)
            advance(1)
    with (work / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["video", "split_frame"])
        for number, (split, _) in enumerate(written):
            table.writerows([f"{condition}/{number}.mp4", split] for condition in CONDITIONS)
    extract(thinker, work)
    return figures_of(work / "features", [sight for _, sight in written], seed=seed)


def figures_of(cache_dir: Path, sights: Sequence[Sight], *, seed: int) -> dict[str, object]:
    """Figures of the features of videos `<condition>/<number>.mp4`, with the truth by number."""
    cache = FeatureCache.open(cache_dir)
    chosen = cache.choose_set("thinker")
    index = cache.index(chosen.name)
    clips: dict[Condition, list[CheckedClip]] = {condition: [] for condition in CONDITIONS}
    # Ids are digests of the content: an order that is none of tasks.
    for clip in sorted(cache.select(chosen.name), key=lambda clip: clip.clip_id):
        path = PurePosixPath(clip.video)
        condition = next(condition for condition in CONDITIONS if condition == path.parent.name)
        said = index[clip.clip_id].generated_text
        clips[condition].append(CheckedClip(clip.clip_id, condition, sights[int(path.stem)], said))
    answers = {condition: answered(found) for condition, found in clips.items()}
    read = {
        condition: read_off(kept_arrays(cache, chosen.name, [clip.clip_id for clip in found]), found)
        for condition, found in clips.items()
    }
    return {
        "episodes": len(sights),
        "seed": seed,
        "answers": answers,
        "read_out": read,
        "good_enough": is_good_enough(answers, read),
        "examples": {condition: found[0].said for condition, found in clips.items()},
    }


def extract(thinker: Path, work: Path) -> None:
    """The features of the thinker; the encoder is an untrained one, which nothing reads."""
    write_tiny_models(work / "untrained", seed=0)
    command = f"""
        --videos {work / "videos"} --clips {work / "clips.csv"} --cache-dir {work / "features"}
        --thinker {thinker} --encoder {work / "untrained" / "encoder"}
        --thinker-frames 8 --observed-frames 2 --future-frames 2 --device cpu
    """
    program = Path(sys.executable).parent / "thinkjepa-cache"
    subprocess.run([program, "extract", *command.split()], check=True, stdout=subprocess.DEVNULL)


def answered(clips: Sequence[CheckedClip]) -> dict[str, float]:
    """Shares of right answers and of their parts, and those of pairs that training has and has not shown."""
    parts = [right_parts(clip.said, clip.sight, told=clip.condition != "no-cue") for clip in clips]
    figures = {name: mean(part[name] for part in parts) for name in parts[0]}
    for name, is_held_out in (("seen_pairs", False), ("unseen_pairs", True)):
        right = [
            part["answer"]
            for part, clip in zip(parts, clips, strict=True)
            if (clip.pair in HELD_OUT_PAIRS) == is_held_out
        ]
        if right:
            figures[name] = mean(right)
            figures[f"num_{name}"] = len(right)
    return figures


def kept_arrays(cache: FeatureCache, set_name: str, ids: Sequence[str]) -> dict[str, Tensor]:
    """Everything that the cache keeps of clips, each array of all layers as numbers `(clip, number)`."""
    pooled = cache.read(set_name, "pooled", ids).float()
    index = cache.index(set_name)
    counts = [index[clip_id] for clip_id in ids]
    slots = cache.read(set_name, "slots", ids, tokens=min(row.slot_count for row in counts))
    text = cache.read(set_name, "text_tokens", ids, tokens=min(row.text_count for row in counts))
    arrays = {stream: pooled[:, :, number] for number, stream in enumerate(STREAMS)}
    arrays |= {"slots": slots.float(), "text_tokens": text.float()}
    return {name: values.flatten(1) for name, values in arrays.items()}


def read_off(arrays: Mapping[str, Tensor], clips: Sequence[CheckedClip]) -> dict[str, dict[str, float]]:
    """Share of clips whose color and place are read right, for each array, and by chance."""
    colors, places = zip(*(clip.pair for clip in clips), strict=True)
    # A color is that of one of the things on the table, which can be seen.
    chance = {"color": 1 / len(clips[0].sight.names), "place": max(map(places.count, places)) / len(places)}
    return {"chance": chance} | {
        name: {"color": cross_validated(states, colors), "place": cross_validated(states, places)}
        for name, states in arrays.items()
    }


def cross_validated(states: Tensor, classes: Sequence[str]) -> float:
    """Share of clips whose class a read-out finds that was fitted on the other folds."""
    numbers, right = range(len(classes)), 0.0
    for fold in range(FOLDS):
        test = [number for number in numbers if number % FOLDS == fold]
        order = [number for number in numbers if number % FOLDS != fold] + test
        share = share_read_right(
            states[order],
            [classes[number] for number in order],
            num_validation=round(VALIDATED * len(classes)),
            num_test=len(test),
        )
        right += share * len(test)
    return right / len(classes)


def is_good_enough(
    answers: Mapping[str, Mapping[str, float]], read: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> bool:
    """True if answers and read-outs reach LEAST_RIGHT with a card, and are at chance without."""
    arrays = [name for name in read["cue"] if name != "chance"]
    told = all(answers[condition]["answer"] >= LEAST_RIGHT for condition in CONDITIONS)
    readable = all(share >= LEAST_RIGHT for name in arrays for share in read["cue"][name].values())
    chance = read["no-cue"]["chance"]
    untold = all(
        share <= chance[target] + CHANCE_MARGIN
        for name in arrays
        for target, share in read["no-cue"][name].items()
    )
    return told and readable and untold
