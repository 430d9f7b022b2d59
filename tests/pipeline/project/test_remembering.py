"""A cache remembers its settings: extended by the installed command with no flags but two folders."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run_command

from thinkjepa.cache import CacheError, FeatureCache, verify
from thinkjepa.pipeline.project.remembering import cache_memory, setting_flags
from thinkjepa.pipeline.report.cache import cache_info
from thinkjepa.stages.extract.remembered import remembered_settings
from thinkjepa.stages.settings import SettingsError

TEN_FLAGS = (
    "--prompt=What is seen?",
    "--max-new-tokens=3",
    "--thinker-size=64",
    "--layers=1,2",
    "--thinker-frames=4",
    "--observed-frames=8",
    "--future-frames=8",
    "--dense-fps=15",
    "--stride-s=0.5",
    "--dtype=float32",
)


def thinkjepa_cache(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = run_command("thinkjepa-cache", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: Path, make_video: Callable[..., Path]
) -> Path:
    """A folder with a cache that was made with ten flags, and videos for more of it."""
    folder = tmp_path_factory.mktemp("remembering")
    (folder / "models").symlink_to(tiny_models)
    make_video(folder / "videos" / "first.mp4", num_frames=45)
    make_video(folder / "more" / "second.mp4", num_frames=50)
    places = ("--videos", "videos", "--cache-dir", "features")
    models = ("--thinker", "models/thinker", "--encoder", "models/encoder")
    done = thinkjepa_cache("extract", *places, *models, *TEN_FLAGS, cwd=folder)
    assert "settings of this cache" not in done.stderr
    return folder


def sets_and_rows(cache: Path) -> dict[str, int]:
    opened = FeatureCache.open(cache)
    return {name: len(opened.index(name)) for name in opened.feature_sets}


def test_a_cache_is_extended_with_no_flags_but_its_folders(folder: Path, tmp_path: Path) -> None:
    cache = folder / "features"
    before = sets_and_rows(cache)
    places = ("--videos", folder / "more", "--cache-dir", cache)
    done = thinkjepa_cache("extract", *places, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (report["clips"], report["extracted"], report["failed_clips"]) == (2, 2, 0)
    assert sets_and_rows(cache) == {name: rows + 2 for name, rows in before.items()}
    said = next(line for line in done.stderr.splitlines() if line.startswith("settings of this cache: "))
    assert f"--thinker {folder / 'models' / 'thinker'} --encoder" in said
    assert "--prompt 'What is seen?'" in said
    assert said.endswith(f"more: thinkjepa-cache info {cache})")
    assert "another" not in done.stderr
    assert verify(cache, full=True, advance=lambda count: None) == []


def test_a_flag_makes_another_set_and_says_so(folder: Path) -> None:
    cache = folder / "features"
    before = sets_and_rows(cache)
    places = ("--videos", folder / "videos", "--cache-dir", cache)
    done = thinkjepa_cache("extract", *places, "--prompt", "What comes next?")
    assert "--prompt" not in next(line for line in done.stderr.splitlines() if "settings of this" in line)
    note = next(line for line in done.stderr.splitlines() if "another thinker set" in line)
    assert "prompt 'What comes next?'" in note
    assert "prompt 'What is seen?'" in note
    new = sets_and_rows(cache).keys() - before.keys()
    assert [name.split("-")[0] for name in new] == ["thinker"]
    assert remembered_settings(cache)["models"]["prompt"] == "What comes next?", "the last one is remembered"


def given(**sections: Any) -> dict[str, dict[str, Any]]:
    return {"clips": {}, "models": {}, "vllm": {}, "execution": {}, **sections}


def test_info_shows_what_is_remembered(folder: Path) -> None:
    flags = cache_info(folder / "features")["settings"]
    assert {"--dense-fps 15", "--stride-s 0.5", "--dtype float32"} <= set(flags)
    assert not any(flag.startswith("--fp8") for flag in flags), "defaults are not shown"


def test_an_older_cache_tells_all_but_which_splits_are_taken(folder: Path, tmp_path: Path) -> None:
    places = ("--videos", folder / "videos", "--cache-dir", tmp_path / "old")
    models = ("--thinker", folder / "models" / "thinker", "--encoder", folder / "models" / "encoder")
    thinkjepa_cache("extract", *places, *models, *TEN_FLAGS, "--fp8", "tokens")
    known = remembered_settings(tmp_path / "old")
    (tmp_path / "old" / "extraction.json").unlink()
    derived = remembered_settings(tmp_path / "old")
    assert derived["clips"].keys() == known["clips"].keys() - {"stride_s", "min_history_s"}
    for name, section in derived.items():
        assert section == {key: known[name][key] for key in section}
    assert {"thinker", "layers", "prompt", "dtype", "fp8"} <= derived["models"].keys()


def test_a_cache_of_several_sets_without_a_record_tells_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(sets_and_rows(folder / "features")) == 3
    monkeypatch.setattr("thinkjepa.stages.extract.remembered.read_last_extraction", lambda root: {})
    assert not any(cache_memory(folder / "features", given()).values())
    assert "does not tell its settings" in capsys.readouterr().err


def test_what_holds_only_together_is_dropped_together(folder: Path) -> None:
    cache = folder / "features"
    assert cache_memory(cache, given())["clips"]["stride_s"] == 0.5
    taken = cache_memory(cache, given(clips={"preset": "release"}, models={"thinker": "another"}))
    assert taken["clips"] == {}
    assert not {"thinker", "revision"} & taken["models"].keys()
    assert {"encoder", "encoder_revision", "prompt"} <= taken["models"].keys()


def test_a_new_folder_remembers_nothing(tmp_path: Path) -> None:
    assert cache_memory(tmp_path, given()) == {}


def test_flags_are_quoted_as_one_types_them() -> None:
    sections = {"models": {"prompt": "it's", "dtype": "auto"}, "clips": {"dense_fps": 30000 / 1001}}
    assert setting_flags(sections) == ["""--prompt 'it'"'"'s'""", "--dense-fps 29.97002997"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"settings": {"clips": {"color": 1}}}', "extraction.json, clips: unknown setting 'color'"),
        ('{"settings": {"models": {"dtype": "int4"}}}', "extraction.json, models: dtype 'int4'"),
    ],
)
def test_a_record_of_another_version_is_refused_by_name(
    folder: Path, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "cache.json").write_bytes((folder / "features" / "cache.json").read_bytes())
    (tmp_path / "extraction.json").write_text(content)
    with pytest.raises(SettingsError) as error:
        cache_memory(tmp_path, given())
    assert message in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 1}', '{"settings": {"clip": {}}}'])
def test_a_damaged_record_is_refused(folder: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "cache.json").write_bytes((folder / "features" / "cache.json").read_bytes())
    (tmp_path / "extraction.json").write_text(content)
    with pytest.raises(CacheError, match=r"extraction\.json.*: remove it, and give settings by flags"):
        cache_memory(tmp_path, given())
