"""The documentation's commands work: blocks run in order, and others have right flags."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import BIN, forking_commands
from documents import Block, blocks_of, check_call, command_lines, indented_calls, programs, run_block

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("C*.md"))]
TOOLS = {
    "accelerate",
    "bash",
    "cd",
    "dask",
    "docker",
    "dvc",
    "export",
    "git",
    "make",
    "mkdir",
    "pip",
    "pre-commit",
}
TOOLS |= {"printf", "python", "sbatch", "source", "uv"}
"""Commands that are not ours: only their names are known here."""

REVISION = "0" * 40
PARSED = [block for page in PAGES for block in blocks_of(page, root=ROOT) if block.needs]
CALLS = [call for page in PAGES for call in indented_calls(page, root=ROOT)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> dict[str, str]:
    """The environment of somebody who follows the documentation.

    Small models stand for those that would be downloaded: they are in the hub's local cache, under the names
    of the default models.
    """
    from thinkjepa.stages.extract.settings import ModelSettings

    hub = tmp_path_factory.mktemp("hub")
    defaults = ModelSettings()
    for folder, name in (("thinker", defaults.thinker), ("encoder", defaults.encoder)):
        stored = hub / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(tiny_models / folder, stored / "snapshots" / REVISION)
        (stored / "refs").mkdir()
        (stored / "refs" / "main").write_text(REVISION)
    path = f"{forking_commands(HF_HOME=str(hub))}:{BIN}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def follow(page: Path, folder: Path, reader: dict[str, str]) -> None:
    """Run the blocks of a page one after another, each where the last one ended."""
    for block in blocks_of(page, root=ROOT):
        if not block.needs:
            _, folder = run_block(block, folder, reader)


@pytest.mark.timeout(900)
def test_the_readme_works_from_top_to_bottom(tmp_path: Path, reader: dict[str, str]) -> None:
    follow(README, tmp_path, reader)


@pytest.mark.soak
@pytest.mark.parametrize("page", [page for page in PAGES if page != README], ids=lambda page: page.name)
def test_pages_work_from_top_to_bottom(page: Path, tmp_path: Path, reader: dict[str, str]) -> None:
    follow(page, tmp_path, reader)


@pytest.mark.parametrize("block", [*PARSED, *CALLS], ids=str)
def test_what_cannot_run_here_has_right_flags(block: Block) -> None:
    assert block.language == "sh", f"{block}: Python that cannot run is not checked by anything"
    for words in command_lines(block.text):
        if words[0] in programs():
            check_call(words)
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        else:
            known = words[0] in TOOLS or "=" in words[0] or (ROOT / words[0]).is_file()
            assert known or Path(words[0]).name == "pip", f"{block}: what is {words[0]!r}?"


@pytest.mark.parametrize(
    "call",
    [
        "thinkjepa-cache extract --videos DIR --cache-dir C --epochs 3",
        "thinkjepa-cache extrct --videos DIR --cache-dir C",
        "thinkjepa-cache ls",
        "thinkjepa-cache ls C --sort size",
        "thinkjepa-cache ls ... --sort size",
    ],
)
def test_wrong_calls_are_noticed(call: str) -> None:
    with pytest.raises(AssertionError):
        check_call(call.split())


PAGE = """
<!-- before: true -->
```sh
echo 12 clips  in 0a1b2c3d4
```

```text
3 clips in 9f9f9f9f
```

<!-- needs: gpu -->
```sh
false
```

```text
a picture
```

    here$ thinkjepa-cache info \\
      CACHE
"""


def test_blocks_are_found_with_what_stands_before_and_behind_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    runs, parsed = blocks_of(page, root=tmp_path)
    assert (runs.line, runs.before, runs.needs, runs.output) == (3, ("true",), "", "3 clips in 9f9f9f9f\n")
    assert parsed.needs == "gpu"
    (call,) = indented_calls(page, root=tmp_path)
    assert list(command_lines(call.text)) == [["thinkjepa-cache", "info", "CACHE"]]
    printed, folder = run_block(runs, tmp_path, os.environ)
    assert (printed, folder) == ("12 clips in 0a1b2c3d4\n", tmp_path)
    with pytest.raises(AssertionError, match=r"shows what was not printed: {'# videos'}"):
        run_block(replace(runs, output="3 videos\n"), tmp_path, os.environ)
    with pytest.raises(AssertionError, match="ended with status 1"):
        run_block(parsed, tmp_path, os.environ)
