"""Tables beside written-out episodes: the clip of each, for `--clips`, and its classes, for an oracle.

clips.csv     video, split_frame, group and, where episodes are divided, partition
classes.csv   video, condition, color, place, object_cell, place_cell, pair
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from thinkjepa.pipeline.sample.episodes import PLACES, Facts
from thinkjepa.stages.data.partition import SPLIT_NAMES

CLIPS_FILE, CLASSES_FILE = "clips.csv", "classes.csv"

CELL_M = 0.11
"""Side of the squares of the table by which `classes.csv` tells where things are."""


def write_tables(out: Path, episodes: Mapping[str, Facts]) -> list[Path]:
    """Write both tables, a row for each video, by its path under `out`. Returns the files written.

    The clip of an episode is split where the hand sets out. Its group is the episode itself, alike under all
    conditions. Its partition is the first folder of the video's path, if that has a partition's name.
    """
    partitions = {video: video.partition("/")[0] for video in episodes}
    divided = all(name in SPLIT_NAMES for name in partitions.values())
    clips = [
        {
            "video": video,
            "split_frame": facts.split_frame,
            "group": f"{facts.seed}-{facts.episode}",
            **({"partition": partitions[video]} if divided else {}),
        }
        for video, facts in episodes.items()
    ]
    classes = [{"video": video, **classes_of(facts)} for video, facts in episodes.items()]
    return [write_rows(out / CLIPS_FILE, clips), write_rows(out / CLASSES_FILE, classes)]


def classes_of(facts: Facts) -> dict[str, str]:
    """The classes of an episode's object and place, all as text."""
    place = PLACES.index(facts.place)
    return {
        "condition": facts.condition,
        "color": facts.object.partition(" ")[0],
        "place": facts.place,
        "object_cell": cell_of(facts.objects_m[0]),
        "place_cell": cell_of(facts.places_m[place]),
        "pair": "seen" if facts.seen_pair else "unseen",
    }


def cell_of(position_m: tuple[float, float, float]) -> str:
    """The square of the table that a position (x right, y up, z towards the wearer, metres) is in."""
    x_m, _, z_m = position_m
    return f"{int(x_m // CELL_M)},{int(-z_m // CELL_M)}"


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write a table with the columns of its first row. Returns its file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
