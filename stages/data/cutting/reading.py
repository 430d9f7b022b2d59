"""The table of `--clips`, csv or parquet: a row for each clip.

    video                   relative path under the folder of videos, with forward slashes
    split_s or split_frame  the first moment of the future: seconds, or a frame counted from 0
    start_s, end_s          optional, seconds: the segment that no frame leaves, `[start_s, end_s)`
    group                   optional: clips that resemble each other, for `--group-by file`
    partition               optional: train, validation or test, for `--partition file`

An empty cell of an optional column says nothing. Rows are counted from 1, below the header.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from thinkjepa.stages.data.partition import SPLIT_NAMES
from thinkjepa.stages.errors import StageError

TEXTS = ("video", "group", "partition")
NUMBERS = ("split_s", "split_frame", "start_s", "end_s")

MOST_CHARACTERS = 200
"""Of the name of a group, which reports show."""


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """One row of the table."""

    where: str
    """File and row, for messages."""
    video: str
    split_s: float | None = None
    split_frame: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    group: str = ""
    partition: str = ""
    number: int = 1
    """Of the row, from 1."""


@dataclass(frozen=True, slots=True)
class ClipFile:
    """A table that was read and checked as far as it can be without its videos."""

    path: Path
    by_video: Mapping[str, tuple[ClipRequest, ...]]
    """Rows by the video's name, in the order of the table."""

    def check_videos(self, names: Collection[str], folder: Path) -> None:
        """Raises StageError for a row whose video is not among `names`."""
        for video, rows in self.by_video.items():
            if video not in names:
                near = get_close_matches(video, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "give its path relative to that folder"
                raise StageError(
                    f"{rows[0].where}: there is no video {video!r} under {str(folder)!r}: {hint}"
                )

    def row_of(self, video: Path, number: int | None = None) -> ClipRequest:
        """The row of a video file, by the end of its path, or of its rows the one of this number.

        Raises StageError where there is none, or several.
        """
        path = f"/{video.absolute().as_posix()}"
        rows = [row for name, own in self.by_video.items() if path.endswith(f"/{name}") for row in own]
        chosen = [row for row in rows if number in (None, row.number)]
        if len(chosen) == 1:
            return chosen[0]
        numbers = ", ".join(str(row.number) for row in rows) or "none"
        raise StageError(
            f"--clips {str(self.path)!r}: rows of {str(video)!r} are {numbers}: name one of them with --row"
            if rows
            else f"--clips {str(self.path)!r} has no row of {str(video)!r}: its column video has the end of "
            "that path"
        )


def read_clip_file(path: Path) -> ClipFile:
    """Raises StageError naming file, row and remedy."""
    table = _read(path)
    unknown = sorted(set(table) - {*TEXTS, *NUMBERS})
    if unknown or "video" not in table or not {"split_s", "split_frame"} & set(table):
        found = (
            f"column {unknown[0]!r} is unknown" if unknown else f"columns are {', '.join(table) or 'none'}"
        )
        raise StageError(
            f"--clips {str(path)!r}: {found}; it needs video and split_s or split_frame, and may have "
            "start_s, end_s, group and partition"
        )
    names = list(table)
    rows = [
        _request(f"{path}, row {number}", number, dict(zip(names, values, strict=True)))
        for number, values in enumerate(zip(*table.values(), strict=True), start=1)
    ]
    if not rows:
        raise StageError(f"--clips {str(path)!r} has no rows: give one for each clip")
    for name in ("group", "partition"):
        _check_all_or_none(rows, name)
    by_video: dict[str, list[ClipRequest]] = {}
    for row in rows:
        by_video.setdefault(row.video, []).append(row)
    return ClipFile(path, {video: tuple(own) for video, own in by_video.items()})


def _read(path: Path) -> Mapping[str, list[Any]]:
    """Columns of the file; those of a csv file are text."""
    import pyarrow as pa  # the settings of clips are shown without it
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if path.suffix.lower() == ".parquet":
            table = pyarrow.parquet.read_table(path)
        else:
            texts = pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys((*TEXTS, *NUMBERS), pa.string()),
                strings_can_be_null=True,
                null_values=[""],
            )
            table = pyarrow.csv.read_csv(path, convert_options=texts)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StageError(f"--clips {str(path)!r} cannot be read as csv or parquet: {reason}") from error
    if repeated := [name for name in table.column_names if table.column_names.count(name) > 1]:
        raise StageError(f"--clips {str(path)!r} has two columns {repeated[0]!r}: keep one")
    return {name: table[name].to_pylist() for name in table.column_names}


def _request(where: str, number: int, values: Mapping[str, Any]) -> ClipRequest:
    texts = {name: _text(values.get(name), name, where) for name in TEXTS}
    numbers = {name: _number(values.get(name), name, where) for name in NUMBERS}
    split_s, split_frame = numbers["split_s"], numbers["split_frame"]
    start_s, end_s = numbers["start_s"], numbers["end_s"]
    if not texts["video"]:
        raise StageError(f"{where}: video is empty: give its path relative to the folder of videos")
    if (split_s is None) == (split_frame is None):
        both = "split_s and split_frame are both given" if split_s is not None else "there is no split"
        raise StageError(f"{where}: {both}: give one of split_s (seconds) and split_frame")
    if split_frame is not None and not split_frame.is_integer():
        raise StageError(f"{where}: split_frame {split_frame:g} is no whole number: frames count from 0")
    if start_s is not None and end_s is not None and start_s >= end_s:
        raise StageError(f"{where}: start_s {start_s:g} is not before end_s {end_s:g}")
    if texts["partition"] and texts["partition"] not in SPLIT_NAMES:
        raise StageError(f"{where}: partition {texts['partition']!r} is not one of {', '.join(SPLIT_NAMES)}")
    frame = None if split_frame is None else int(split_frame)
    return ClipRequest(
        where, split_s=split_s, split_frame=frame, start_s=start_s, end_s=end_s, number=number, **texts
    )


def _text(value: Any, name: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise StageError(f"{where}: {name} holds {value!r}, expected text")
    if not value.isprintable() or (name != "video" and len(value) > MOST_CHARACTERS):
        raise StageError(
            f"{where}: {name} {value[:MOST_CHARACTERS]!r} has control characters or more than "
            f"{MOST_CHARACTERS} of any: give a plain name"
        )
    return value


def _number(value: Any, name: str, where: str) -> float | None:
    """A number of 0 or more. A csv file holds it as text."""
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise StageError(f"{where}: {name} holds {value!r}, expected a finite number")
    if number < 0:
        raise StageError(f"{where}: {name} {number:g} is before the video begins: give 0 or more")
    return number


def _check_all_or_none(rows: Iterable[ClipRequest], name: str) -> None:
    """Raises StageError where some rows have a value of an optional column, and others have none."""
    without = [row for row in rows if not getattr(row, name)]
    if without and len(without) < len(list(rows)):
        raise StageError(f"{without[0].where}: {name} is empty, other rows have one: give all or none")
