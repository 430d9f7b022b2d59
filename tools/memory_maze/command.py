"""`tools/render_maze`: draw episodes of the memory maze into a folder for each condition."""

import os
from time import monotonic
from typing import Annotated

import typer

from memory_maze.generate import FPS, SIZE_PX, check_drawable, write_parts
from memory_maze.walk import CONDITIONS
from thinkjepa.cache import ThinkJepaError
from thinkjepa.pipeline.cli.console import JsonOption, errors, new_single_app, print_result, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.progress import TerminalProgress
from thinkjepa.pipeline.cli.sample import Force, Out, Seed
from thinkjepa.pipeline.sample.folder import claim_folder, write_manifest
from thinkjepa.stages.data.partition import SPLIT_NAMES

app = new_single_app()


@app.command(epilog=examples("tools/render_maze maze --train 96 --validation 24 --test 48"))
def render(
    out: Out,
    train: Annotated[int, typer.Option(min=1, help="Episodes to train on.")] = 480,
    validation: Annotated[int, typer.Option(min=1, help="Episodes to select on.")] = 96,
    test: Annotated[int, typer.Option(min=1, help="Episodes to report on.")] = 192,
    conditions: Annotated[
        str,
        typer.Option(
            help="By commas: cue, the object in the start room tells the side; no-cue, a box is in its place."
        ),
    ] = ",".join(CONDITIONS),
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. [default: one per core]")] = None,
    seed: Seed = 0,
    force: Force = False,
    json: JsonOption = False,
) -> None:
    """Draw episodes of MiniGrid's MemoryEnv: OUT/<condition>, each with videos, positions and clips.csv.

    Needs pip install 'thinkjepa[sample]', and no display. Each folder is a --videos of extract, with its
    clips.csv as --clips.
    """
    names = [name.strip() for name in conditions.split(",")]
    if unknown := [name for name in names if name not in CONDITIONS]:
        raise ThinkJepaError(f"--conditions {unknown[0]!r}: there are {', '.join(CONDITIONS)}")
    chosen = [condition for condition in CONDITIONS if condition in names]
    check_drawable()
    claim_folder(out, kind="maze", force=force)
    sizes = dict(zip(SPLIT_NAMES, (train, validation, test), strict=True))
    parts = {name: (size, len(sizes) * seed + place) for place, (name, size) in enumerate(sizes.items())}
    started_s = monotonic()
    with TerminalProgress(errors) as progress:
        progress.begin("render", total=sum(sizes.values()), unit="episodes")
        written = write_parts(
            out, parts, conditions=chosen, workers=workers or os.cpu_count() or 1, advance=progress.advance
        )
    write_manifest(out, kind="maze", files=written)
    record = {
        "folder": str(out),
        "episodes": sizes,
        "conditions": chosen,
        "seed": seed,
        "size_px": SIZE_PX,
        "fps": FPS,
        "bytes": sum(path.stat().st_size for path in written),
        "seconds": round(monotonic() - started_s, 1),
    }
    print_result(
        json,
        record,
        f"{sum(sizes.values())} episodes under {', '.join(chosen)}, {record['bytes'] / 1e6:.1f} MB: {out}",
    )


if __name__ == "__main__":
    run_app(app)
