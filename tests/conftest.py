"""Settings of all tests, and the fixtures that most of them use; the others are plugins in `tests/makers`."""

import atexit
import os
import shutil
import tempfile

# Before anything imports torch, matplotlib or a model library; commands that tests start inherit them. One
# thread, because results are promised to be the same bits for the same thread count only.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["DVC_NO_ANALYTICS"] = "1"

if "THINKJEPA_MEMORY" not in os.environ:  # nor may tests write into the user's own folder
    os.environ["THINKJEPA_MEMORY"] = tempfile.mkdtemp(prefix="thinkjepa-memory-")
    atexit.register(shutil.rmtree, os.environ["THINKJEPA_MEMORY"], ignore_errors=True)

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import hypothesis
import pytest

# An example's time says what else the machine does.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

pytest_plugins = ("numbered_videos", "egodex_files", "extraction", "latent_cache", "small_sets")


def pytest_configure(config: pytest.Config) -> None:
    """Tests that are long, or need an environment of their own, run when asked for with `-m` only."""
    config.addinivalue_line("markers", "soak: takes many minutes; run with `make soak`")
    config.addinivalue_line("markers", "vllm: needs an environment with vLLM; run with `make test-vllm`")
    if not config.option.markexpr:
        config.option.markexpr = "not soak and not vllm"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the untrained models `thinker/` and `encoder/`; tests must not write to it."""
    from thinkjepa.pipeline.sample.models import write_tiny_models

    folder = tmp_path_factory.mktemp("models")
    write_tiny_models(folder, seed=0)
    return folder


@pytest.fixture
def tree_digest() -> Callable[[Path], dict[str, str]]:
    """The digest of every file beneath a folder, by its path there; lock files apart."""

    def digest(root: Path) -> dict[str, str]:
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in files}

    return digest
