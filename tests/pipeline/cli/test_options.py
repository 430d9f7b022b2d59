"""Sources of a setting: a flag, params.yaml, what a cache remembers, the default, in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from thinkjepa.pipeline.cli.console import built_command, new_single_app
from thinkjepa.pipeline.cli.options import Sections, with_settings
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.extract.settings import ModelSettings
from thinkjepa.stages.settings import SettingsError
from thinkjepa.stages.train.settings import TrainSettings

MEMORY: Sections = {"clips": {"observed_frames": 8, "future_frames": 8, "stride_s": 1.0}}


def remembered(cache_dir: Path, given: Sections) -> Sections:
    return MEMORY if cache_dir.name == "old" else {}


app = new_single_app()


@app.command()
@with_settings(
    keys={"decode_timeout_s": "execution.decode_timeout"},
    memory=remembered,
    clips=ClipSettings,
    models=ModelSettings,
)
def extraction(
    *,
    videos: Annotated[Path, typer.Option("--videos", help="Videos.")],
    cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Cache.")] = None,
    decode_timeout_s: Annotated[float, typer.Option("--decode-timeout-s", help="Timeout.")] = 7.0,
    clips: ClipSettings,
    models: ModelSettings,
) -> dict[str, Any]:
    """Return what was given."""
    return locals()


training_app = new_single_app()


@training_app.command()
@with_settings(settings=TrainSettings)
def training(*, settings: TrainSettings) -> TrainSettings:
    """Return what was given."""
    return settings


def given(*arguments: object) -> Mapping[str, Any]:
    values: Mapping[str, Any] = built_command(app).main([*map(str, arguments)], standalone_mode=False)
    return values


def trained(*arguments: object) -> TrainSettings:
    settings: TrainSettings = built_command(training_app).main([*map(str, arguments)], standalone_mode=False)
    return settings


@pytest.fixture
def params(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "thinker").mkdir()
    path = folder / "params.yaml"
    path.write_text(
        "videos: films\ncache_dir: old\n"
        "clips: {future_frames: 4, dense_fps: 5}\n"
        "models: {thinker: thinker, layers: [1, 2]}\n"
        "execution: {decode_timeout: 5}\n"
        "train: {preset: paper, epochs: 3}\n",
        encoding="utf-8",
    )
    return path


def test_a_flag_goes_before_the_file_before_the_cache_before_the_default(params: Path) -> None:
    clips = given("--params", params, "--dense-fps", 3)["clips"]
    assert clips.dense_fps == 3  # the flag, the file says 5
    assert clips.future_frames == 4  # the file, the cache says 8
    assert clips.observed_frames == 8  # the cache
    assert clips.thinker_frames == ClipSettings().thinker_frames


def test_a_flag_that_says_the_default_is_a_flag(params: Path) -> None:
    assert given("--params", params, "--stride-s", 2.0)["clips"].stride_s == 2.0
    assert given("--params", params)["clips"].stride_s == 1.0


def test_without_file_and_cache_there_are_the_defaults() -> None:
    values = given("--videos", "films", "--cache-dir", "new")
    assert values["clips"] == ClipSettings()
    assert trained() == TrainSettings()
    assert values["decode_timeout_s"] == 7.0


def test_folders_and_models_are_found_from_the_file(params: Path) -> None:
    values = given("--params", params)
    assert values["videos"] == params.parent / "films"
    assert values["cache_dir"] == params.parent / "old"
    assert values["models"].thinker == str(params.parent / "thinker")
    assert values["models"].layers == "1,2"
    assert values["models"].encoder == ModelSettings().encoder
    assert given("--params", params, "--videos", "mine")["videos"] == Path("mine")


def test_a_command_can_keep_a_folder_from_the_file(params: Path) -> None:
    seen: list[Path | None] = []
    own = new_single_app()

    @own.command()
    @with_settings(keys={"cache_dir": None})
    def evaluation(
        *, cache_dir: Annotated[Path | None, typer.Option("--cache-dir", help="Cache.")] = None
    ) -> None:
        seen.append(cache_dir)

    for flags in ((), ("--cache-dir", "moved")):
        built_command(own).main(["--params", str(params), *flags], standalone_mode=False)
    assert seen == [None, Path("moved")]


def test_further_keys_and_presets_come_from_the_file(params: Path) -> None:
    values = given("--params", params)
    assert values["decode_timeout_s"] == 5
    assert given("--params", params, "--decode-timeout-s", 2)["decode_timeout_s"] == 2
    settings = trained("--params", params)
    assert (settings.preset, settings.heads, settings.epochs) == ("paper", 6, 3)
    assert trained("--params", params, "--heads", 8).heads == 8


def test_a_switch_of_the_file_can_be_turned_off(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("videos: v\ncache_dir: c\ntrain: {normalise_targets: true}\n", encoding="utf-8")
    assert trained("--params", path).normalise_targets is True
    assert trained("--params", path, "--no-normalise-targets").normalise_targets is False


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clips: {dense_fpss: 3}", "clips: unknown setting 'dense_fpss' (did you mean 'dense_fps'?)"),
        ("clips: {observed_frames: 3}", "clips: observed_frames 3: give an even number"),
        ("clips: {stride_s: soon}", "clips: stride_s 'soon': Input should be a valid number"),
        ("split: {test_fraction: 2}", "split: split fractions"),  # not of this command, checked all the same
        ("clip: {}", "unknown key 'clip' (did you mean 'clips'?)"),
    ],
)
def test_a_wrong_file_is_named_with_section_and_key(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"videos: v\ncache_dir: c\n{line}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as error:
        given("--params", path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_all_names_are_listed_only_where_none_is_near(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    for line, ending in (
        ("train: {epoch: 3}", "unknown setting 'epoch' (did you mean 'epochs'?)"),
        ("trian: {}", "unknown key 'trian' (did you mean 'train'?)"),
        ("split: {zzz: 3}", "; known are " + ", ".join(sorted(item.name for item in fields(SplitRule)))),
        ("zzz: {}", "clips, models, vllm, execution, split, train"),
    ):
        path.write_text(f"videos: v\ncache_dir: c\n{line}\n", encoding="utf-8")
        with pytest.raises(SettingsError) as error:
            given("--params", path)
        assert str(error.value).endswith(ending)


def test_what_is_missing_can_come_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'--videos': give it, or a file that names videos with --params"):
        given("--cache-dir", "c")
