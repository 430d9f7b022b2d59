"""`tools/render_hands`: render episodes into a folder, which `thinkjepa-sample expand` reads."""

import os
from time import monotonic
from typing import Annotated

import typer

from hands.generate import check_renderable, render_episodes
from hands.plan import CONDITIONS, Condition, Pairs
from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.cli.console import JsonOption, errors, new_single_app, print_result, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.progress import TerminalProgress
from thinkjepa.pipeline.cli.sample import Force, Out, Seed
from thinkjepa.pipeline.sample.folder import claim_folder, write_manifest

app = new_single_app()


@app.command(epilog=examples("tools/render_hands episodes --episodes 24 --workers 2"))
def render(
    out: Out,
    episodes: Annotated[int, typer.Option(min=1, help="Number of episodes.")] = 96,
    conditions: Annotated[
        str,
        typer.Option(
            help="When a card tells object and place: cue, gone before the split; late-cue, there until the "
            "split; no-cue, a neutral card. Several, by commas: a folder of each, with equal poses."
        ),
    ] = "cue",
    pairs: Annotated[
        Pairs, typer.Option(help="Pairs of color and place: all, or only those that training may show.")
    ] = "all",
    size: Annotated[int, typer.Option(help="Side of the square picture in pixels: even, at least 64.")] = 96,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one per core]")] = None,
    seed: Seed = 0,
    force: Force = False,
    json: JsonOption = False,
) -> None:
    """Render episodes of a simulated hand: OUT/<task>/<i>.mp4 and OUT/poses.npz.

    Needs pip install 'thinkjepa[sample]', and a GL library. `thinkjepa-sample expand` reads the folder.
    """
    chosen = parse_conditions(conditions)
    check_renderable(size_px=size)
    claim_folder(out, kind="episodes", force=force)
    started_s = monotonic()
    with TerminalProgress(errors) as progress:
        progress.begin("render", total=episodes, unit="episodes")
        written = render_episodes(
            {condition: out / condition if len(chosen) > 1 else out for condition in chosen},
            numbers=range(episodes),
            seed=seed,
            pairs=pairs,
            size_px=size,
            workers=workers or os.cpu_count() or 1,
            advance=progress.advance,
        )
    write_manifest(out, kind="episodes", files=written)
    seconds, num_bytes = monotonic() - started_s, sum(path.stat().st_size for path in written)
    record = {
        "folder": str(out),
        "episodes": episodes,
        "seed": seed,
        "conditions": chosen,
        "pairs": pairs,
        "size_px": size,
        "bytes": num_bytes,
        "seconds": round(seconds, 1),
    }
    print_result(
        json,
        record,
        f"{episodes} episodes, {num_bytes / 1e6:.1f} MB, {seconds / episodes:.2f} s each: {out}; "
        f"with poses as EgoDex has them: thinkjepa-sample expand DIR --episodes {out}",
    )


def parse_conditions(text: str) -> tuple[Condition, ...]:
    """The conditions of a comma-separated list, each once. Raises ThinkJepaError for another word."""
    words = dict.fromkeys(word.strip() for word in text.split(","))
    if unknown := [word for word in words if word not in CONDITIONS]:
        raise ThinkJepaError(f"--conditions {unknown[0]!r}: there are {', '.join(CONDITIONS)}")
    return tuple(condition for condition in CONDITIONS if condition in words)


if __name__ == "__main__":
    run_app(app)
