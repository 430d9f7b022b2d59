"""thinkjepa-cache compare: differences between two sets of the same clips, known by construction."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_command
from torch import Tensor

from thinkjepa.cache import ArraySpec, ClipFeatures, ClipRow, FeatureSet, WriteSession, describe_set
from thinkjepa.pipeline.report.compare import compare_sets, cosines
from thinkjepa.stages.progress import NoProgress

SAMPLING = {"fingerprint": "s"}
CLIP_IDS = ("0123@4", "4567@8")
PROMPT, ANSWER = (1, 2, 3), (7, 8)


def thinker(layers: tuple[int, ...], dtype: str, prompt: str = "p") -> FeatureSet:
    array = ArraySpec("tokens", ("layer", "token", "dim"), (len(layers), 8, 4), (1, 4, 4), dtype)
    origin = {"layers": list(layers), "prompt": prompt, "dtype": dtype, "sampling": SAMPLING}
    return describe_set(
        "thinker", origin=origin, source={}, arrays=(array,), shard_bytes=10**6, typical_clip_bytes=1000
    )


def encoder(dtype: str) -> FeatureSet:
    arrays = [ArraySpec(name, ("patch", "dim"), (3, 4), (3, 4), dtype) for name in ("observed", "future")]
    return describe_set(
        "encoder",
        origin={"dtype": dtype, "sampling": SAMPLING},
        source={},
        arrays=tuple(arrays),
        shard_bytes=10**6,
        typical_clip_bytes=1000,
    )


def clip(clip_id: str) -> ClipRow:
    digest, split = clip_id.split("@")
    return ClipRow(
        clip_id, "v.mp4", digest, "s", "s", int(split), 1.0, (0,), (0.0,), (0,), (0.0,), ((4,),), ((2.0,),)
    )


def thought(clip_id: str, states: Tensor, answer: tuple[int, ...] = ANSWER) -> ClipFeatures:
    count = len(PROMPT) + len(answer) - 1
    return ClipFeatures(clip_id, {"tokens": states[:, :count]}, count, len(PROMPT), (*PROMPT, *answer))


def write(cache_dir: Path, written: list[tuple[FeatureSet, list[ClipFeatures]]]) -> list[str]:
    with WriteSession(cache_dir) as session:
        session.add_clips([clip(clip_id) for clip_id in CLIP_IDS])
        for item, features in written:
            with session.writer(session.resolve(item)) as writer:
                assert writer.append(features, []) == []
    return [item.name for item, _ in written]


def compared(cache_dir: Path, names: list[str]) -> dict[str, Any]:
    return compare_sets(cache_dir, *names, progress=NoProgress())


def states_of(layers: int, seed: int = 0) -> Tensor:
    return torch.randn(layers, 8, 4, generator=torch.Generator().manual_seed(seed))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_command("thinkjepa-cache", "compare", *arguments)


def test_a_set_equals_itself(tmp_path: Path) -> None:
    features = [thought(clip_id, states_of(2)) for clip_id in CLIP_IDS]
    names = write(tmp_path, [(thinker((0, 3), "float32"), features)])
    report = compared(tmp_path, [*names, *names])
    assert set(report["states"]) == {"layer 0", "layer 3"}
    for item in report["states"].values():
        assert item["max_abs_difference"] == 0
        assert item["min_cosine"] == pytest.approx(1, abs=1e-12)
        assert item["vectors"] == 2 * 4
    assert report["clips_with_equal_tokens"] == report["clips"] == 2
    assert report["differing_origin"] == {}


def test_a_known_difference_is_found_at_its_layer_and_layers_match_by_number(tmp_path: Path) -> None:
    states = states_of(3)
    other = states[[0, 2]].clone()
    other[1, 2, 1] += 0.5
    names = write(
        tmp_path,
        [
            (thinker((0, 1, 3), "float32"), [thought(clip_id, states) for clip_id in CLIP_IDS]),
            (
                thinker((0, 3), "float32", "q"),
                [thought(CLIP_IDS[0], states[[0, 2]]), thought(CLIP_IDS[1], other)],
            ),
        ],
    )
    report = compared(tmp_path, names)
    assert set(report["states"]) == {"layer 0", "layer 3"}
    assert report["states"]["layer 0"]["max_abs_difference"] == 0
    assert report["states"]["layer 3"]["max_abs_difference"] == pytest.approx(0.5, abs=1e-6)
    cosine = torch.nn.functional.cosine_similarity(states[2, 2].double(), other[1, 2].double(), dim=0)
    assert report["states"]["layer 3"]["min_cosine"] == pytest.approx(float(cosine), abs=1e-9)
    assert report["states"]["layer 3"]["mean_cosine"] == pytest.approx((7 + float(cosine)) / 8, abs=1e-9)
    assert set(report["differing_origin"]) == {"layers", "prompt"}


def test_states_behind_a_token_that_differs_are_not_compared(tmp_path: Path) -> None:
    states, answers = states_of(1), ((7, 8, 9), (6, 8, 9))
    other = states.clone()
    other[:, len(PROMPT) :] += 100
    names = write(
        tmp_path,
        [
            (thinker((0,), "float32"), [thought(clip_id, states, answers[0]) for clip_id in CLIP_IDS]),
            (
                thinker((0,), "bfloat16"),
                [thought(clip_id, other.bfloat16(), answers[1]) for clip_id in CLIP_IDS],
            ),
        ],
    )
    report = compared(tmp_path, names)
    assert report["tokens"] == {"prompt": {"tokens": 6, "equal": 6}, "generated": {"tokens": 6, "equal": 4}}
    assert report["clips_with_equal_tokens"] == 0
    assert report["states"]["layer 0"]["vectors"] == 2 * len(PROMPT)
    assert 0 < report["states"]["layer 0"]["max_abs_difference"] < 0.02


def test_encoder_sets_compare_by_array_and_kinds_do_not_mix(tmp_path: Path) -> None:
    values = states_of(1)[0, :3]
    written = [
        (
            encoder(dtype),
            [ClipFeatures(name, {"observed": values.to(kind), "future": values.to(kind) + shift})],
        )
        for name, dtype, kind, shift in (
            (CLIP_IDS[0], "float32", torch.float32, 0.0),
            (CLIP_IDS[0], "float16", torch.float16, 1.0),
        )
    ]
    names = write(tmp_path, [*written, (thinker((0,), "float32"), [thought(CLIP_IDS[0], states_of(1))])])
    report = compared(tmp_path, names[:2])
    assert report["states"]["observed"]["max_abs_difference"] < 1e-3
    assert report["states"]["future"]["max_abs_difference"] == pytest.approx(1, abs=2e-3)
    assert "tokens" not in report
    done = run(tmp_path, "encoder-" + names[0].split("-")[1], names[2])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_command_prints_one_object_or_a_line_a_layer(tmp_path: Path) -> None:
    states = states_of(2)
    names = write(
        tmp_path,
        [
            (thinker((0, 3), dtype), [thought(clip_id, states.to(kind)) for clip_id in CLIP_IDS])
            for dtype, kind in (("float32", torch.float32), ("float16", torch.float16))
        ],
    )
    done = run(tmp_path, *names, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == compared(tmp_path, names)
    text = run(tmp_path, *names).stdout
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("layer")] == [
        ["layer", "0"],
        ["layer", "3"],
    ]


def test_sets_without_a_common_clip_are_refused(tmp_path: Path) -> None:
    states = states_of(1)
    names = write(
        tmp_path,
        [
            (thinker((0,), "float32"), [thought(CLIP_IDS[0], states)]),
            (thinker((0,), "float16"), [thought(CLIP_IDS[1], states.half())]),
        ],
    )
    done = run(tmp_path, *names)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no clip in common" in done.stderr


def test_cosine_of_zero_vectors_is_defined() -> None:
    a = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    assert cosines(a, b).tolist() == [1.0, 0.0, -1.0]


def test_sets_without_all_tokens_are_refused_in_one_line(tmp_path: Path) -> None:
    pooled = ArraySpec("pooled", ("layer", "stream", "dim"), (2, 5, 4), (2, 5, 4), "float32")
    origin = {"layers": [1, 5], "prompt": "q", "dtype": "float32", "sampling": SAMPLING}
    without = describe_set(
        "thinker", origin=origin, source={}, arrays=(pooled,), shard_bytes=10**6, typical_clip_bytes=1000
    )
    names = write(
        tmp_path / "c",
        [
            (thinker((1, 5), "float32"), [thought(CLIP_IDS[0], states_of(2))]),
            (without, [ClipFeatures(CLIP_IDS[0], {"pooled": torch.ones(2, 5, 4)})]),
        ],
    )
    done = run(tmp_path / "c", *names)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{names[1]} keeps no tokens" in done.stderr
