"""`dvc repro` as its user lives it: what runs again after a change, and what a restored result stands on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from commands import forking_commands, run_command
from dvc_render.html import render_html
from dvc_render.image import ImageRenderer

from thinkjepa.cache import FeatureCache
from thinkjepa.pipeline.project.params import SECTIONS, read_params
from thinkjepa.pipeline.project.setup import set_up_project
from thinkjepa.stages.settings import SettingsError

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {
    "videos": "videos",
    "cache_dir": "../features",
    "clips": {"thinker_frames": 4, "observed_frames": 4, "future_frames": 4, "dense_fps": 10.0},
    "models": {"thinker": "models/thinker", "encoder": "models/encoder", "prompt": "What is seen?"},
    "vllm": {"backend": "transformers"},
    "execution": {"device": "cpu"},
    "split": {"group_by": "video"},
    "train": {"epochs": 2, "batch_size": 4, "depth": 2, "width": 48, "heads": 2},
    "variants": ["thinkjepa"],
    "seeds": [0],
}
RUN = Path("results/runs/thinkjepa-0")
NO_LIST = "'Value' object is not iterable"
"""The words of DVC for a single value where the matrix of runs needs a list."""


class Project:
    """A project as `thinkjepa-init` makes it, with small settings."""

    def __init__(self, path: Path) -> None:
        self.path = path
        set_up_project(path)
        self.params = json.loads(json.dumps(SMALL))

    def repro(self, **changes: dict[str, Any]) -> list[str]:
        """Change sections of params.yaml, run the pipeline, return the stages whose commands were run."""
        for section, values in changes.items():
            self.params[section] |= values
        (self.path / "params.yaml").write_text(yaml.safe_dump(self.params))
        lines = self.dvc("repro").splitlines()
        return [
            line.split("'")[1]
            for line, following in pairwise(lines)
            if line.startswith("Running stage") and following.startswith(">")
        ]

    def dvc(self, *arguments: str) -> str:
        """Standard output of a DVC command, which must succeed."""
        environment = {**os.environ, "PATH": f"{forking_commands()}:{os.environ['PATH']}"}
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(
            command, cwd=self.path, env=environment, capture_output=True, text=True, check=False, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def metrics(self) -> dict[str, Any]:
        return {
            name: json.loads((self.path / RUN / name).read_text())
            for name in ("metrics.json", "eval-test.json", "../../report/comparison.json")
        }


@pytest.mark.parametrize(("axis", "value"), [("seeds", 0), ("variants", "jepa")])
def test_what_dvc_says_of_a_single_value_is_explained_where_its_user_looks(
    tmp_path: Path, axis: str, value: object
) -> None:
    project = Project(tmp_path / "project")
    (project.path / "params.yaml").write_text(yaml.safe_dump({**SMALL, axis: value}))
    with pytest.raises(AssertionError, match=NO_LIST):
        project.dvc("repro", "--dry")
    assert NO_LIST in (ROOT / "docs" / "project.md").read_text()
    assert f"{NO_LIST}." in " ".join((ROOT / "params.yaml").read_text().replace("#", "").split())
    with pytest.raises(SettingsError, match=rf"params.yaml: {axis} holds {value!r}.*give a list, \[\.\.\.\]"):
        read_params(project.path / "params.yaml")


@pytest.mark.timeout(900)
def test_each_change_runs_exactly_what_depends_on_it(
    tmp_path: Path, tiny_models: Path, make_video: Callable[..., Path]
) -> None:
    folder = tmp_path / "project"
    for number in range(5):
        make_video(folder / "videos" / f"{number}.mp4", num_frames=40 + number, size=(160, 128 + 16 * number))
    shutil.copytree(tiny_models, folder / "models")
    project = Project(folder)

    assert project.repro() == ["clips", "extract", "train@thinkjepa-0", "evaluate@thinkjepa-0", "report"]
    first = project.metrics()
    assert first["eval-test.json"]["latent"]["model"]["l2"] > 0

    assert project.repro() == ["clips"], "a second run looks at the folder and does nothing"
    assert project.repro(execution={"batch_size": 2}) == ["clips"], "how is not what"

    trained = project.repro(train={"epochs": 3})
    assert trained == ["clips", "train@thinkjepa-0", "evaluate@thinkjepa-0", "report"]
    assert project.metrics() != first
    assert project.repro(train={"epochs": 2}) == ["clips"], "an earlier result is taken from DVC's memory"
    assert project.metrics() == first

    other = project.repro(models={"prompt": "What happens next?"})
    assert other == ["clips", "extract", "train@thinkjepa-0", "evaluate@thinkjepa-0", "report"]
    second = project.metrics()
    assert second != first
    project.repro(models={"prompt": "What is seen?"})
    assert project.metrics() == first, "prompt a, b, a ends with the metrics of a"
    run = json.loads((folder / RUN / "run.json").read_text())
    weights = folder / RUN / run["checkpoint"]["file"]
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == run["checkpoint"]["sha256"]

    cache = FeatureCache.open(tmp_path / "features")
    rows_before = {name: len(cache.index(name)) for name in cache.feature_sets}
    make_video(folder / "videos" / "more" / "new.mp4", num_frames=44, size=(240, 128))
    assert project.repro() == ["clips", "extract", "train@thinkjepa-0", "evaluate@thinkjepa-0", "report"]
    cache = FeatureCache.open(tmp_path / "features")
    added = {name: len(cache.index(name)) - rows_before[name] for name in cache.feature_sets}
    assert sorted(added.values()) == [0, 1, 1], "one clip for the prompt in use and one for the encoder"
    assert sum(project.metrics()["metrics.json"]["num_clips"].values()) == 6

    (folder / "videos" / "more" / "new.mp4").unlink()
    project.repro()
    assert project.metrics() == first, "without the video the cache still holds it, the run does not"
    assert largest_file(folder / ".dvc") < 100_000, "nothing large is copied"


@pytest.mark.timeout(900)
def test_another_prompt_runs_nothing_of_a_variant_without_thinker(
    tmp_path: Path, tiny_models: Path, make_video: Callable[..., Path]
) -> None:
    folder = tmp_path / "project"
    for number in range(4):
        make_video(folder / "videos" / f"{number}.mp4", num_frames=30 + number)
    shutil.copytree(tiny_models, folder / "models")
    project = Project(folder)
    project.params |= {"variants": ["jepa"]}
    assert project.repro() == ["clips", "extract", "train@jepa-0", "evaluate@jepa-0", "report"]
    assert project.repro(models={"prompt": "What happens next?"}) == ["clips", "extract"]

    status = json.loads(project.dvc("status", "--json"))
    assert status == {"clips": ["always changed"]}, "all that DVC knows is up to date"
    table = project.dvc("metrics", "show")
    assert "results/runs/jepa-0/test.json" in table
    assert max(map(len, table.splitlines())) <= 100
    project.dvc("plots", "show")
    page = (folder / "dvc_plots" / "index.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    pictures = re.findall(r'src="([^"]+)"', page)
    assert len(pictures) == 5
    assert all((folder / "dvc_plots" / picture).is_file() for picture in pictures)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_an_edited_table_trains_the_oracle_again_and_nothing_else(
    tmp_path: Path, tiny_models: Path, make_video: Callable[..., Path]
) -> None:
    folder = tmp_path / "project"
    for number in range(6):
        make_video(folder / "videos" / f"{number}.mp4", num_frames=30 + number)
    shutil.copytree(tiny_models, folder / "models")
    table = folder / "kinds.csv"
    table.write_text("video,kind\n" + "".join(f"{number}.mp4,{number % 2}\n" for number in range(6)))
    project = Project(folder)
    own = ["train@thinkjepa-0", "evaluate@thinkjepa-0", "report"]
    oracle = {"guidance_source": "oracle:kind", "oracle_table": "kinds.csv"}
    assert project.repro(train=oracle) == ["clips", "extract", *own]
    first = json.loads((folder / RUN / "run.json").read_text())["oracle_digest"]
    assert project.repro() == ["clips"]
    table.write_text(table.read_text().replace("0.mp4,0", "0.mp4,1"))
    assert project.repro() == ["clips", *own]
    assert json.loads((folder / RUN / "run.json").read_text())["oracle_digest"] != first
    assert project.repro(train={"guidance_source": "own"}) == ["clips", *own]
    table.write_text("video,kind\n")
    assert project.repro() == ["clips"], "no source reads it"


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_clips_of_a_table_go_through_the_whole_pipeline(
    tmp_path: Path, tiny_models: Path, make_video: Callable[..., Path]
) -> None:
    """Their splits and partitions are the table's. Edited, it extracts and trains again."""
    folder = tmp_path / "project"
    for number in range(4):
        make_video(folder / "videos" / f"{number}.mp4", num_frames=48 + number)
    shutil.copytree(tiny_models, folder / "models")
    splits = ["train,20", "train,21", "validation,22", "test,23"]
    table = folder / "clips.csv"
    lines = [f"{number}.mp4,{split}" for number, split in enumerate(splits)]
    table.write_text("\n".join(["video,partition,split_frame", *lines]) + "\n")
    project = Project(folder)
    project.params |= {"clips_file": "clips.csv", "variants": ["jepa"]}
    own = ["extract", "train@jepa-0", "evaluate@jepa-0", "report"]

    def divided() -> dict[str, list[int]]:
        """Split frames by partition."""
        clips = json.loads((folder / RUN.with_name("jepa-0") / "split.json").read_text())["clips"]
        return {name: sorted(int(item.split("@")[1]) for item in ids) for name, ids in clips.items()}

    assert project.repro() == ["clips", *own]
    assert divided() == {"train": [20, 21], "validation": [22], "test": [23]}
    report = json.loads((folder / "results" / "report" / "comparison.json").read_text())
    assert report["num_clips"] == 1
    assert project.repro() == ["clips"]
    table.write_text(table.read_text().replace("test,23", "test,25"))
    assert project.repro() == ["clips", *own]
    assert divided() == {"train": [20, 21], "validation": [22], "test": [25]}


@pytest.mark.parametrize("revisions", [["workspace"], ["HEAD", "workspace"]])
def test_the_page_of_plots_names_a_revision_only_among_several(tmp_path: Path, revisions: list[str]) -> None:
    """Its style hides a paragraph in the only box of a picture's frame: this is how DVC nests them."""
    template = ROOT / "pipeline" / "project" / "template" / "plots.html"
    assert "body > div > div:only-of-type > p { display: none; }" in template.read_text()
    points = [{"rev": name, "src": f"{name}.png"} for name in revisions]
    page = render_html([ImageRenderer(points, "curve.png")], tmp_path / "index.html", template)
    text = re.sub(r"<!--.*?-->", "", Path(page).read_text(), flags=re.DOTALL)
    body = re.sub(r"<img [^>]*>", "", text[text.index("<body>") : text.index("</body>") + len("</body>")])
    tree = ElementTree.fromstring(body)
    assert "pictures of the last" in "".join(tree.find("h1").itertext())  # type: ignore[union-attr]
    [frame] = tree.findall("div")
    assert [item.text for item in frame.findall("p")] == ["curve.png"]
    assert [item.text for item in frame.findall("div/p")] == revisions
    assert len(frame.findall("div")) == len(revisions)


def test_a_step_that_fails_names_the_key_and_not_a_flag(
    tmp_path: Path, tiny_models: Path, make_video: Callable[..., Path]
) -> None:
    for number in range(2):
        make_video(tmp_path / "videos" / f"{number}.mp4", num_frames=30 + number)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "models").symlink_to(tiny_models)

    def extract(max_failures: str) -> subprocess.CompletedProcess[str]:
        params = {**SMALL, "execution": {"device": "cpu", "max_failures": max_failures}}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        return run_command("thinkjepa-stage", "extract", "--out", "selections", cwd=tmp_path)

    failed = extract("")
    assert failed.returncode == 3, failed.stderr
    assert "accept it with execution.max_failures in params.yaml" in failed.stdout
    assert "--max-failures" not in failed.stdout + failed.stderr
    assert not (tmp_path / "selections").exists()
    done = extract("40%")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "selections").iterdir()} == {
        "thinkjepa.json",
        "jepa.json",
        "vlm.json",
        "poses.json",
    }


def largest_file(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": "x"}, "unknown key 'video'"),
        ({"clips": {"thinker_frame": 8}}, "clips: unknown setting 'thinker_frame'"),
        ({"models": {"max_new_tokens": "many"}}, "models: max_new_tokens 'many'"),
        ({"variants": ["jeppa"]}, "variants has no 'jeppa' (did you mean 'jepa'?)"),
        ({"seeds": 0}, "seeds holds 0, expected a list of int: give a list"),
        ({"train": {"seed": 1}}, "train.seed is set by the matrix: use the key seeds"),
        ({"videos": None}, "videos is missing"),
        ({"execution": {"max_failures": "lots"}}, "execution: max_failures 'lots'"),
        ({"clips": 5}, "clips holds 5"),
        ({"runs_dir": ["runs"]}, "runs_dir holds ['runs']"),
    ],
)
def test_params_with_a_mistake_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**SMALL, **change}))
    with pytest.raises(SettingsError) as error:
        read_params(tmp_path / "params.yaml")
    assert message in str(error.value)


def test_a_number_is_taken_where_a_setting_is_text(tmp_path: Path) -> None:
    given = {"execution": {"max_failures": 2}, "models": {**SMALL.get("models", {}), "layers": 3}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**SMALL, **given}))
    params = read_params(tmp_path / "params.yaml")
    assert (params.execution.max_failures, params.models.layers) == ("2", "3")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**SMALL, "execution": {"max_failures": True}}))
    with pytest.raises(SettingsError, match="execution: max_failures True"):
        read_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("section", SECTIONS)
def test_a_key_that_no_setting_has_is_refused_in_every_section(tmp_path: Path, section: str) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**SMALL, section: {"color": "red"}}))
    with pytest.raises(SettingsError, match=f"{section}: unknown setting 'color'; known are "):
        read_params(tmp_path / "params.yaml")


def test_the_projects_own_params_have_every_section() -> None:
    """Settings that are swept are in it, so that `-S section.key=..` needs no plus."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    guidance = {"guidance", "levels", "use_levels", "use_streams", "drop_guidance", "latent_loss"}
    assert {"videos", "cache_dir", "runs_dir", "variants", "seeds"} <= set(content)
    assert guidance <= set(content["train"])
    assert set(SECTIONS) <= set(yaml.safe_load((ROOT / "params.yaml").read_text()))


def test_the_projects_own_params_are_valid() -> None:
    assert read_params(ROOT / "params.yaml").models.thinker == "Qwen/Qwen3-VL-2B-Thinking"
    assert read_params(ROOT / "params.yaml").training(variant="vlm", seed=3).seed == 3
