"""All runs of the evidence, trained and measured, several at a time; what is there is not done again."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

from evidence.measure import FILE, measure
from evidence.plan import Job, Plan
from evidence.tasks import TASKS
from thinkjepa.stages.data.partition import SplitRule
from thinkjepa.stages.train.run import train


def run_all(
    plan: Plan, jobs: Sequence[Job], project: Path, *, workers: int, advance: Callable[[int], None]
) -> None:
    """Train and measure what `project/runs` lacks, each run on one thread."""
    waiting = []
    for job in jobs:
        if (project / "runs" / job.name / FILE).is_file():
            advance(1)
        else:
            waiting.append(job)
    # Fresh processes: a forked one shares torch's threads with this one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        for done in as_completed([pool.submit(partial(run_one, plan, project, job)) for job in waiting]):
            done.result()
            advance(1)


def run_one(plan: Plan, project: Path, job: Job) -> None:
    """Train one run and measure it."""
    videos, out = project / "videos" / job.condition, project / "runs" / job.name
    cache_dir = project / "features" / job.cache
    settings = replace(job.settings, threads=1, device="cpu", tracker="none")
    if settings.oracle_table:
        settings = replace(settings, oracle_table=str(videos / settings.oracle_table))
    train(cache_dir, out, settings, split=SplitRule(partition="file", group_by="file"))
    measure(out, cache_dir=cache_dir, videos=videos, decide=TASKS[plan.task].decide, horizons=plan.horizons)
