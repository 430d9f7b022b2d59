"""The plan of the evidence, its choices of objects and places, and its differences, on made-up figures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from evidence.hand_choices import FINGERTIPS, decide, nearest
from evidence.measure import FILE, choices
from evidence.plan import Plan, PlanError
from evidence.setup import HERE
from evidence.summary import BASELINES, SLOPE, SummaryError, ablated, summarize

METRICS = ("ade_m", "fde_m", "object", "place", "rollout_ade_32_m")

SHARED = ("epochs", "batch_size", "learning_rate", "depth", "width", "heads", "joints", "schedule")


def plan_with(folder: Path, **changes: Any) -> Plan:
    """The shipped plan with some keys changed."""
    values = {**yaml.safe_load((HERE / "params.yaml").read_text()), **changes}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    return Plan.read(folder / "params.yaml")


def test_every_arm_has_the_same_budget_and_at_least_five_seeds():
    plan = Plan.read(HERE / "params.yaml")
    jobs = [job for job in plan.jobs() if job.arm not in plan.ablations]
    assert len({tuple(getattr(job.settings, name) for name in SHARED) for job in jobs}) == 1
    assert len(plan.seeds) >= 5
    for condition, arms in plan.conditions.items():
        of_condition = {(job.arm, job.seed) for job in jobs if job.condition == condition}
        assert of_condition == {(arm, seed) for arm in arms for seed in plan.seeds}
    assert len({job.name for job in plan.jobs()}) == len(list(plan.jobs()))


def test_the_promised_sizes_and_controls_are_in_the_plan():
    plan = Plan.read(HERE / "params.yaml")
    sizes = {name: part.episodes for name, part in plan.parts.items()}
    assert sizes == {"train": 480, "validation": 96, "test": 192}
    assert len({part.seed for part in plan.parts.values()}) == 3
    assert [plan.parts[name].pairs for name in ("train", "validation", "test")] == ["seen", "seen", "all"]
    sources = {job.arm: job.settings.guidance_source for job in plan.jobs()}
    assert sources["shuffled"] == "shuffled"
    assert sources["history"] == "history"
    assert sources["oracle"] == "oracle:object_cell,place_cell"
    assert {job.arm: job.cache for job in plan.jobs()}["untrained"] == "untrained"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conditions": {"cue": ["jepa", "jeppa"]}}, "unknown arm 'jeppa'"),
        ({"arms": {"jepa": {"vriant": "jepa"}}, "conditions": {"cue": ["jepa"]}, "ablations": {}}, "vriant"),
        ({"ablations": {"other": {"cache": "elsewhere"}}}, "reads the cache 'elsewhere'"),
        ({"epochs": 3}, "key 'epochs' is missing or unknown"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(tmp_path, changes, message):
    with pytest.raises(PlanError, match=message):
        plan_with(tmp_path, **changes)


def test_the_nearest_spot_is_the_nearest_over_the_table():
    spots_m = np.array([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]])
    assert nearest(np.array([0.06, 0.4, 0.0]), spots_m) == 1
    assert nearest(np.array([0.04, 0.0, 0.0]), spots_m) == 0


def test_choices_are_read_at_the_grasp_and_at_the_release_in_the_world():
    """The camera is shifted and turned: what it sees is brought back to the world of the facts."""
    joints = ("other", *FINGERTIPS)
    objects_m, places_m = (
        [[0.0, 0.0, -0.2], [0.2, 0.0, -0.3], [-0.2, 0.0, -0.3]],
        [[-0.1, 0, 0], [0, 0, 0], [0.1, 0, 0]],
    )
    facts = {
        "a.mp4": {
            "grasp_frame": 34,
            "release_frame": 41,
            "objects_m": objects_m,
            "places_m": places_m,
            "place": "right",
        }
    }
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, (0.5, 0.1, -0.2)
    labels = SimpleNamespace(camera_poses=[pose] * 60)
    features = SimpleNamespace(supervision=SimpleNamespace(labels_of=lambda _: labels), windows=1)
    clip = SimpleNamespace(
        clip_id="a", video="a.mp4", observed_frames=[28, 30], future_frames=[np.arange(32, 48, 2)]
    )

    def found(at_grasp: list[float], at_release: list[float]) -> tuple[float, float]:
        world_m = np.full((8, 4, 3), 9.0)  # (frame, joint, 3): nothing else may be read
        world_m[1, 1:], world_m[4, 1:] = at_grasp, at_release  # frames 34 and 40
        seen = (world_m - pose[:3, 3]) @ turn
        right = choices(seen.reshape(1, 4, 2, 4, 3), joints, [clip], features, facts, decide)  # type: ignore[arg-type,list-item]
        return float(right["object"][0]), float(right["place"][0])

    assert found([0.02, 0.3, -0.21], [0.09, 0.2, 0.01]) == (1.0, 1.0)
    assert found([0.19, 0.3, -0.3], [0.09, 0.2, 0.01]) == (0.0, 1.0)
    assert found([0.02, 0.3, -0.21], [-0.09, 0.2, 0.01]) == (1.0, 0.0)


CLIPS = 24


def write_runs(project: Path, plan: Plan, *, gain: float, seeds: tuple[int, ...]) -> None:
    """Made-up figures: the guided arm is better by `gain` under cue alone, and clips differ by far more."""
    random = np.random.default_rng(0)
    hard = random.gamma(2.0, 0.05, CLIPS)
    for job in plan.jobs():
        if job.seed not in seeds and job.arm == "vlm":
            continue
        better = gain if job.condition == "cue" and job.arm == "thinkjepa" else 0.0
        order = random.permutation(CLIPS)  # each run has its clips in another order
        table: dict[str, Any] = {
            "clip_id": [f"{job.condition}-{row}" for row in order],
            "video": [f"{row}.mp4" for row in order],
            "group": [f"3-{row}" for row in order],
            "unseen": [bool(row % 3 == 0) for row in order],
        }
        for metric in (*METRICS, SLOPE):
            values = hard[order] - better + random.normal(0, 1e-3, CLIPS)
            table |= {f"model_{metric}": values, **{f"{name}_{metric}": hard[order] for name in BASELINES}}
        (project / "runs" / job.name).mkdir(parents=True)
        pq.write_table(pa.table(table), project / "runs" / job.name / FILE)


@pytest.fixture
def small_plan(tmp_path) -> Plan:
    arms = {name: {"variant": "jepa"} for name in ("jepa", "thinkjepa", "vlm")}
    conditions = {"cue": list(arms), "no-cue": ["jepa", "thinkjepa"]}
    ablations = {"half": {"share": 0.5}}
    return plan_with(tmp_path, arms=arms, conditions=conditions, ablations=ablations, seeds=[0, 1, 2])


def test_the_difference_in_differences_finds_a_planted_gain_and_none_where_there_is_none(
    tmp_path, small_plan
):
    write_runs(tmp_path, small_plan, gain=0.02, seeds=(0, 1, 2))
    found = summarize(small_plan, tmp_path)
    gain = found["difference_in_differences"]["ade_m"]
    assert gain["low"] < -0.02 < gain["high"] < -0.018
    neutral = found["differences"]["no-cue"]["jepa"]["ade_m"]
    assert neutral["low"] < 0 < neutral["high"]
    assert found["cue"]["thinkjepa"]["ade_m"]["seeds"] == 3
    assert found["cue"]["ridge"]["ade_m"]["seeds"] == 1
    assert set(found["unseen_pairs"]["cue"]) == {"jepa", "thinkjepa", "vlm", *BASELINES}
    assert set(ablated(small_plan, tmp_path)) == {"jepa", "thinkjepa", "half"}


def test_an_arm_counts_with_all_its_seeds_or_not_at_all(tmp_path, small_plan):
    write_runs(tmp_path, small_plan, gain=0.0, seeds=(0, 1))
    assert "vlm" not in summarize(small_plan, tmp_path)["cue"]


def test_runs_on_other_clips_are_refused(tmp_path, small_plan):
    write_runs(tmp_path, small_plan, gain=0.0, seeds=(0, 1, 2))
    path = tmp_path / "runs" / "cue" / "jepa-1" / FILE
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(SummaryError, match=r"runs of jepa .* other clips"):
        summarize(small_plan, tmp_path)
