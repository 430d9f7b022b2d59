"""Hand labels through the installed commands: check, extract, import, train on them, and mend them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_command
from PIL import Image

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.report.labels import describe_import
from thinkjepa.stages.data.labels.storing import LabelReport
from thinkjepa.stages.data.tracked_files import (
    folder_manifest,
    make_selection,
    read_selection,
    write_selection,
)
from thinkjepa.stages.data.videos import DigestMemory
from thinkjepa.stages.progress import NoProgress

SMALL = ("--thinker-frames", "4", "--observed-frames", "4", "--future-frames", "4", "--dense-fps", "10")
FRAMES = 70


def object_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def break_hand(file: Any) -> None:
    file["transforms/rightHand"][5, 0, 3] = np.nan


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_video: Callable[..., Path],
    write_egodex: Callable[..., Path],
) -> Path:
    """Four videos: labelled, labelled without intrinsics, broken labels, no labels."""
    folder = tmp_path_factory.mktemp("labelled") / "pour [1]"
    for number in range(4):
        make_video(folder / f"{number}.mp4", num_frames=FRAMES, size=(160, 128 + 16 * number))

    def blind(file: Any) -> None:
        del file["camera/intrinsic"]
        file["camera/intrinsic"] = np.zeros((0, 3))

    for number, change in enumerate((None, blind, break_hand)):
        write_egodex(folder / f"{number}.hdf5", FRAMES, seed=number, change=change)
    return folder


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory, folder: Path, tiny_models: Path) -> Path:
    """The cache of `folder`, extracted with its labels; tests must not change it."""
    cache_dir = tmp_path_factory.mktemp("extracted") / "cache"
    models = ("--thinker", tiny_models / "thinker", "--encoder", tiny_models / "encoder")
    places = ("--videos", folder, "--cache-dir", cache_dir)
    done = run_command("thinkjepa-cache", "extract", *places, *models, *SMALL, "--stride-s", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    report = object_of(done)
    counts = (report["labelled_videos"], report["broken_labels"], report["failed_videos"])
    assert counts == (2, 1, 0), "a broken label file fails no video"
    assert report["extracted"] == report["clips"] > 4
    assert "'2.mp4' at labels: '2.hdf5': 'rightHand' at frame 5" in done.stderr
    return cache_dir


def test_check_reports_what_is_wrong_and_draws_it(folder: Path, tmp_path: Path) -> None:
    done = run_command("thinkjepa-data", "check", folder, "--json", "--plot", tmp_path / "hands.png")
    assert done.returncode == 3, done.stderr
    report = object_of(done)
    assert (report["videos"], report["usable"], report["errors"]) == (4, 2, 1)
    assert report["findings"] == {"broken": 1, "intrinsics": 1, "no_labels": 1}
    assert sum(report["confidence_histogram"]["samples"]) == 2 * FRAMES * 68
    assert len(report["details"][0]["figures"]["known_joints"]) == 68
    assert report["never_known"] == []
    assert report["videos_with_wrist"] == {"rightHand": 2, "leftHand": 2}
    with Image.open(tmp_path / "hands.png") as picture:
        colors = {pixel for _, pixel in picture.convert("RGB").getcolors(2**24) or []}
        assert picture.width == 1800
    assert len(colors) > 100
    text = run_command("thinkjepa-data", "check", folder)
    assert "4 videos, 2 with usable labels, 1 error, 2 warnings" in text.stdout
    assert "'2.mp4': '2.hdf5': 'rightHand' at frame 5 is [nan," in text.stdout


def test_a_hand_that_is_never_known_is_named_once(
    tmp_path: Path, make_video: Callable[..., Path], write_egodex: Callable[..., Path]
) -> None:
    def blind(file: Any) -> None:
        for name in file["confidences"]:
            if name.startswith("left"):
                file["confidences"][name][...] = 0

    for number in range(3):
        make_video(tmp_path / f"{number}.mp4", num_frames=30, size=(320, 180))
        write_egodex(tmp_path / f"{number}.hdf5", 30, size=(320, 180), seed=number, change=blind)
    done = run_command("thinkjepa-data", "check", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hands known: right in 3 of 3 videos, left never" in done.stdout
    assert done.stdout.count("never known: the left hand (26 joints)") == 1
    assert "3 with usable labels, 0 errors, 1 warning" in done.stdout
    report = object_of(run_command("thinkjepa-data", "check", tmp_path, "--json"))
    assert len(report["never_known"]) == 28, "with shoulder and arm"
    assert sum(report["confidence_histogram"]["samples"]) == 3 * 30 * 40


def test_a_table_of_the_folder_is_found_and_imported(tmp_path: Path, folder: Path, extracted: Path) -> None:
    videos = shutil.copytree(folder, tmp_path / "videos", ignore=shutil.ignore_patterns("*.hdf5"))
    cache_dir = shutil.copytree(extracted, tmp_path / "cache")
    rows = [f"{number}.mp4,{frame},rightHand,0,0,0.5" for number in range(4) for frame in range(FRAMES)]
    (videos / "joints.csv").write_text("\n".join(["video,frame,joint,x,y,z", *rows]))
    checked = object_of(run_command("thinkjepa-data", "check", videos, "--json"))
    assert (checked["usable"], checked["errors"]) == (4, 0)
    assert {item["label_file"] for item in checked["details"]} == {"joints.csv"}
    done = run_command("thinkjepa-data", "import", "--videos", videos, "--cache-dir", cache_dir, "--json")
    assert done.returncode == 0, done.stderr
    assert (object_of(done)["labelled_videos"], object_of(done)["added"]) == (4, 4)
    again = run_command("thinkjepa-data", "import", "--videos", videos, "--cache-dir", cache_dir, "--json")
    assert object_of(again)["added"] == 0
    assert {labels.joint_names for labels in FeatureCache.open(cache_dir).labels} == {("rightHand",)}


def test_labels_in_millimetres_are_noticed_when_they_are_stored(
    tmp_path: Path, folder: Path, extracted: Path, write_egodex: Callable[..., Path]
) -> None:
    def in_millimetres(file: Any) -> None:
        for name in file["transforms"]:
            file[f"transforms/{name}"][:, :3, 3] *= 1000

    videos, cache_dir = tmp_path / "videos", tmp_path / "cache"
    shutil.copytree(folder, videos)
    shutil.copytree(extracted, cache_dir)
    write_egodex(videos / "0.hdf5", FRAMES, seed=0, change=in_millimetres)
    done = run_command("thinkjepa-data", "import", "--videos", videos, "--cache-dir", cache_dir)
    assert "joints of '0.mp4' are more than 3 m apart: are positions in metres?" in " ".join(
        done.stderr.split()
    )
    again = run_command("thinkjepa-data", "import", "--videos", videos, "--cache-dir", cache_dir)
    assert "metres?" not in again.stderr


def test_folders_without_labels_and_without_videos_are_wrong_use(
    tmp_path: Path, make_video: Callable[..., Path], extracted: Path
) -> None:
    make_video(tmp_path / "videos" / "0.mp4", num_frames=20)
    for arguments, words in (
        (("check", tmp_path / "videos"), "no labels for any of the 1 videos"),
        (("import", "--videos", tmp_path / "videos", "--cache-dir", extracted), "no labels for any"),
        (("check", tmp_path / "nothing"), "cannot be read"),
        (("import", "--videos", tmp_path / "videos", "--cache-dir", tmp_path / "none"), "none"),
    ):
        done = run_command("thinkjepa-data", *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_extraction_stores_labels_and_lists_the_broken_file(extracted: Path) -> None:
    cache = FeatureCache.open(extracted)
    assert sorted(labels.video for labels in cache.labels) == ["0.mp4", "1.mp4"]
    assert [(item.video, item.stage) for item in cache.failures] == [("2.mp4", "labels")]


def test_training_goes_on_without_the_broken_clips_and_says_how_many(extracted: Path, tmp_path: Path) -> None:
    small = (
        "--epochs",
        1,
        "--batch-size",
        4,
        "--depth",
        2,
        "--width",
        48,
        "--heads",
        2,
        "--group-by",
        "video",
    )
    done = run_command(
        "thinkjepa-train",
        "--cache-dir",
        extracted,
        "--out",
        tmp_path / "run",
        "--task",
        "trajectory",
        *small,
        "--json",
    )
    # Two labelled videos cannot be split in three: what is told is how many clips remain.
    cache = FeatureCache.open(extracted)
    unlabelled = sum(video in ("2.mp4", "3.mp4") for video in cache.clips.all().values("video"))
    if done.returncode == 0:
        assert object_of(done)["unlabelled"]["clips"] == unlabelled
    else:
        assert done.returncode == 2
        assert "video" in done.stderr


def test_import_adds_mends_and_withdraws_labels_without_a_model(
    extracted: Path, folder: Path, tmp_path: Path, write_egodex: Callable[..., Path]
) -> None:
    videos, cache_dir = (
        shutil.copytree(folder, tmp_path / "videos"),
        shutil.copytree(extracted, tmp_path / "cache"),
    )

    def imported() -> dict[str, Any]:
        return object_of(
            run_command("thinkjepa-data", "import", "--videos", videos, "--cache-dir", cache_dir, "--json")
        )

    def frames() -> dict[str, int]:
        return {labels.video: labels.num_frames for labels in FeatureCache.open(cache_dir).labels}

    again = imported()
    assert (again["labelled_videos"], again["added"], again["unlabelled_videos"]) == (2, 0, 1)
    assert len(again["failures"]) == 1

    write_egodex(videos / "2.hdf5", FRAMES - 10, seed=2)
    (videos / "3.csv").write_text("frame,joint,x,y,z\n" + "".join(f"{n},rightHand,0,0,1\n" for n in range(9)))
    assert imported()["added"] == 2
    assert frames() == {"0.mp4": FRAMES, "1.mp4": FRAMES, "2.mp4": FRAMES - 10, "3.mp4": 9}
    assert FeatureCache.open(cache_dir).failures == []

    (videos / "0.hdf5").write_bytes(b"broken")
    write_egodex(videos / "1.hdf5", 2 * FRAMES)
    for _ in range(2):
        reasons = [failure["reason"] for failure in imported()["failures"]]
        assert reasons == [
            "'0.hdf5': is not an HDF5 file, or was cut short",
            f"'1.hdf5': has labels for {2 * FRAMES} frames, the video has {FRAMES}: is it of another video, "
            "or of another frame rate? There is one row a frame",
        ]
        assert frames() == {"0.mp4": 0, "1.mp4": 0, "2.mp4": FRAMES - 10, "3.mp4": 9}
    assert len(list((cache_dir / "labels").iterdir())) == 3, "what did not change is not written again"
    cached = object_of(run_command("thinkjepa-data", "check", videos, "--cache-dir", cache_dir, "--json"))
    assert "cache" not in cached["findings"]
    stale = object_of(run_command("thinkjepa-data", "check", folder, "--cache-dir", cache_dir, "--json"))
    assert stale["findings"]["cache"] == 3
    gone = [item["message"] for item in stale["details"][3]["findings"] if item["kind"] == "cache"]
    assert gone == ["the cache holds labels of a file that is gone: run thinkjepa-data import"]


def test_manifest_and_selection_change_with_labels_and_only_where_there_are_any(
    extracted: Path, folder: Path, tmp_path: Path, write_egodex: Callable[..., Path]
) -> None:
    videos, cache_dir = (
        shutil.copytree(folder, tmp_path / "videos"),
        shutil.copytree(extracted, tmp_path / "cache"),
    )

    def manifest() -> dict[str, Any]:
        return folder_manifest(videos, progress=NoProgress(), memory=DigestMemory(tmp_path / "digests"))

    def selection() -> dict[str, Any]:
        cache = FeatureCache.open(cache_dir)
        sets = {f"{kind}_set": cache.choose_set(kind).name for kind in ("thinker", "encoder")}
        made = make_selection(cache_dir, **sets, clip_ids=cache.clips.all().clip_ids.to_pylist())
        write_selection(tmp_path / "selection.json", made)
        assert asdict(read_selection(tmp_path / "selection.json")) == asdict(made)
        read: dict[str, Any] = json.loads((tmp_path / "selection.json").read_text())
        return read

    first, chosen = manifest(), selection()
    assert sorted(first["labels"]) == ["0.hdf5", "1.hdf5", "2.hdf5"]
    write_egodex(videos / "0.hdf5", FRAMES, seed=9)
    assert manifest()["labels"].keys() == first["labels"].keys()
    assert manifest() != first
    run_command("thinkjepa-data", "import", "--videos", videos, "--cache-dir", cache_dir)
    corrected = selection()
    assert {name for name in chosen if chosen[name] != corrected[name]} == {"labels"}

    for path in videos.glob("*.hdf5"):
        path.unlink()
    assert set(manifest()) == {"schema", "videos"}
    shutil.rmtree(cache_dir / "labels")
    assert "labels" not in selection()


def test_hostile_names_and_links_out_of_the_folder_are_only_reported(
    tmp_path: Path, make_video: Callable[..., Path], write_egodex: Callable[..., Path]
) -> None:
    videos, outside = tmp_path / "videos", write_egodex(tmp_path / "outside.hdf5", 20)
    for name in ("-rf", "a\nb", "\x1b[31mred", "[red]", "linked"):
        make_video(videos / f"{name}.mp4", num_frames=20)
        (videos / f"{name}.csv").write_text("frame,joint,x,y,z,fx,fy,cx,cy\n0,$\\frac$,0,0,1,99,99,80,64\n")
    (videos / "linked.csv").unlink()
    (videos / "linked.hdf5").symlink_to(outside)
    done = run_command("thinkjepa-data", "check", videos, "--plot", tmp_path / "p.png")
    assert done.returncode == 3, done.stderr
    assert "'linked.hdf5' is not a plain file in the folder" in done.stdout
    assert "\x1b" not in done.stdout
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_an_import_counts_one_as_one() -> None:
    one = LabelReport(labelled_videos=1, added=1, unlabelled_videos=1)
    said = describe_import(one, Path("features"))
    assert (
        said == "1 video with labels in features: 1 stored now, 0 already there; 1 video without a label file"
    )
