"""A params.yaml, flags and paths of any content: one line each, in time and in little memory."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from commands import run_command

from thinkjepa.pipeline.project.params import params_text, read_given
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.weights import find_model
from thinkjepa.stages.extract.settings import ExecutionSettings
from thinkjepa.stages.settings import SettingsError, expanded
from thinkjepa.stages.train.settings import TrainSettings

BASE = "videos: videos\ncache_dir: features\n"
LAUGHS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))

HOSTILE = {
    "NaN": (BASE + "train: {learning_rate: .nan}", r"train: learning_rate nan: give a number"),
    "infinity": (BASE + "execution: {decode_timeout: .inf}", r"decode_timeout inf: give seconds above 0"),
    "deep": (BASE + "train: " + "[" * 5000 + "]" * 5000, "nested too deep"),
    "a little deep": (BASE + "train: " + "[" * 20 + "]" * 20, "no settings are so many or so deep"),
    "billions of values": (BASE + LAUGHS, "no settings are so many or so deep"),
    "a loop": (BASE + "train: &a {b: *a}", "no settings are so many or so deep"),
    "large": (BASE + "#" * 2**21, "no settings are so many or so deep"),
    "keys that are no names": (BASE + "train: {1: 2}", "with names for keys"),
    "code": (BASE + "train: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    "UTF-16": ((BASE).encode("utf-16"), "cannot read"),
    "Latin-1": ("videos: é".encode("latin-1"), "cannot read"),
    "a control character": (BASE + "train: \x00", "cannot read"),
    "a list": ("[]", "expected keys"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_params_are_one_error(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SettingsError, match=message) as raised:
        read_given(path)
    assert len(str(raised.value)) < 2000


def test_the_project_s_own_file_is_within_the_limits(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(params_text())
    assert read_given(tmp_path / "params.yaml")["train"]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.0, 1e300])
def test_a_time_out_is_a_time(value: float) -> None:
    with pytest.raises(SettingsError, match="give seconds above 0, up to 86400"):
        ExecutionSettings(decode_timeout=value)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_no_number_of_a_setting_is_infinite(value: float) -> None:
    for name in ("learning_rate", "weight_decay", "latent_weight", "min_confidence"):
        if hasattr(TrainSettings, name):
            with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} {value}: give "):
                TrainSettings(**{name: value})


def test_the_home_of_an_unknown_user_is_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expanded("~nouser/model") == Path("~nouser/model")
    (tmp_path / "~nouser").mkdir()
    with pytest.raises(StageError, match=r"the folder has no config\.json"):
        find_model("~nouser", revision="", role="thinker")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["thinkjepa-cache", "info", "x" * 5000], "a name in the path is too long|is not a feature cache"),
        (["thinkjepa-eval", "--run", "x" * 5000], "a name in the path is too long|no finished training run"),
        (
            ["thinkjepa-cache", "extract", "--videos", "x" * 5000, "--cache-dir", "c"],
            "too long|no such folder",
        ),
    ],
)
def test_long_names_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert any(part in done.stderr for part in message.split("|")), done.stderr[-500:]
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_limits_of_the_machine_are_one_line(tmp_path: Path) -> None:
    """No descriptors, no threads, no path: whatever a stage has not explained itself."""
    errors = {
        "OSError(24, 'Too many open files')": "error: too many open files: raise the limit",
        "OSError(11, 'no')": "error: no further process or thread can be started",
        'RuntimeError("can\'t start new thread")': "error: no further process or thread can be started",
        "FileNotFoundError(2, 'No such file', '/gone/python')": "error: '/gone/python': No such file",
        "OSError(36, 'File name too long', 'x' * 5000)": "error: 'xxx",
    }
    for error, message in errors.items():
        code = (
            "from thinkjepa.pipeline.cli.console import new_single_app, run_app\napp = new_single_app()\n"
            f"@app.command()\ndef main() -> None:\n    raise {error}\nrun_app(app)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(message)
        assert len(done.stderr) < 400
