"""Stage one through the installed command, on real videos, with tiny models of the real classes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import zarr

from thinkjepa.cache import TOKEN_KINDS, ClipRow, FeatureCache
from thinkjepa.cache.records import POSITIONS
from thinkjepa.stages.data.decoding.client import VideoDecoder
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.encoder.base import open_encoder
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.report import ExtractReport
from thinkjepa.stages.extract.run import extract
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.thinker.contract import TimedFrames
from thinkjepa.stages.extract.thinker.hooks import HookedThinker
from thinkjepa.stages.progress import NoProgress

RunExtract = Callable[..., Any]
MakeVideo = Callable[..., Path]
TreeDigest = Callable[[Path], dict[str, str]]


def sets_of(cache: FeatureCache) -> tuple[str, str]:
    return cache.choose_set("thinker").name, cache.choose_set("encoder").name


def test_zarr_python_opens_every_array_and_agrees_with_our_reader(extracted: Path) -> None:
    cache = FeatureCache.open(extracted)
    store = zarr.open_group(extracted / "features.zarr", mode="r")
    for name, feature_set in cache.feature_sets.items():
        rows = {clip_id: row.row for clip_id, row in cache.index(name).items()}
        assert len(rows) >= 6
        for array, spec in feature_set.arrays.items():
            plain = store[name][array]
            assert plain.metadata.dimension_names == ("clip", *spec.dims)
            read = cache.read(name, array, list(rows)).numpy()
            assert np.array_equal(plain[list(rows.values())], read, equal_nan=array in POSITIONS)
            assert read.any()


def test_stored_features_equal_the_models_on_the_same_frames(
    extracted: Path, videos: Path, tiny_models: Path, read_frame_number: Callable[..., int]
) -> None:
    cache, device = FeatureCache.open(extracted), torch.device("cpu")
    thinker_set, encoder_set = sets_of(cache)
    encoder = open_encoder(
        find_model(str(tiny_models / "encoder"), revision="main", role="encoder"),
        dtype="float32",
        device=device,
    )
    thinker = HookedThinker(
        find_model(str(tiny_models / "thinker"), revision="main", role="thinker"),
        ModelSettings(),
        dtype="float32",
        device=device,
    )
    encoder.load()
    thinker.load()
    with VideoDecoder(timeout_s=60) as decoder:
        for clip in cache.select(thinker_set, encoder_set):
            path = videos / clip.video
            frames = decoder.frames(path, clip.thinker_frames)
            assert [read_frame_number(frame) for frame in frames] == list(clip.thinker_frames)
            output = thinker.hidden_states([TimedFrames(thinker.preprocess(frames), clip.thinker_times_s)])[0]
            stored = cache.read(thinker_set, "tokens", [clip.clip_id])[0][:, : output.hidden_LSD.shape[1]]
            assert (stored - output.hidden_LSD).abs().max() < 1e-5 * stored.abs().max()
            row = cache.index(thinker_set)[clip.clip_id]
            assert row.token_ids == output.token_ids
            assert row.generated_text == output.text
            for array, indices in (("observed", clip.observed_frames), ("future", clip.future_frames[0])):
                direct = encoder.encode([encoder.preprocess(decoder.frames(path, indices))])[0]
                read = cache.read(encoder_set, array, [clip.clip_id])[0]
                assert (read.reshape(direct.shape) - direct).abs().max() < 1e-5 * direct.abs().max()


def test_pooled_is_the_mean_of_the_stored_tokens(extracted: Path) -> None:
    cache = FeatureCache.open(extracted)
    name = cache.choose_set("thinker").name
    for clip_id, row in cache.index(name).items():
        tokens = cache.read(name, "tokens", [clip_id])[0].double()
        pooled = cache.read(name, "pooled", [clip_id])[0].double()
        at, end = row.prompt_token_count, row.token_count
        kinds = cache.read(name, "token_kind", [clip_id])[0]
        visual = (kinds == TOKEN_KINDS.index("visual") + 1).nonzero().flatten()
        behind = tokens[:, int(visual[-1]) + 1 : at]
        parts = [tokens[:, :at], tokens[:, visual], behind, tokens[:, at - 1 : at], tokens[:, at:end]]
        expected = torch.stack([part.mean(dim=1) for part in parts], dim=1)
        assert cache.feature_sets[name].streams == ("prompt", "visual", "text", "last", "generated")
        assert (pooled - expected).abs().max() < 1e-5


def test_running_again_skips_what_is_there(
    extracted: Path, videos: Path, run_extract: RunExtract, tree_digest: TreeDigest
) -> None:
    before = tree_digest(extracted)
    outcome = run_extract(videos, extracted)
    assert outcome.status == 0
    assert outcome.json["extracted"] == 0
    assert outcome.json["already_there"] == outcome.json["clips"]
    assert tree_digest(extracted) == before


def test_another_prompt_and_fewer_layers(
    tmp_path: Path, extracted: Path, videos: Path, run_extract: RunExtract, tree_digest: TreeDigest
) -> None:
    """A new prompt is a new thinker set and leaves the encoder's alone; fewer layers are already there."""
    cache_dir = shutil.copytree(extracted, tmp_path / "cache")
    encoder_set = FeatureCache.open(extracted).choose_set("encoder").name
    encoder_before = tree_digest(cache_dir / "features.zarr" / encoder_set)
    thinker_before = FeatureCache.open(extracted).choose_set("thinker").name

    fewer = run_extract(videos, cache_dir, "--layers", "2,4").json
    assert (fewer["extracted"], fewer["thinker_set"]) == (0, thinker_before)
    other = run_extract(videos, cache_dir, "--prompt", "What will the hand do?").json
    assert other["extracted"] == other["clips"]
    assert other["encoder_set"] == encoder_set
    assert other["thinker_set"] != thinker_before
    assert tree_digest(cache_dir / "features.zarr" / encoder_set) == encoder_before
    first = ("--prompt", ModelSettings().prompt, "--layers", "auto")  # else those of the last extraction
    again = run_extract(videos, cache_dir, *first).json
    assert (again["extracted"], again["thinker_set"]) == (0, thinker_before)


def test_an_added_video_is_extracted_alone(
    tmp_path: Path, videos: Path, extracted: Path, run_extract: RunExtract, make_video: MakeVideo
) -> None:
    cache_dir = shutil.copytree(extracted, tmp_path / "cache")
    folder = shutil.copytree(videos, tmp_path / "videos")
    make_video(folder / "aaa" / "new.mp4", num_frames=90, size=(192, 128))
    make_video(folder / "aaa" / "copy.mp4", num_frames=150, fps=30)  # the same bytes as pour/0.mp4
    outcome = run_extract(folder, cache_dir).json
    assert outcome["videos"] == 6
    assert outcome["repeats"] == [["pour/0.mp4", "aaa/copy.mp4"]]
    cache = FeatureCache.open(cache_dir)
    new = [clip for clip in cache.select(*sets_of(cache)) if clip.video == "aaa/new.mp4"]
    assert outcome["extracted"] == len(new) > 0


def write_pair(folder: Path, *, split_frame: int, lengths: tuple[int, int]) -> None:
    """Two videos with the same frames before the split and other ones from it on; encoded without loss and
    without references over frames, so that decoded pixels before the split are equal."""
    rng = np.random.default_rng(0)
    past = rng.integers(0, 256, (split_frame, 96, 128, 3), dtype=np.uint8)
    for name, length in zip("ab", lengths, strict=True):
        future = rng.integers(0, 256, (length - split_frame, 96, 128, 3), dtype=np.uint8)
        path = folder / name / "v.mp4"
        path.parent.mkdir(parents=True)
        with av.open(path, "w") as container:
            stream = container.add_stream(
                "libx264rgb", rate=30, options={"qp": "0", "g": "1", "threads": "1"}
            )
            stream.width, stream.height, stream.pix_fmt = 128, 96, "rgb24"
            for frame in np.concatenate([past, future]):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())


@pytest.mark.parametrize(("preset", "at", "lengths"), [("dual", 46, (90, 111)), ("release", 45, (90, 90))])
def test_nothing_observed_depends_on_the_future(
    tmp_path: Path,
    run_extract: RunExtract,
    make_video: MakeVideo,
    preset: str,
    at: int,
    lengths: tuple[int, int],
) -> None:
    """Two videos, equal before the split and different after it (in length too, where the split does not
    follow from the length), through the installed command, with a neighbour of another size."""
    write_pair(tmp_path / "videos", split_frame=at, lengths=lengths)
    make_video(tmp_path / "videos" / "ab" / "neighbour.mp4", num_frames=75, size=(256, 128))
    flags = ("--preset", preset, "--stride-s", 0.2, "--batch-size", 3, "--keep-history")
    outcome = run_extract(tmp_path / "videos", tmp_path / "cache", *flags)
    assert outcome.status == 0, outcome.stderr
    cache = FeatureCache.open(tmp_path / "cache")
    thinker_set, encoder_set = sets_of(cache)
    history_set = cache.choose_set("history").name
    clips: dict[str, dict[int, ClipRow]] = {"a": {}, "b": {}}
    for clip in cache.select(thinker_set, encoder_set):
        if clip.video in ("a/v.mp4", "b/v.mp4"):
            clips[clip.video[0]][clip.split_frame] = clip
    at_split = [split for split in clips["a"] if split <= at]
    assert at in at_split

    for split in at_split:
        pair = [clips[name][split].clip_id for name in ("a", "b")]
        for name, array in (
            (thinker_set, "tokens"),
            (thinker_set, "pooled"),
            (encoder_set, "observed"),
            *((history_set, array) for array in ("pooled", "slots", "slot_position")),
        ):
            read = cache.read(name, array, pair)
            assert read[0].numpy().tobytes() == read[1].numpy().tobytes(), (split, array)
        rows = [cache.index(thinker_set)[clip_id] for clip_id in pair]
        assert rows[0].token_ids == rows[1].token_ids
    future = cache.read(encoder_set, "future", [clips[name][at].clip_id for name in ("a", "b")])
    assert (future[0] - future[1]).abs().max() > 1e-2
    later = [split for split in clips["a"] if split > at]
    if preset == "dual":  # the control: once the difference lies in the past, everything differs
        pair = [clips[name][later[-1]].clip_id for name in ("a", "b")]
        for name, array in (
            (thinker_set, "tokens"),
            (encoder_set, "observed"),
            (history_set, "pooled"),
            (history_set, "slots"),
        ):
            read = cache.read(name, array, pair)
            assert not torch.equal(read[0], read[1])


def test_bad_videos_are_recorded_and_the_others_extracted(
    tmp_path: Path,
    videos: Path,
    run_extract: RunExtract,
    run_command: Callable[..., Any],
    make_video: MakeVideo,
    tree_digest: TreeDigest,
) -> None:
    folder = shutil.copytree(videos / "pour", tmp_path / "videos")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text [red].mp4").write_text("not a video")
    make_video(folder / "short.mp4", num_frames=10)
    whole = make_video(tmp_path / "whole.mp4", num_frames=150, size=(192, 128)).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("ignored")
    (folder / "link.mp4").symlink_to(folder / "nowhere.mp4")

    strict = run_extract(folder, tmp_path / "cache")
    assert strict.status == 3
    report = strict.json
    failed = {failure["video"]: failure for failure in report["failures"]}
    assert set(failed) == {"empty.mp4", "text [red].mp4", "cut.mp4", "link.mp4"}
    assert [item["video"] for item in report["too_short"]] == ["short.mp4"]
    assert failed["empty.mp4"]["stage"] == "open"
    assert report["extracted"] > 0
    assert "failed" in strict.stderr
    for name in failed:
        assert name in strict.stderr.replace("\n", "")

    lenient = run_extract(folder, tmp_path / "cache", "--max-failures", "80%")
    assert lenient.status == 0
    assert lenient.json["failed_videos"] == 4
    info = run_command("thinkjepa-cache", "info", tmp_path / "cache", "--json").json
    assert {failure["video"] for failure in info["failures"]} == set(failed)
    before = tree_digest(tmp_path / "cache")
    assert run_extract(folder, tmp_path / "cache", "--max-failures", 4).json["extracted"] == 0
    assert tree_digest(tmp_path / "cache") == before, "failing again does not make the cache grow"
    (folder / "empty.mp4").unlink()
    shutil.copy(tmp_path / "whole.mp4", folder / "cut.mp4")
    mended = run_extract(folder, tmp_path / "cache", "--max-failures", 3).json
    assert mended["extracted"] > 0
    info = run_command("thinkjepa-cache", "info", tmp_path / "cache").stdout
    assert "cut.mp4" not in info.split("failures at the settings of the last run")[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--layers", "1,9"), "layer 9 is out of range, the thinker has 6 layers"),
        (("--thinker", "no/such-model"), "is no local folder, and HF_HOME"),
        (("--thinker", "./nowhere/at/all"), "neither a folder nor a hub name"),
        (("--device", "cuda:7"), "--device 'cuda:7' cannot be used here"),
        (("--observed-frames", "7"), "--observed-frames 7: give an even number"),
        (("--max-failures", "many"), "--max-failures 'many'"),
        (("--preset", "other"), "'other' is not one of"),
        (("--nonsense", "1"), "No such option"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    tmp_path: Path, videos: Path, run_extract: RunExtract, flags: tuple[str, str], message: str
) -> None:
    outcome = run_extract(videos, tmp_path / "cache", *flags)
    assert outcome.status == 2
    assert message in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert outcome.stdout == ""


def test_encoder_and_thinker_in_the_wrong_place_are_refused(
    tmp_path: Path, videos: Path, run_extract: RunExtract, tiny_models: Path
) -> None:
    outcome = run_extract(videos, tmp_path / "cache", "--encoder", tiny_models / "thinker")
    assert outcome.status == 2
    assert "encoders are dinov2, dinov2_with_registers, vjepa2" in outcome.stderr


def test_folders_that_cannot_serve_are_refused(
    tmp_path: Path, videos: Path, run_extract: RunExtract, run_command: Callable[..., Any]
) -> None:
    (tmp_path / "no-videos").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "cache.json").write_text('{"schema": "thinkjepa.cache.v7"}')
    for arguments, message in [
        ((tmp_path / "absent", tmp_path / "c"), "No such file or directory"),
        ((tmp_path / "no-videos", tmp_path / "c"), "no videos under"),
        ((videos, tmp_path / "mine"), "not empty and not a feature cache"),
        ((videos, tmp_path / "newer"), "thinkjepa.cache.v7"),
        ((videos, tmp_path / "mine" / "thesis.txt"), "thesis.txt"),
    ]:
        outcome = run_extract(*arguments)
        assert (outcome.status, outcome.stderr.count("\n")) == (2, 1), outcome.stderr
        assert message in outcome.stderr
    outcome = run_command("thinkjepa-cache", "info", tmp_path / "mine")
    assert (outcome.status, outcome.stderr.count("\n")) == (2, 1)


def test_a_video_that_changes_under_way_is_not_stored_under_its_old_digest(
    tmp_path: Path, make_video: MakeVideo, tiny_models: Path
) -> None:
    """Replaced between planning and decoding: its clips fail, and the next run takes it as it is."""
    folder = tmp_path / "videos"
    make_video(folder / "a.mp4", num_frames=90)
    make_video(folder / "b.mp4", num_frames=90, size=(176, 128))
    other = make_video(tmp_path / "other.mp4", num_frames=80)

    class Replacing(NoProgress):
        def begin(self, task: str, *, total: int, unit: str) -> None:
            if task == "extracting" and other.exists():
                other.replace(folder / "a.mp4")

    def run() -> ExtractReport:
        return extract(
            folder,
            tmp_path / "cache",
            clips=ClipSettings(thinker_frames=4, observed_frames=4, future_frames=4, dense_fps=10),
            models=ModelSettings(thinker=str(tiny_models / "thinker"), encoder=str(tiny_models / "encoder")),
            execution=ExecutionSettings(device="cpu"),
            progress=Replacing(),
        )

    first = run()
    assert {(failure.video, failure.stage) for failure in first.failures} == {("a.mp4", "decode")}
    assert "has changed" in first.failures[0].reason
    second = run()
    assert second.failures == []
    cache = FeatureCache.open(tmp_path / "cache")
    assert {clip.video for clip in cache.select(*sets_of(cache))} == {"a.mp4", "b.mp4"}


def test_info_tells_what_made_each_set(
    extracted: Path, run_command: Callable[..., Any], tiny_models: Path
) -> None:
    info = run_command("thinkjepa-cache", "info", extracted, "--json").json
    sets = {item["kind"]: item for item in info["feature_sets"]}
    assert set(sets) == {"thinker", "encoder"}
    assert info["videos"] == 4
    assert info["failures"] == []
    assert sets["thinker"]["source"]["model"] == str(tiny_models / "thinker")
    assert sets["thinker"]["origin"]["prompt"] == "Describe this video."
    assert sets["thinker"]["origin"]["layers"] == [1, 2, 3, 4, 5, 6]
    assert sets["encoder"]["arrays"]["observed"]["shape"] == [info["clips"], 4, 16, 48]
    assert sets["encoder"]["arrays"]["observed"]["bytes"] > info["clips"] * 4 * 16 * 48 * 4
    text = run_command("thinkjepa-cache", "info", extracted).stdout
    assert "prompt 'Describe this video.', 16 new tokens, layers 1 2 3 4 5 6" in text


def test_half_precision_is_stored_as_the_models_give_it(
    tmp_path: Path, videos: Path, run_extract: RunExtract
) -> None:
    outcome = run_extract(videos / "stack", tmp_path / "cache", "--dtype", "bfloat16")
    assert outcome.status == 0, outcome.stderr
    cache = FeatureCache.open(tmp_path / "cache")
    thinker_set, encoder_set = sets_of(cache)
    clip_ids = [clip.clip_id for clip in cache.select(thinker_set, encoder_set)]
    assert cache.read(encoder_set, "observed", clip_ids).dtype == torch.bfloat16
    assert cache.read(thinker_set, "tokens", clip_ids[:1]).float().abs().max() > 1
    array = zarr.open_group(tmp_path / "cache" / "features.zarr", mode="r")[encoder_set]["observed"]
    assert array.dtype == np.uint16
    assert array.attrs["encoding"] == "bfloat16"
