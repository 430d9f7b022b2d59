"""Commands of thinkjepa-cache that look at a cache, check it, and remove from it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from thinkjepa.cache.records import CacheError
from thinkjepa.pipeline.cli.console import (
    EXIT_DONE,
    EXIT_FAILURES,
    App,
    JsonOption,
    confirmed,
    counted,
    errors,
    loading,
    print_result,
)
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.options import clip_names, set_names
from thinkjepa.pipeline.cli.progress import TerminalProgress

app = App()

TERMINAL_CLIPS = 50
"""Clips that `ls` lists at a terminal: more than that is read with a filter or page by page."""

CacheArgument = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of the cache.")]


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
    from thinkjepa.pipeline.report.cache import cache_info, describe_info

    info = cache_info(cache)
    print_result(json, info, describe_info(info))


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
    from thinkjepa.pipeline.report.cache import HEADER, describe_clips, list_clips, page_of

    clips = list_clips(cache, video=video, sort=sort)
    at_terminal = not json and sys.stdout.isatty()
    if limit is None and at_terminal:
        limit = TERMINAL_CLIPS
    page = page_of(clips, limit=limit, offset=offset)
    print_result(
        json,
        {"clips": page, "total": len(clips)},
        (f"{HEADER}\n" if at_terminal and page else "")
        + describe_clips(page, total=len(clips), offset=offset),
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
        typer.Argument(
            metavar="CLIP",
            autocompletion=clip_names,
            help="Clip id, video or its id, or video@frame: 'cup.mp4', 'pour/cup.mp4@69'.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PNG", help="The picture to write.")],
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Folder of the videos, to show the clip's frames.")
    ] = None,
    feature_set: Annotated[
        list[str] | None,
        typer.Option("--set", autocompletion=set_names, help="Feature set, where the cache holds several."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw one clip: its frames, its latents over them, the thinker's states by layer, and what it said."""
    if out.suffix.lower() != ".png":
        raise CacheError(f"--out {str(out)!r}: give a name that ends in .png")
    from thinkjepa.cache import FeatureCache
    from thinkjepa.cache.disk.files import replace_file
    from thinkjepa.pipeline.picture.clip import draw
    from thinkjepa.pipeline.picture.clip_content import clip_content, find_clip

    opened = FeatureCache.open(cache)
    row, thinker, encoder = find_clip(opened, clip, feature_set or [])
    view = clip_content(opened, row, thinker_set=thinker, encoder_set=encoder, videos=videos)
    replace_file(out, draw(view))
    print_result(json, {**view.to_json(), "picture": str(out)}, f"{out}: clip {row.clip_id} of {row.video!r}")


@app.command(
    "du",
    epilog=examples(
        "thinkjepa-cache du features",
    ),
)
def du_command(*, cache: CacheArgument, json: JsonOption = False) -> None:
    """Bytes on disk: of every array, of the indexes, and of what an interrupted run left."""
    from thinkjepa.pipeline.report.cache import describe_usage, disk_usage

    usage = disk_usage(cache)
    print_result(json, usage, describe_usage(usage))


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
    feature_set: Annotated[
        str, typer.Option("--set", autocompletion=set_names, help="Remove this feature set.")
    ] = "",
    clip: Annotated[
        list[str] | None,
        typer.Option(autocompletion=clip_names, help="Remove this clip, named as for show; may be repeated."),
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
    extraction over a folder that still holds the videos makes the features again.
    """
    from thinkjepa.pipeline.report.cache import describe_removal, plan, run_removal

    removal = plan(cache, feature_set=feature_set, clip_ids=clip or [], video=video)
    if not dry_run:
        if not yes and not confirmed(f"{describe_removal(removal)}: remove for good?"):
            raise CacheError("nothing was removed; --yes removes without asking")
        run_removal(cache, removal, labels=labels)
    print_result(
        json,
        {**asdict(removal), "removed": not dry_run},
        f"{'would remove' if dry_run else 'removed'} {describe_removal(removal)}",
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
    and selections are not merged. Run it again after an interruption.
    """
    from thinkjepa.cache import count_features, merge

    with TerminalProgress(errors) as progress:
        progress.begin("merging", total=count_features(caches), unit="features")
        report = merge(caches, out, advance=progress.advance)
    print_result(
        json,
        {"cache": str(out), **asdict(report)},
        f"{out}: {counted(report.feature_sets, 'set')}, {counted(report.clips, 'clip')}; "
        f"{counted(report.copied, 'feature')} copied, {report.shared} in several caches",
    )


@app.command(
    "upgrade",
    epilog=examples(
        "thinkjepa-cache upgrade features --videos videos",
        "thinkjepa-cache upgrade features --videos videos --set thinker-3f --keep pooled,slots",
    ),
)
def upgrade_command(
    *,
    cache: CacheArgument,
    videos: Annotated[Path, typer.Option(help="Folder of its videos, which are asked for their size.")],
    keep: Annotated[str, typer.Option(help="Arrays of the new set, as of extract.")] = "pooled,slots,text",
    slot_segments: Annotated[int, typer.Option(min=1, help="Segments of the history, as of extract.")] = 1,
    feature_set: Annotated[
        str, typer.Option("--set", metavar="NAME", help="The thinker's set, where there are several.")
    ] = "",
    thinker: Annotated[
        str, typer.Option(help="Where the thinker is now: its processor is used, its weights are not.")
    ] = "",
    json: JsonOption = False,
) -> int:
    """Make slots, text tokens and all streams of a thinker's set that has its tokens, without a model.

    They are written as a set next to it, the same to the last bit as an extraction would make it. What is no
    longer wanted is removed with rm --set. Run it again after an interruption. Exit status 3 where a clip's
    video is missing.
    """
    with loading():
        from thinkjepa.stages.extract.upgrade import upgrade

    with TerminalProgress(errors) as progress:
        report = upgrade(
            cache,
            videos,
            keep=keep,
            slot_segments=slot_segments,
            selector=feature_set,
            thinker=thinker,
            progress=progress,
        )
    lines = [
        f"{report.feature_set}: {counted(report.upgraded, 'clip')} made of the tokens of {report.source}, "
        f"{report.already_there} already there",
        *(f"  no video: {clip}" for clip in report.missing),
    ]
    print_result(json, {"cache": str(cache), **asdict(report)}, "\n".join(lines))
    return EXIT_FAILURES if report.missing else EXIT_DONE


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
        bool, typer.Option(help="Drop the clips that are damaged: the next extraction makes them again.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Check a cache against itself and name what is damaged. Exit status 3 where something is."""
    from thinkjepa.cache import FeatureCache, WriteSession, count_clips
    from thinkjepa.cache import repair as drop_damaged
    from thinkjepa.cache import verify as find_problems

    with TerminalProgress(errors) as progress:
        progress.begin("verifying", total=count_clips(FeatureCache.open(cache)), unit="features")
        problems = find_problems(cache, full=full, advance=progress.advance)
    dropped = 0
    if repair and problems:
        with WriteSession(cache):
            dropped = drop_damaged(cache, problems, full=full)
    lines = [f"{problem.feature_set} {problem.clip_id}: {problem.reason}".strip() for problem in problems]
    found = f"{counted(len(problems), 'problem')}, {counted(dropped, 'clip')} dropped"
    if len(problems) > dropped and not repair:
        found += "; --repair drops the damaged clips, and the next extraction makes them again"
    record = {"problems": [asdict(problem) for problem in problems], "dropped": dropped}
    print_result(json, record, "\n".join([*lines, found if problems else "no problems"]))
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
    set_a: Annotated[
        str,
        typer.Argument(
            metavar="SET_A", autocompletion=set_names, help="Feature set, or the beginning of its name."
        ),
    ],
    set_b: Annotated[
        str, typer.Argument(metavar="SET_B", autocompletion=set_names, help="The set to compare it with.")
    ],
    json: JsonOption = False,
) -> None:
    """Compare two sets of the same clips: another backend, precision or quantization.

    By layer the largest difference and the cosine, over the tokens that both have in common, and how many
    tokens are equal.
    """
    from thinkjepa.pipeline.report.compare import compare_sets, describe_comparison

    with TerminalProgress(errors) as progress:
        report = compare_sets(cache, set_a, set_b, progress=progress)
    print_result(json, report, describe_comparison(report))
