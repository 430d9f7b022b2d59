"""The user's own clips: what a table may say, and that no frame of a clip leaves its segment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from thinkjepa.stages.data.cutting.cuts import place, requested_cuts
from thinkjepa.stages.data.cutting.overlap import shared_videos
from thinkjepa.stages.data.cutting.reading import ClipRequest, read_clip_file
from thinkjepa.stages.data.decoding.client import VideoInfo
from thinkjepa.stages.data.plan import ClipSettings, plan_clips
from thinkjepa.stages.data.videos import SourceVideo
from thinkjepa.stages.errors import StageError

HEADER = "video,split_s,split_frame,start_s,end_s,group,partition\n"
TIMES_S = np.arange(90) / 30
VIDEO = SourceVideo(Path("a.mp4"), "a.mp4", "a" * 64, (0, 0, 0))


def written(folder: Path, text: str) -> Path:
    path = folder / "clips.csv"
    path.write_text(text)
    return path


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = HEADER + "pour/0.mp4,1.5,,0.5,2,kitchen,train\n001,,30,,,hall,test\n"
    table = read_clip_file(written(tmp_path, rows))
    assert table.by_video["pour/0.mp4"] == (
        ClipRequest(f"{tmp_path}/clips.csv, row 1", "pour/0.mp4", 1.5, None, 0.5, 2.0, "kitchen", "train"),
    )
    assert [row.split_frame for row in table.by_video["001"]] == [30]
    columns = {
        "video": ["pour/0.mp4", "001"],
        "split_s": [1.5, None],
        "split_frame": [None, 30],
        "start_s": [0.5, None],
        "end_s": [2, None],
        "group": ["kitchen", "hall"],
        "partition": ["train", "test"],
    }
    pq.write_table(pa.table(columns), tmp_path / "clips.parquet")
    again = read_clip_file(tmp_path / "clips.parquet")
    without_places = [
        [(row.split_s, row.split_frame, row.start_s, row.end_s, row.group) for rows in found for row in rows]
        for found in (table.by_video.values(), again.by_video.values())
    ]
    assert without_places[0] == without_places[1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.mp4,1,30,,,,", "row 1: split_s and split_frame are both given: give one"),
        ("a.mp4,,,,,,", "row 1: there is no split: give one of split_s"),
        (",1,,,,,", "row 1: video is empty"),
        ("a.mp4,soon,,,,,", "row 1: split_s holds 'soon', expected a finite number"),
        ("a.mp4,nan,,,,,", "row 1: split_s holds 'nan', expected a finite number"),
        ("a.mp4,inf,,,,,", "row 1: split_s holds 'inf'"),
        ("a.mp4,-1,,,,,", "row 1: split_s -1 is before the video begins"),
        ("a.mp4,,1.5,,,,", "row 1: split_frame 1.5 is no whole number"),
        ("a.mp4,1,,2,1,,", "row 1: start_s 2 is not before end_s 1"),
        ("a.mp4,1,,,,,dev", "row 1: partition 'dev' is not one of train, validation, test"),
        ("a.mp4,1,,,,g,\nb.mp4,1,,,,,", "row 2: group is empty, other rows have one: give all or none"),
        ("a.mp4,1,,,,,test\nb.mp4,1,,,,,", "row 2: partition is empty, other rows have one"),
        (f"a.mp4,1,,,,{'x' * 201},", "row 1: group 'xx.* more than 200"),
        ('"a\x1b[2J.mp4",1,,,,,', r"row 1: video 'a\\x1b\[2J.mp4' has control characters"),
        ("", "has no rows"),
    ],
)
def test_a_wrong_row_is_named_with_a_remedy(tmp_path: Path, row: str, reason: str) -> None:
    with pytest.raises(StageError, match=reason) as refused:
        read_clip_file(written(tmp_path, HEADER + row + "\n"))
    assert "clips.csv" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("video,when\na.mp4,1\n", "column 'when' is unknown; it needs"),
        ("video,start_s\na.mp4,1\n", "columns are video, start_s; it needs"),
        ("video,split_s,split_s\na.mp4,1,1\n", "two columns 'split_s'"),
        ("video,split_s\na.mp4\n", "cannot be read as csv or parquet"),
        (None, "cannot be read as csv or parquet"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "missing.csv" if text is None else written(tmp_path, text)
    with pytest.raises(StageError, match=reason):
        read_clip_file(path)


def test_numbers_of_the_wrong_type_in_a_parquet_file_are_named(tmp_path: Path) -> None:
    for values, reason in (
        ({"video": [3], "split_s": [1.0]}, "row 1: video holds 3, expected text"),
        ({"video": ["a"], "split_s": [True]}, "row 1: split_s holds True, expected a finite number"),
        ({"video": ["a"], "split_s": [float("nan")]}, "row 1: split_s holds nan"),
    ):
        pq.write_table(pa.table(values), tmp_path / "clips.parquet")
        with pytest.raises(StageError, match=reason):
            read_clip_file(tmp_path / "clips.parquet")


def test_a_video_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    table = read_clip_file(written(tmp_path, HEADER + "../pour/0.mp4,1,,,,,\n"))
    with pytest.raises(StageError, match=r"row 1: there is no video '../pour/0.mp4' .* mean 'pour/0.mp4'"):
        table.check_videos(["pour/0.mp4"], tmp_path)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (ClipRequest("row", "a", split_s=3.5), "split_s 3.5 is outside the video, which has 90 frames"),
        (ClipRequest("row", "a", split_frame=90), "split_frame 90 is outside the video"),
        (ClipRequest("row", "a", split_s=0.0), "split_s 0 is outside the video"),
        (ClipRequest("row", "a", split_s=1.0, start_s=1.0), "outside the segment, which goes from 1 s"),
        (ClipRequest("row", "a", split_s=2.0, end_s=2.0), "outside the segment, which goes from 0 s to 2 s"),
        (ClipRequest("row", "a", split_s=2.0, end_s=2000.0), "end_s 2000 is after the video"),
    ],
)
def test_a_split_outside_is_refused(request_: ClipRequest, reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        place(TIMES_S, request_)


def test_two_rows_of_one_clip_are_refused_and_other_segments_are_other_clips() -> None:
    rows = [ClipRequest("row 1", "a", split_s=2.0), ClipRequest("row 2", "a", split_frame=60)]
    with pytest.raises(StageError, match="row 2: the same clip as row 1, split frame 60"):
        requested_cuts(TIMES_S, rows)
    later = ClipRequest("row 2", "a", split_frame=60, start_s=1.0)
    settings = ClipSettings(thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=10)
    clips, short = plan_clips(VIDEO, VideoInfo(TIMES_S, 64, 64), settings, [rows[0], later])
    assert [clip.clip_id for clip in clips] == ["a" * 16 + "@60", "a" * 16 + "@30-60"]
    assert [clip.thinker_frames[0] for clip in clips] == [0, 30]
    assert short == []


def test_rows_without_room_are_counted_and_say_what_they_lack() -> None:
    settings = ClipSettings(thinker_frames=4, observed_frames=8, future_frames=8, dense_fps=10)
    rows = [
        ClipRequest("row 1", "a", split_s=1.5, start_s=1.2),
        ClipRequest("row 2", "a", split_s=1.5, end_s=1.7),
        ClipRequest("row 3", "a", split_s=1.6),
    ]
    clips, short = plan_clips(VIDEO, VideoInfo(TIMES_S, 64, 64), settings, rows)
    assert [clip.split_frame for clip in clips] == [48]
    assert [item.where for item in short] == ["row 2", "row 1"]
    assert "0.27 s from the segment's begin to the last observed frame, of 0.70 s" in short[1].record.reason
    assert "from the split to the segment's end, of 0.70 s or more" in short[0].record.reason


@given(data=st.data())
def test_no_frame_of_a_clip_is_outside_its_segment(data: st.DataObject) -> None:
    """The same frames as of a video that begins and ends with the segment."""
    times_s = np.cumsum(data.draw(st.lists(st.floats(0.01, 0.2), min_size=90, max_size=120)))
    first = data.draw(st.integers(0, 20))
    split = data.draw(st.integers(first + 2, first + 30))
    last = data.draw(st.integers(split + 20, len(times_s) - 1))
    fps = data.draw(st.sampled_from([15.0, 27.0, 30.0]))
    settings = ClipSettings(
        thinker_frames=4, observed_frames=2, future_frames=2, dense_fps=fps, future_windows=2
    )
    start_s, end_s = float(times_s[first]), float(times_s[last]) + 0.005
    request = ClipRequest("row", "a.mp4", split_frame=split, start_s=start_s, end_s=end_s)
    clips, _ = plan_clips(VIDEO, VideoInfo(times_s, 64, 64), settings, [request])
    assume(clips)
    (clip,) = clips
    assert first <= min(clip.thinker_frames) <= max(clip.thinker_frames) < split
    assert first <= min(clip.observed_frames) <= max(clip.observed_frames) == split - 1
    future = np.array(clip.future_frames)
    assert split <= future.min() <= future.max() <= last
    assert times_s[future.max()] < end_s
    alone, _ = plan_clips(
        VIDEO,
        VideoInfo(times_s[first : last + 1], 64, 64),
        settings,
        [ClipRequest("row", "a.mp4", split_frame=split - first)],
    )
    np.testing.assert_array_equal(np.array(alone[0].future_frames) + first, future)
    np.testing.assert_array_equal(np.array(alone[0].thinker_frames) + first, clip.thinker_frames)


def test_videos_whose_clips_share_frames_on_two_sides_are_found() -> None:
    spans = [
        ("a", 0, 20, "train"),
        ("a", 10, 30, "train"),
        ("a", 31, 40, "test"),
        ("b", 0, 50, "train"),
        ("b", 10, 20, "train"),
        ("b", 50, 60, "test"),
        ("c", 0, 9, "validation"),
        ("c", 5, 9, "test"),
    ]
    assert shared_videos(spans) == ["b", "c"]
