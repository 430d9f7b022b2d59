"""A split that is far from what was asked for is said, with the remedy."""

from __future__ import annotations

import pytest

from thinkjepa.stages.data.partition import SplitName, SplitRule, SplitSize, split_sizes, split_warning

RULE = SplitRule()  # 70, 15 and 15 %


def sized(train: int, validation: int, test: int) -> dict[SplitName, SplitSize]:
    """Sides of so many clips, each clip of a video of its own, in two groups a side."""
    counts: dict[SplitName, int] = {"train": train, "validation": validation, "test": test}
    return split_sizes(
        (side, f"{side}{number % 2}", f"{side}-{number}")
        for side, count in counts.items()
        for number in range(count)
    )


def test_clips_videos_and_groups_of_a_side_are_counted() -> None:
    clips: list[tuple[SplitName, str, str]] = [
        ("train", "kitchen", "a"),
        ("train", "kitchen", "a"),
        ("train", "garden", "b"),
        ("test", "hall", "c"),
    ]
    assert split_sizes(clips) == {
        "train": SplitSize(groups=2, videos=2, clips=3, share=0.75),
        "validation": SplitSize(groups=0, videos=0, clips=0, share=0.0),
        "test": SplitSize(groups=1, videos=1, clips=1, share=0.25),
    }


@pytest.mark.parametrize("counts", [(70, 15, 15), (60, 22, 18), (80, 10, 10)])
def test_nothing_is_said_within_half_of_what_was_asked(counts: tuple[int, int, int]) -> None:
    assert split_warning(sized(*counts), RULE, grouping="folder") == ""


def test_a_far_side_is_named_with_what_was_asked_and_the_remedy() -> None:
    warning = split_warning(sized(43, 42, 15), RULE, grouping="folder")
    assert warning == (
        "warning: validation has 42 % of the clips (15 % asked for): 6 groups by folder are few to divide; "
        "--group-by video divides finer, as does a regular expression, or --split-seed N draws again"
    )
    assert "train has 20 %" in split_warning(sized(20, 30, 50), RULE, grouping="folder")
    assert "test has 5 %" in split_warning(sized(80, 15, 5), RULE, grouping="folder")


def test_videos_cannot_be_divided_finer() -> None:
    warning = split_warning(sized(43, 42, 15), RULE, grouping="video")
    assert "--group-by" not in warning
    assert warning.endswith("--split-seed N draws again")
