"""A model that brings its own code is refused, whatever is answered to whom, and its code never runs."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.costs import thinker_costs
from thinkjepa.stages.extract.models.pair import FrozenModels
from thinkjepa.stages.extract.settings import ModelSettings

CODE = """
from pathlib import Path
Path({ran!r}).touch()
class Own:
    pass
"""

AUTO_CLASSES = {
    "config.json": ("AutoConfig", "AutoModel", "AutoModelForImageTextToText"),
    "tokenizer_config.json": ("AutoTokenizer",),
    "processor_config.json": ("AutoProcessor", "AutoImageProcessor", "AutoVideoProcessor"),
    "preprocessor_config.json": ("AutoImageProcessor", "AutoProcessor"),
    "video_preprocessor_config.json": ("AutoVideoProcessor",),
}
"""Files of a model that may name code, and what loads it."""

OWN_TYPES = {
    "model_type": "own",
    "tokenizer_class": "OwnTokenizer",
    "processor_class": "OwnProcessor",
    "image_processor_type": "OwnImageProcessor",
    "video_processor_type": "OwnVideoProcessor",
}
"""Types that transformers does not have, so that only the model's own code could load them."""


def with_own_code(source: Path, copy: Path, file: str, ran: Path, *, unknown: bool) -> Path:
    """A copy of a model whose `file` names code in the folder, which would leave `ran`."""
    shutil.copytree(source, copy)
    (copy / "own.py").write_text(CODE.format(ran=str(ran)))
    path = copy / file
    content = json.loads(path.read_text()) if path.exists() else {}
    content["auto_map"] = dict.fromkeys(AUTO_CLASSES[file], "own.Own")
    content["auto_map"].update({"AutoTokenizer": ["own.Own", "own.Own"]} if "tokenizer" in file else {})
    if unknown:
        content.update({name: value for name, value in OWN_TYPES.items() if name in content})
        if "tokenizer" not in file and path.name != "config.json":
            content.update({name: value for name, value in OWN_TYPES.items() if "type" in name[5:]})
            content.pop("model_type", None)
    path.write_text(json.dumps(content))
    return copy


CASES = [(role, file, True) for role in ("thinker", "encoder") for file in AUTO_CLASSES]
CASES += [(role, "config.json", False) for role in ("thinker", "encoder")]

REFUSED = {
    ("thinker", "config.json", True),
    ("thinker", "processor_config.json", True),
    ("encoder", "config.json", True),
    ("encoder", "video_preprocessor_config.json", True),
}
"""The others are loaded without the code: transformers finds the types in other files, or by the model."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions that were asked. Each one is answered with yes."""
    questions: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda text="": questions.append(text) or "y")
    return questions


@pytest.mark.parametrize(("role", "file", "unknown"), CASES)
def test_code_in_a_model_never_runs(
    tmp_path: Path, tiny_models: Path, asked: list[str], role: str, file: str, unknown: bool
) -> None:
    """A model of a type that transformers has is used, without its code."""
    ran = tmp_path / "ran"
    folders = {name: str(tiny_models / name) for name in ("thinker", "encoder")}
    folders[role] = str(with_own_code(tiny_models / role, tmp_path / role, file, ran, unknown=unknown))
    refused = ""
    try:
        models = FrozenModels.find(ModelSettings(**folders), device="cpu")
        for model in models.by_kind.values():
            model.load_processor()
        models.by_kind["encoder"].load()
        thinker_costs(models.thinker)
    except StageError as error:
        refused = str(error)
    assert not ran.exists()
    assert asked == []
    if (role, file, unknown) in REFUSED:
        assert (
            f"--{role} {folders[role]!r} is loaded by Python code of its own, which is never run" in refused
        )
    else:
        assert refused == ""
