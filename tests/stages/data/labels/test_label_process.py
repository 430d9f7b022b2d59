"""Label files that are damaged or hostile: each costs itself, little time and little memory."""

from __future__ import annotations

import base64
import os
import resource
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thinkjepa.stages.data.labels.client import LabelProcess
from thinkjepa.stages.data.labels.contract import MAX_FILE_BYTES, LabelError
from thinkjepa.stages.data.labels.readers import LabelSource
from thinkjepa.stages.errors import StageError

HEADER = "frame,joint,x,y,z\n"
MOST_BYTES = 512e6

CRASHES = (
    "c-rk+KTq306u+}WWCB%_7D#BQ>M=_t1_rjIDxn@KKy3#)mDDkfrNlwDg~C)uDs^D&*pZLGn30dsu_NCg*tvI(?;vqY+RAF)F"
    "T>M&_wIc5`{Vb{`C@EsKgd1Fkr0|jG9*vp7y!<ni##7c07`+L0liSTd~P^a0(l<R@2@ew1@d=q>h(~2AR*caY)d1ES%gu4u@"
    "};P;Maj(DWab5HXQG;>vlZGn_cJ7Zd#6MF@f3WSZ-tFua$)Ba{uKMDA{CGWdarSG7=pxFAbL}=+8i=lcGk7pJ9A1@bGY4Q54"
    "GjokdP?IdJ{Hw8PdvwF4dgM)6#Lz}$x$>}7u~o{fSK)`%I8XC3Ibtf<H1)wMshe52tsrT5L|Z~Jdr;<=xScqZhuI-LyXPd`7"
    "t&ik6Evn26+T$XcOS24RF5C{Y!32%3Hw`fqs@IL6WB-U3yc%ffrgtOlti+WeU|6CUP^!1FWC-({e*K<^&`_|RT`n>PC&Y}-a"
    "uFsjrQ7YEw>eTi3={(a|ly-2IvgdJkzb(gGQont$BE}_Rw)<`FPuhy8H?GgFO_dj;!z*(B2yO9a@*;a<Q)OIU9G54nV2c{rS"
    "Rfk%H7QSig*<6UJL;t}FUs{wQeNzpF)w0Xyqy>IvZ!Y}zH2+4ZT_Xacu_=K+z0%7Vg<fW^3&5r$X7HNUkaXbyWRQFv^>+bk9"
    "@o9kktVl&df)))C9YRwPfY#$kwl3?!Kn6!ac4R!nb;UNcrce9Dko$$Cm5aAKR9=@5_g1I|KrOKp+qZ1OkCTAkqeYz9|2{d34"
    "S&ADuJ!Cr44Yze*>cGvs3D4B?VD!fDFh"
)
HANGS = (
    "c-rk+KTq306u+}WWCB%_@+WCSRgYPa7#P@+ssub#fM^FgmDDkfrNlwDRfVaHRAOLcWaJ|-X5?dZ?8rAr?c6)ZcWrP>+RAF)F"
    "T>M&_wIc5`{Vb{`C@EtJ<2`Hkr0|jG9*vp7yvF-MV^lz0;NFDfL<$HJ~JFEfjkfE_g5I-0{PqhdOg%0NQgE9+tLVP8e!C5?u"
    "GOK_%)!nim2zi4aYm`x*d=4X4g5go0el*Okg%TmfINlYbD{j+<*B5N;Vi(nLq`-j6}!FOT(oK`U{Zhq^ObNXBeLeJUkp%6oo"
    "Q>XOR<J4qU%4?XdMv?LddWQ9KtQFc07cd)Z%$XQLp5HDb!+SqFNV74>+$y7tGGZ#0~y^uF2nZU0S6Joi%(&xD*-CzIj)$>+z"
    "{c~=v47A2mK%W{spDrOf10)apz;mywOCJm|>-Ur>3#QN$hFZ9cdaQ13J)Vl@#+mhI)uVq9%xlj1No}&`ox31o=&-<RcEc)R6"
    "^*Qr6O2ztIow)u!on;#H(hkm2_B?*xZ_DwP)Ndayi*bpV?tYv5leR4Cjq9^(6XnI|@QPeKL0kNpyvW|zR2i2S$K}Z?*rG<(="
    "g9g%P0Ew!kS7gkN4-?$MY&!{%8R`+=0(hlKjuZfEb7^g@7j)Mn|~=UUKi084*~z4Sb^`8{Pc7l@)Zrn7lWtVZg<`{EzflAW8"
    "dyN<SC`Ynfb_;nqb$kmaIG<*?Rlc?rRz=+~ay7e5>b&lz)!mc6F^!mh0Ic+LpNQo5yH71OkCTAP@)y0)apv(guFMDF45Cbj~"
    "mvoiq3+$5FSRbk2~Aoil_>eg`Wz$=("
)
"""Files of one joint and three frames with one changed byte, in the attributes that describe them."""


@pytest.fixture
def reader() -> Iterator[LabelProcess]:
    process = LabelProcess(timeout_s=20)
    yield process
    process.close()


def written(path: Path, packed: str) -> Path:
    path.write_bytes(zlib.decompress(base64.b85decode(packed)))
    return path


def good_table(tmp_path: Path) -> Path:
    path = tmp_path / "good.csv"
    path.write_text(HEADER + "0,a,0,0,1\n1,a,0.5,0,1\n")
    return path


def peak_bytes(pid: int | None) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def test_a_byte_that_ends_the_hdf5_library_by_a_signal_costs_one_file(
    tmp_path: Path, reader: LabelProcess
) -> None:
    with pytest.raises(LabelError, match=r"ended by itself \(signal 11\): the file is malformed"):
        reader.read(written(tmp_path / "0.hdf5", CRASHES))
    assert reader.read(good_table(tmp_path)).positions_m[1, 0].tolist() == [0.5, 0, 1]


def test_a_byte_that_hangs_the_hdf5_library_costs_one_time_out(tmp_path: Path, reader: LabelProcess) -> None:
    reader.read(good_table(tmp_path))
    pid, reader.timeout_s = reader.pid, 0.5
    assert pid is not None
    with pytest.raises(LabelError, match=r"no answer for 0\.5.* s; it is malformed, or its disk hangs"):
        reader.read(written(tmp_path / "0.hdf5", HANGS))
    assert not psutil.pid_exists(pid)
    reader.timeout_s = 20
    assert reader.read(good_table(tmp_path)).num_frames == 2


def test_ctrl_c_ends_the_reading_of_a_file_that_hangs(tmp_path: Path) -> None:
    script = (
        "import signal, sys\nfrom pathlib import Path\n"
        # A shell lets its background jobs ignore the signal, and their children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from thinkjepa.stages.data.labels.client import label_process\n"
        "label_process().read(Path(sys.argv[1]))\nprint(label_process().pid, flush=True)\n"
        "label_process().read(Path(sys.argv[2]))\n"
    )
    hangs = written(tmp_path / "0.hdf5", HANGS)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(good_table(tmp_path)), str(hangs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGINT)
        _, said = parent.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert not psutil.pid_exists(pid)


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next(
    tmp_path: Path, reader: LabelProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.csv"
    other.write_text(HEADER + "0,b,0,0,1\n")
    reader.read(other)
    with monkeypatch.context() as interrupted:

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        interrupted.setattr("thinkjepa.stages.child_process.ChildProcess.answer", interrupt)
        with pytest.raises(KeyboardInterrupt):
            reader.read(other)
    assert reader.read(good_table(tmp_path)).joint_names == ("a",)


def shapes_of_nothing(path: Path) -> Path:
    """130 kB that declare a million camera poses, of which nothing is stored: each takes 400 bytes."""
    with h5py.File(path, "w") as file:
        for name in ("camera", "hip"):
            file.create_dataset(f"transforms/{name}", (10**6, 4, 4), "i1", chunks=(1000, 4, 4))
        file["rest"] = np.zeros(120_000, "u1")
    return path


def one_name_often(path: Path) -> Path:
    """A few kB that declare 300,000 rows of a joint's name of 2,000 characters: 600 MB."""
    rows = 300_000
    names = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["a" * 2000])
    zeros = {name: np.zeros(rows) for name in "xyz"}
    pq.write_table(pa.table({"frame": np.zeros(rows, np.int64), "joint": names, **zeros}), path)
    return path


def one_late_frame(path: Path) -> Path:
    """A table of a few rows that declares a million frames of 20 joints: 320 MB."""
    path.write_text(HEADER + "".join(f"999999,{joint},0,0,1\n" for joint in range(20)))
    return path


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("0.hdf5", shapes_of_nothing, "needs more memory than a file of its size may"),
        ("0.parquet", one_name_often, "needs more memory than a file of its size may"),
        ("0.csv", one_late_frame, "declares more than the file can hold: 1,000,000 frames of 20 joints"),
    ],
)
def test_a_small_file_takes_little_memory_whatever_it_declares(
    tmp_path: Path, reader: LabelProcess, name: str, make: Callable[[Path], Path], message: str
) -> None:
    path, before = make(tmp_path / name), psutil.Process().memory_info().rss
    assert path.stat().st_size < 200_000
    with pytest.raises(LabelError, match=message):
        reader.read(path)
    assert peak_bytes(reader.pid) < MOST_BYTES
    assert psutil.Process().memory_info().rss - before < MOST_BYTES / 4


def test_a_child_writes_no_file_and_no_core(tmp_path: Path, reader: LabelProcess) -> None:
    reader.read(good_table(tmp_path))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        assert reader.pid is not None
        assert resource.prlimit(reader.pid, limit) == (0, 0)


def test_the_size_of_a_file_is_looked_at_before_its_content(tmp_path: Path) -> None:
    for name in ("0.csv", "0.hdf5", "0.parquet"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(MAX_FILE_BYTES + 1)
        for use in (LabelSource(tmp_path / name).digest, LabelSource(tmp_path / name).read):
            with pytest.raises(LabelError, match="has 2,147,483,649 bytes, 2,147,483,648 are allowed"):
                use()


def test_no_python_and_no_descriptors_are_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = good_table(tmp_path)
    with monkeypatch.context() as gone:
        gone.setattr(sys, "executable", str(tmp_path / "python"))
        with pytest.raises(
            StageError, match=r"cannot start the process that reads labels: this Python is gone"
        ):
            LabelProcess().read(path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())), limits[1]))
    try:
        with pytest.raises(StageError, match="too many open files: raise the limit with `ulimit -n`"):
            LabelProcess().read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
