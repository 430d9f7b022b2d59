"""Workers of this machine are closed to its other users: they run any code that is sent to them."""

from __future__ import annotations

import os
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import dask
import psutil
import pytest
from distributed import Client, Security

from thinkjepa.stages.extract.cluster import SETTINGS, connected
from thinkjepa.stages.extract.settings import ExecutionSettings

WAIT_S = 100

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The system's temporary folder, in which another user was before us."""
    folder = tmp_path_factory.mktemp("tmp")
    for planted in ("dask-scratch-space", f"dask-scratch-space-{os.getuid()}"):
        (folder / planted).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def client(temporary: Path) -> Iterator[Client]:
    """One worker, and after it a process that imports from no folder of the run."""
    with dask.config.set(SETTINGS), connected(ExecutionSettings(workers=1)) as found:
        found.wait_for_workers(1, timeout=WAIT_S)
        yield found
    assert not [entry for entry in sys.path if entry.startswith(str(temporary))]
    assert not list(temporary.glob("thinkjepa-dask-*"))


def listening(pid: int) -> Iterator[tuple[str, int]]:
    """Addresses and ports at which a process and its children listen."""
    process = psutil.Process(pid)
    for item in (process, *process.children(recursive=True)):
        for connection in item.net_connections():
            if connection.status == psutil.CONN_LISTEN:
                yield connection.laddr.ip, connection.laddr.port


def test_the_run_itself_reaches_its_worker(client: Client) -> None:
    assert client.submit(os.getpid).result(timeout=WAIT_S) != os.getpid()


@pytest.mark.parametrize(
    ("scheme", "security"), [("tcp", None), ("tls", Security.temporary())], ids=["plain", "own key"]
)
def test_nobody_else_does(client: Client, scheme: str, security: Security | None) -> None:
    """Neither scheduler nor worker, and neither without a certificate nor with one of another run."""
    addresses = [client.scheduler.address, *client.scheduler_info()["workers"]]
    assert len(addresses) == 2
    for address in addresses:
        stranger = f"{scheme}://{address.rpartition('/')[2]}"
        with pytest.raises(OSError, match=r"closed|certificate|Timed out|Connection"):
            Client(stranger, timeout=2, security=security, set_as_default=False)


def test_all_ports_are_of_loopback_and_show_nothing(client: Client) -> None:
    """Some listen without TLS: dask's pages, which would name the run's files."""
    ports = list(listening(os.getpid()))
    assert len(ports) >= 4
    assert {address for address, _ in ports} == {"127.0.0.1"}
    for _, port in ports:
        for page in ("/health", "/metrics", "/info/main/workers.html", "/json/identity.json"):
            with pytest.raises((urllib.error.HTTPError, OSError)) as raised:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=WAIT_S)
            if isinstance(raised.value, urllib.error.HTTPError):
                assert raised.value.code == 404
                raised.value.close()


def test_a_worker_imports_from_no_folder_that_others_can_make(client: Client, temporary: Path) -> None:
    """Workers have their scratch folder among those that they import from."""
    (paths,) = client.run(lambda: __import__("sys").path).values()
    scratch = [Path(entry) for entry in paths if entry.startswith(str(temporary))]
    assert scratch
    (own,) = temporary.glob("thinkjepa-dask-*")
    assert all(entry.is_relative_to(own) for entry in scratch)
    assert S_IMODE(own.stat().st_mode) == 0o700
    assert list((temporary / "dask-scratch-space").iterdir()) == []
