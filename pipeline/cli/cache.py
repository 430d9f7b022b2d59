"""thinkjepa-cache: fill a feature cache and look at it.

The heavy imports (torch, transformers) happen inside the commands, so that --help answers at once.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from thinkjepa.pipeline.cli import contents as cache_contents
from thinkjepa.pipeline.cli.console import (
    EXIT_DONE,
    EXIT_FAILURES,
    JsonOption,
    errors,
    loading,
    new_app,
    print_result,
    print_text,
    run_app,
)
from thinkjepa.pipeline.cli.help import examples
from thinkjepa.pipeline.cli.options import with_settings
from thinkjepa.pipeline.cli.progress import TerminalProgress
from thinkjepa.pipeline.project.remembering import cache_memory
from thinkjepa.stages.data.plan import ClipSettings
from thinkjepa.stages.data.videos import find_videos
from thinkjepa.stages.device import DEVICES
from thinkjepa.stages.extract.settings import ExecutionSettings, ModelSettings, VllmSettings

app = new_app("Fill a feature cache with what two frozen models see in your videos, and look at it.")

VideosOption = Annotated[
    Path, typer.Option("--videos", help="Folder of mp4, mkv, webm, avi, mov videos, at any depth.")
]

CacheOption = Annotated[Path, typer.Option("--cache-dir", help="Folder of the cache; made if it is new.")]

ClipsOption = Annotated[
    Path | None,
    typer.Option(
        "--clips",
        metavar="FILE",
        help="Table of clips (csv, parquet) in place of the rule.",
    ),
]


@app.command(
    "extract",
    epilog=examples(
        "thinkjepa-cache extract --videos videos --cache-dir features --dense-fps 10",
        "thinkjepa-cache extract --videos more-videos --cache-dir features  # the cache knows its settings",
        "thinkjepa-cache extract --params params.yaml --max-failures 5%",
    ),
)
@with_settings(
    keys={"clips_file": "clips_file"},
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
    clips_file: ClipsOption = None,
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

    Exit status: 0 done; 2 wrong use; 3 more videos failed than --max-failures.
    """
    find_videos(videos)  # a wrong folder is refused before seconds of imports
    with loading():
        from thinkjepa.pipeline.report.extraction import describe_report
        from thinkjepa.stages.extract.run import extract

    with TerminalProgress(errors) as progress:
        report = extract(
            videos,
            cache_dir,
            clips=clips,
            models=models,
            execution=execution,
            progress=progress,
            vllm=vllm,
            clips_file=clips_file,
        )
    print_result(json, report.to_json(), describe_report(report))
    return EXIT_FAILURES if report.too_many_failures else EXIT_DONE


@app.command(
    "serve-thinker",
    epilog=examples(
        "thinkjepa-cache serve-thinker --states /shared/states --thinker Qwen/Qwen3-VL-8B-Thinking",
        "thinkjepa-cache serve-thinker --states /shared/states --params params.yaml --print",
    ),
)
@with_settings(keys={"device": "execution.device"}, models=ModelSettings, vllm=VllmSettings)
def serve_thinker_command(
    *,
    states: Annotated[
        Path,
        typer.Option("--states", help="Folder for states that this machine and the extraction both see."),
    ],
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen at.")] = 8000,
    device: Annotated[str, typer.Option("--device", help=f"Where the thinker runs: {DEVICES}.")] = "auto",
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
    from thinkjepa.stages.extract.thinker.vllm.serving import prepare_server, run_server

    command = prepare_server(
        models, vllm, device=device, states=states, host=host, port=port, batch_size=batch_size
    )
    if show:
        print_text(shlex.join(command))
    else:
        run_server(command)


@app.command(
    "doctor",
    epilog=examples(
        "thinkjepa-cache doctor",
        "thinkjepa-cache doctor --cache-dir /data/features --device cuda",
        "thinkjepa-cache doctor --rehash  # after weights were copied by a tool that keeps times",
    ),
)
def doctor_command(
    *,
    cache_dir: Annotated[Path, typer.Option("--cache-dir", help="Folder where the cache will be.")] = Path(),
    device: Annotated[str, typer.Option(help=f"Device that the models will run on: {DEVICES}.")] = "auto",
    rehash: Annotated[
        bool,
        typer.Option(
            "--rehash",
            help="Read the weights of all models that were used again, and compare their remembered digests.",
        ),
    ] = False,
    json: JsonOption = False,
) -> int:
    """Try everything that extraction needs: versions, decoder, devices, disk, a clip through tiny models.

    What is broken comes with what to do about it. Exit status 3 where something is.
    """
    from thinkjepa.pipeline.report.doctor import describe_finding, examine, is_healthy

    findings = []
    for finding in examine(cache_dir, device=device, rehash=rehash):
        findings.append(finding)
        if not json:
            print_text(describe_finding(finding))
    healthy = is_healthy(findings)
    if json:
        record = {"healthy": healthy, "findings": [asdict(finding) for finding in findings]}
        print_result(json, record, "")
    return EXIT_DONE if healthy else EXIT_FAILURES


@app.command(
    "estimate",
    epilog=examples(
        "thinkjepa-cache estimate --videos videos --dense-fps 10",
        "thinkjepa-cache estimate --params params.yaml --tflops 300",
    ),
)
@with_settings(
    keys={"clips_file": "clips_file"},
    memory=cache_memory,
    clips=ClipSettings,
    models=ModelSettings,
    execution=ExecutionSettings,
)
def estimate_command(
    *,
    videos: VideosOption,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", help="A cache whose settings to take, as extract does.")
    ] = None,
    clips_file: ClipsOption = None,
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
    find_videos(videos)
    with loading():
        from thinkjepa.pipeline.report.extraction import describe_estimate
        from thinkjepa.stages.extract.estimate import estimate

    with TerminalProgress(errors) as progress:
        figures = estimate(
            videos,
            clips=clips,
            models=models,
            execution=execution,
            tflops=tflops,
            progress=progress,
            clips_file=clips_file,
        )
    print_result(json, figures.to_json(), describe_estimate(figures))


app.add_typer(cache_contents.app)


def main() -> None:
    run_app(app)
