"""`thinkjepa-sample`: small models, videos and episodes of a hand to try the pipeline out with."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from thinkjepa.pipeline.cli.console import JsonOption, errors, new_app, print_result, print_text, run_app
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.sample.folder import claim_folder, write_manifest

app = new_app("Make small models and videos to try the pipeline out with. No download, no GPU.")

WHAT_THE_DEMO_SHOWS = """
The thinker and the encoder are UNTRAINED, their weights random: their features tell where in the picture
something changes, and not what it means. So this shows that every step runs, what each writes and how
variants and baselines are compared. Which variant is better here says nothing about the method; that such
features predict a hand worse than "it stays where it is" is no surprise. See README, "Real models".

  {out}/results/report      index.html, one page of it all, with clips; comparison.md, the table above;
                            horizon.png, distances.png, differences.png
  {out}/results/pictures    hands.png: labels over the frames; features.png: a clip as both models saw it;
                            future.mp4: the hand predicted over a test clip's future, next to the true one
  {out}/results/runs        a folder a run: curve.png, metrics.json, eval-test.md
  {out}/params.yaml         every setting: change one, run `dvc repro` in {out}, see what runs again"""

WRITTEN_MODELS = """\
UNTRAINED models with random weights, for trying the pipeline out only:
{listed}
next: thinkjepa-cache extract --videos DIR --cache-dir features --thinker {thinker} --encoder {encoder}
      thinkjepa-train --cache-dir features --out runs/first --depth 4 --width 96 --heads 3 --epochs 30
The predictor's default size and epochs are those of real models: they work, too, and take hours on a CPU."""

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to; made where missing.")]

Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="The same seed gives the same files.")]

Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Write into a folder that holds other files: same names are replaced, the rest stays."
    ),
]


@app.command(epilog=examples("thinkjepa-sample models models"))
def models(out: Out, seed: Seed = 0, force: Force = False, json: JsonOption = False) -> None:
    """Write tiny UNTRAINED models of the real classes: OUT/thinker (Qwen3-VL) and OUT/encoder (V-JEPA 2).

    Their weights are random: they show that everything runs, and nothing about the method.
    """
    from thinkjepa.pipeline.sample.models import write_tiny_models

    claim_folder(out, kind="models", force=force)
    others = set(out.rglob("*"))
    write_tiny_models(out, seed=seed)
    folders = {"thinker": out / "thinker", "encoder": out / "encoder"}
    written = [path for folder in folders.values() for path in folder.iterdir() if path not in others]
    write_manifest(out, kind="models", files=written)
    paths = {name: str(folder) for name, folder in folders.items()}
    listed = "\n".join(f"  {name:8} {path}" for name, path in paths.items())
    print_result(
        json,
        {**paths, "seed": seed, "trained": False},
        WRITTEN_MODELS.format(listed=listed, **{name: shlex.quote(path) for name, path in paths.items()}),
    )


@app.command(epilog=examples("thinkjepa-sample videos videos --num-videos 6 --fps 10"))
def videos(
    out: Out,
    num_videos: Annotated[int, typer.Option(min=1, help="Number of videos.")] = 12,
    seconds: Annotated[float, typer.Option(min=0, help="Length of each video in seconds.")] = 6.0,
    fps: Annotated[int, typer.Option(min=1, max=240, help="Frames per second.")] = 30,
    width: Annotated[int, typer.Option(help="Width in pixels: even, at least 32.")] = 160,
    height: Annotated[int, typer.Option(help="Height in pixels: even, at least 32.")] = 120,
    seed: Seed = 0,
    force: Force = False,
    json: JsonOption = False,
) -> None:
    """Write synthetic H.264 videos of moving shapes, OUT/<motion>/<i>.mp4."""
    from thinkjepa.pipeline.sample.videos import check_encodable, write_videos

    check_encodable(seconds=seconds, fps=fps, size=(width, height))
    claim_folder(out, kind="videos", force=force)
    paths = write_videos(
        out, num_videos=num_videos, seconds=seconds, fps=fps, size=(width, height), seed=seed
    )
    write_manifest(out, kind="videos", files=paths)
    names = [path.relative_to(out).as_posix() for path in paths]
    print_result(
        json,
        {"folder": str(out), "videos": names, "fps": fps, "seed": seed},
        f"{len(paths)} videos of {seconds:g} s at {fps} frames/s, {width}x{height} px: {out}",
    )


@app.command(epilog=examples("thinkjepa-sample expand hands"))
def expand(
    out: Out,
    episodes: Annotated[
        Path | None,
        typer.Option(
            help="Folder of videos and `poses.npz`. [default: the episodes that come with the package]"
        ),
    ] = None,
    force: Force = False,
    json: JsonOption = False,
) -> None:
    """Write episodes of a simulated hand as EgoDex does: OUT/<task>/<i>.mp4 and .hdf5, OUT/episodes.json."""
    from thinkjepa.pipeline.sample.expand import FACTS_FILE, expand, expand_shipped

    claim_folder(out, kind="hands", force=force)
    written = expand_shipped(out) if episodes is None else expand(episodes, out)
    write_manifest(out, kind="hands", files=written)
    videos = [path.relative_to(out).as_posix() for path in written if path.suffix == ".mp4"]
    print_result(
        json,
        {"folder": str(out), "videos": videos, "facts": str(out / FACTS_FILE)},
        f"{len(videos)} episodes with poses; what happens in each: {out / FACTS_FILE}",
    )


@app.command(epilog=examples("thinkjepa-sample demo demo"))
def demo(out: Out, seed: Seed = 0, force: Force = False) -> None:
    """Run the whole pipeline (dvc repro) on the hand sample with untrained models, in a folder OUT.

    Takes a few minutes on two cores. OUT is a project as `thinkjepa-init OUT --sample` makes it: run it again
    to see that nothing is done twice, also after editing OUT/params.yaml, which is kept.
    """
    from thinkjepa.pipeline.cli.init import describe_project
    from thinkjepa.pipeline.project.setup import run_dvc
    from thinkjepa.pipeline.report.evaluation import describe_runs
    from thinkjepa.pipeline.sample.demo import draw_pictures, set_up_sample_project

    errors.print(describe_project(set_up_sample_project(out, seed=seed, force=force)), markup=False)
    run_dvc(out, "repro")
    commands = draw_pictures(out)
    print_text(describe_runs(out / "results" / "runs", report=out / "results" / "report"))
    print_text(f"\nThe pictures were drawn, in {out}, by\n  " + "\n  ".join(commands))
    print_text(WHAT_THE_DEMO_SHOWS.format(out=out))


def main() -> None:
    run_app(app)
