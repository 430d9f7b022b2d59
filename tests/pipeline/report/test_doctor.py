"""thinkjepa-cache doctor: all is well here; what is broken is told with what to do about it."""

from __future__ import annotations

import fcntl
import json
import resource
from pathlib import Path

import pytest
from commands import run_command

from thinkjepa.pipeline.report import doctor
from thinkjepa.pipeline.report.doctor import Finding, describe_finding, examine, is_healthy


def broken(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings if finding.state == "broken"}


def test_the_command_finds_this_machine_healthy(tmp_path: Path) -> None:
    done = run_command(
        "thinkjepa-cache", "doctor", "--rehash", "--json", "--cache-dir", tmp_path / "new" / "cache"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["healthy"]
    names = {finding["name"] for finding in report["findings"]}
    assert names == {"weights", "versions", "decoder", "cpu", "gpu", "disk", "limits", "extraction"}
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_an_old_library_a_device_that_is_not_there_and_a_disk_without_locks_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "1.0" if name == "zarr" else real(name))
    monkeypatch.setattr(fcntl, "flock", lambda file, flags: None)
    monkeypatch.setattr(doctor, "check_extraction", lambda scratch, device: iter(()))
    findings = list(examine(tmp_path, device="cuda:7"))
    assert not is_healthy(findings)
    found = broken(findings)
    assert set(found) == {"versions", "devices", "disk"}
    assert "pip install 'zarr>=3.1.5'" in describe_finding(found["versions"])
    assert "--device 'cuda:7' cannot be used here" in found["devices"].found
    assert "locks do not hold" in found["disk"].found


def test_a_missing_codec_and_a_low_limit_are_warnings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "CODECS", ("h264", "codec-of-tomorrow"))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    findings = [*doctor.check_decoder(tmp_path), *doctor.check_limits()]
    assert is_healthy(findings)
    assert [finding.found for finding in findings if finding.state == "warning"] == [
        "cannot read codec-of-tomorrow",
        "256 open files",
    ]


def test_an_extraction_that_fails_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("no video")
    (finding,) = doctor.check_extraction(tmp_path, "cpu")
    assert (finding.state, finding.found.split(":")[0]) == ("broken", "open")
