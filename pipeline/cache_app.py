"""thinkjepa-cache: fill a feature cache and look at it.

The heavy imports (torch, transformers) happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from thinkjepa.cache import (
    CacheError,
    FeatureCache,
    WriteSession,
    count_clips,
    count_features,
    drop_clips,
    merge,
)
from thinkjepa.cache import verify as find_problems
from thinkjepa.pipeline.console import (
    EXIT_DONE,
    EXIT_FAILURES,
    JsonOption,
    confirmed,
    errors,
    new_app,
    print_json,
    print_result,
    print_text,
    run_app,
)
from thinkjepa.pipeline.help_page import examples
from thinkjepa.pipeline.options import with_settings
from thinkjepa.pipeline.remembering import cache_memory
from thinkjepa.pipeline.reporting import TerminalProgress
from thinkjepa.stages.data.clips import ClipSettings
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings
from thinkjepa.stages.extract.vllm_settings import VllmSettings

app = new_app("Fill a feature cache with what two frozen models see in your videos, and look at it.")

TERMINAL_CLIPS = 50
"""Clips that `ls` lists at a terminal: more than that is read with a filter or page by page."""

VideosOption = Annotated[
    Path, typer.Option("--videos", help="Folder of videos (mp4, mkv, webm, avi, mov), searched recursively.")
]
CacheOption = Annotated[Path, typer.Option("--cache-dir", help="Folder of the cache; made if it is new.")]
CacheArgument = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of the cache.")]


@app.command(
    "extract",
    epilog=examples(
        "thinkjepa-cache extract --videos videos --cache-dir features --dense-fps 10",
        "thinkjepa-cache extract --videos more-videos --cache-dir features  # the cache knows its settings",
        "thinkjepa-cache extract --params params.yaml --max-failures 5%",
    ),
)
@with_settings(
    memory=cache_memory,
    clips=ClipSettings,
    models=ModelSettings,
    execution=ExecutionSettings,
    vllm=VllmSettings,
)
def extract_command(
    *,
    videos: VideosOption,
    cache_dir: CacheOption,
    json: JsonOption = False,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
    vllm: VllmSettings,
) -> int:
    """Run thinker and encoder once over every clip of a folder of videos.

    Run it again after adding videos, or after an interruption: what is there is skipped. A cache remembers
    the clips and models of its last extraction: they hold where no flag or params.yaml says otherwise.
    Another prompt, thinker, encoder or dtype makes another feature set in the same cache.

    Exit status: 0 all done; 2 wrong use; 3 more videos failed than --max-failures accepts.
    """
    from thinkjepa.pipeline.extract_report import describe_report
    from thinkjepa.stages.extract.extraction import extract

    with TerminalProgress(errors) as progress:
        report = extract(
            videos, cache_dir, clips=clips, models=models, execution=execution, progress=progress, vllm=vllm
        )
    print_result(json, report.to_json(), lambda: describe_report(report))
    return EXIT_FAILURES if report.too_many_failures else EXIT_DONE


@app.command(
    "serve-thinker",
    epilog=examples(
        "thinkjepa-cache serve-thinker --states /shared/states --thinker Qwen/Qwen3-VL-8B-Thinking",
        "thinkjepa-cache serve-thinker --states /shared/states --params params.yaml --print",
    ),
)
@with_settings(models=ModelSettings, vllm=VllmSettings)
def serve_thinker_command(
    *,
    states: Annotated[
        Path,
        typer.Option("--states", help="Folder for states that this machine and the extraction both see."),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen at.")] = 8000,
    device: Annotated[str, typer.Option("--device", help="auto, cuda or cpu.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Clips at work at once.")] = 64,
    show: Annotated[bool, typer.Option("--print", help="Print the command of vLLM, do not run it.")] = False,
    models: ModelSettings,
    vllm: VllmSettings,
) -> None:
    """Serve the thinker's states from this machine, for `extract --backend vllm --vllm-url http://HOST:PORT`.

    Takes the models' and vLLM's flags that extract is given; those of the encoder, the prompt and the answer
    are not used here. One folder of states belongs to one server. There is no password: listen where only
    the extraction can reach it.
    """
    from thinkjepa.stages.extract.vllm_serving import prepare_server, run_server

    command = prepare_server(
        models, vllm, device=device, states=states, host=host, port=port, batch_size=batch_size
    )
    if show:
        print_text(shlex.join(command))
    else:
        run_server(command)


@app.command(
    "info",
    epilog=examples(
        "thinkjepa-cache info features",
        "thinkjepa-cache info features --json",
    ),
)
def info_command(
    *,
    cache: CacheArgument,
    json: JsonOption = False,
) -> None:
    """Feature sets with what made them, clips, shapes, bytes on disk, failed videos."""
    from thinkjepa.pipeline.cache_info import cache_info, describe_info

    info = cache_info(cache)
    print_result(json, info, lambda: describe_info(info))


@app.command(
    "doctor",
    epilog=examples(
        "thinkjepa-cache doctor",
        "thinkjepa-cache doctor --cache-dir /data/features --device cuda",
    ),
)
def doctor_command(
    *,
    cache_dir: Annotated[Path, typer.Option("--cache-dir", help="Where the cache will lie.")] = Path(),
    device: Annotated[
        str, typer.Option(help="Where the models will run: auto, cpu, cuda, cuda:1, mps.")
    ] = "auto",
    json: JsonOption = False,
) -> int:
    """Try everything that extraction needs: versions, decoder, devices, disk, a clip through tiny models.

    What is broken comes with what to do about it. Exit status 3 where something is.
    """
    from thinkjepa.pipeline.doctor import describe_finding, examine, is_healthy

    findings = []
    for finding in examine(cache_dir, device=device):
        findings.append(finding)
        if not json:
            print_text(describe_finding(finding))
    healthy = is_healthy(findings)
    if json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    return EXIT_DONE if healthy else EXIT_FAILURES


@app.command(
    "estimate",
    epilog=examples(
        "thinkjepa-cache estimate --videos videos --dense-fps 10",
        "thinkjepa-cache estimate --params params.yaml --tflops 300",
    ),
)
@with_settings(memory=cache_memory, clips=ClipSettings, models=ModelSettings, execution=ExecutionSettings)
def estimate_command(
    *,
    videos: VideosOption,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", help="A cache whose settings to take, as extract does.")
    ] = None,
    json: JsonOption = False,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="Peak of the machine that will extract, TFLOP/s in the dtype; default: measured here."
        ),
    ] = None,
    clips: ClipSettings,
    models: ModelSettings,
    execution: ExecutionSettings,
) -> None:
    """Clips, gigabytes and hours of an extraction, before anything is run."""
    from thinkjepa.pipeline.estimate_report import describe_estimate
    from thinkjepa.stages.extract.estimate import estimate

    with TerminalProgress(errors) as progress:
        figures = estimate(
            videos, clips=clips, models=models, execution=execution, tflops=tflops, progress=progress
        )
    print_result(json, figures.to_json(), lambda: describe_estimate(figures))


@app.command(
    "ls",
    epilog=examples(
        "thinkjepa-cache ls features",
        "thinkjepa-cache ls features --video 'pour/*' --sort tokens",
    ),
)
def ls_command(
    *,
    cache: CacheArgument,
    video: Annotated[str, typer.Option(help="Only clips of this video: a path, its end, or 'pour/*'.")] = "",
    sort: Annotated[Literal["video", "clip_id", "tokens"], typer.Option(help="Order of the list.")] = "video",
    limit: Annotated[
        int | None,
        typer.Option(
            min=0, help=f"Clips to list, 0 for all; default: {TERMINAL_CLIPS} at a terminal, else all."
        ),
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="Clips to leave out before the first.")] = 0,
    json: JsonOption = False,
) -> None:
    """Every clip: its video, its split, and in which sets it has features."""
    from thinkjepa.pipeline.cache_list import describe_clips, list_clips, page_of

    clips = list_clips(cache, video=video, sort=sort)
    if limit is None and not json and sys.stdout.isatty():
        limit = TERMINAL_CLIPS
    page = page_of(clips, limit=limit, offset=offset)
    print_result(
        json,
        {"clips": page, "total": len(clips)},
        lambda: describe_clips(page, total=len(clips), offset=offset),
    )


@app.command(
    "show",
    epilog=examples(
        "thinkjepa-cache show features 0123456789abcdef@60 --out clip.png --videos videos",
    ),
)
def show_command(
    *,
    cache: CacheArgument,
    clip: Annotated[
        str,
        typer.Argument(metavar="CLIP", help="Clip id, video, or video@frame: 'cup.mp4', 'pour/cup.mp4@69'."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="The picture to write.")],
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Folder of the videos, to show the clip's frames.")
    ] = None,
    feature_set: Annotated[
        list[str] | None, typer.Option("--set", help="Feature set, where the cache holds several.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw one clip: its frames, its latents over them, the thinker's states by layer, and what it said."""
    from thinkjepa.cache.disk import replace_file
    from thinkjepa.pipeline.clip_picture import draw
    from thinkjepa.pipeline.clip_view import clip_view, find_clip

    opened = FeatureCache.open(cache)
    row, thinker, encoder = find_clip(opened, clip, feature_set or [])
    view = clip_view(opened, row, thinker_set=thinker, encoder_set=encoder, videos=videos)
    replace_file(out, draw(view))
    print_result(
        json, {**view.to_json(), "picture": str(out)}, lambda: f"{out}: clip {row.clip_id} of {row.video!r}"
    )


@app.command(
    "du",
    epilog=examples(
        "thinkjepa-cache du features",
    ),
)
def du_command(*, cache: CacheArgument, json: JsonOption = False) -> None:
    """Bytes on disk: of every array, of the indexes, and of what an interrupted run left."""
    from thinkjepa.pipeline.cache_list import describe_usage, disk_usage

    usage = disk_usage(cache)
    print_result(json, usage, lambda: describe_usage(usage))


@app.command(
    "rm",
    epilog=examples(
        "thinkjepa-cache rm features --set thinker-0123456789ab --dry-run",
        "thinkjepa-cache rm features --video 'pour/*' --labels --yes",
    ),
)
def rm_command(
    *,
    cache: CacheArgument,
    feature_set: Annotated[str, typer.Option("--set", help="Remove this feature set.")] = "",
    clip: Annotated[
        list[str] | None, typer.Option(help="Remove this clip, named as for show; may be repeated.")
    ] = None,
    video: Annotated[
        str, typer.Option(help="Remove clips of this video: a path, its end, or 'pour/*'.")
    ] = "",
    labels: Annotated[bool, typer.Option("--labels", help="Also the labels of videos left bare.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove a feature set, or clips from every set.

    Space returns with whole shards: a shard's files go when the last of its clips is removed. The next
    extraction over a folder that still holds the videos makes the features anew.
    """
    from thinkjepa.pipeline.cache_removal import describe_removal, plan, run_removal

    removal = plan(cache, feature_set=feature_set, clip_ids=clip or [], video=video)
    if not dry_run:
        if not yes and not confirmed(f"{describe_removal(removal)}: remove for good?"):
            raise CacheError("nothing was removed; --yes removes without asking")
        run_removal(cache, removal, labels=labels)
    print_result(
        json,
        {**asdict(removal), "removed": not dry_run},
        lambda: f"{'would remove' if dry_run else 'removed'} {describe_removal(removal)}",
    )


@app.command(
    "merge",
    epilog=examples(
        "thinkjepa-cache merge features-a features-b --out features",
    ),
)
def merge_command(
    *,
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="Caches to unite; only read.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new cache, or that of an interrupted merge.")],
    json: JsonOption = False,
) -> None:
    """Write the union of caches to a new one: sets, clips, features, labels, failures.

    A clip that several hold is kept once where its features are the same, else nothing is merged. Splits
    and selections stay behind. Run it again after an interruption.
    """
    with TerminalProgress(errors) as progress:
        progress.begin("merging", total=count_features(caches), unit="features")
        report = merge(caches, out, advance=progress.advance)
    if json:
        print_json({"cache": str(out), **asdict(report)})
    else:
        print_text(
            f"{out}: {report.feature_sets} sets, {report.clips} clips; "
            f"{report.copied} features copied, {report.shared} in several caches"
        )


@app.command(
    "verify",
    epilog=examples(
        "thinkjepa-cache verify features",
        "thinkjepa-cache verify features --quick --repair",
    ),
)
def verify_command(
    *,
    cache: CacheArgument,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Read every stored byte, or only indexes and file sizes.")
    ] = True,
    repair: Annotated[
        bool, typer.Option(help="Drop the clips that are damaged: the next extraction makes them anew.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Check a cache against itself and name what is damaged. Exit status 3 where something is."""
    with TerminalProgress(errors) as progress:
        progress.begin("verifying", total=count_clips(FeatureCache.open(cache)), unit="clips")
        problems = find_problems(cache, full=full, advance=progress.advance)
    dropped = 0
    if repair and problems:
        with WriteSession(cache):
            dropped = drop_clips(cache, problems)
    if json:
        print_json({"problems": [asdict(problem) for problem in problems], "dropped": dropped})
    else:
        lines = [f"{problem.feature_set} {problem.clip_id}: {problem.reason}".strip() for problem in problems]
        lines.append(f"{len(problems)} problems, {dropped} clips dropped" if problems else "no problems")
        print_text("\n".join(lines))
    return EXIT_FAILURES if len(problems) > dropped else EXIT_DONE


@app.command(
    "compare",
    epilog=examples(
        "thinkjepa-cache compare features thinker-0123 thinker-4567",
    ),
)
def compare_command(
    *,
    cache: CacheArgument,
    set_a: Annotated[str, typer.Argument(metavar="SET_A", help="Feature set, or the beginning of its name.")],
    set_b: Annotated[str, typer.Argument(metavar="SET_B", help="The set to compare it with.")],
    json: JsonOption = False,
) -> None:
    """How far two sets of the same clips differ: another backend, precision or quantisation.

    By layer the largest difference and the cosine, over the tokens that both have in common, and how many
    tokens are equal.
    """
    from thinkjepa.pipeline.cache_compare import compare_sets, describe_comparison

    with TerminalProgress(errors) as progress:
        report = compare_sets(cache, set_a, set_b, progress=progress)
    print_result(json, report, lambda: describe_comparison(report))


def main() -> None:
    run_app(app)
