"""The vLLM engine in a process of its own, run by the Python that has vLLM, which need not have thinkjepa.

So this file stands alone and imports nothing of the project. It reads and writes one JSON object per message
on a socket. Tensors travel in safetensors files of a staging folder. Nothing is pickled.

    python worker.py FD             FD: the socket
    <- {"protocol": 2, "staging": DIR, "engine": {...}, "max_new_tokens": N, "stop_ids": [...]}
    -> {"ready": {"vllm": "0.32.0", "torch": "2.13.0", "device": "cpu"}}
    <- {"prompts": [TEXT, ...], "frames": FILE, "videos": [metadata or null, ...], "processor": {...}}
                                    FILE holds "0", "1", ...: frames (frame, height, width, 3) uint8,
                                    a video where it has metadata, else images
    -> {"states": [FILE, ...], "prompt_tokens": [N, ...], "generated": [[id, ...], ...]}
A response may be {"error": TEXT} instead. When the other side is gone, the staging folder is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

PROTOCOL = 2

WRITE_TIMEOUT_S = 300.0
"""Until the states of a finished generation are on disk."""

POLL_S = 0.005

PARENT_POLL_S = 1.0


def main() -> None:
    """Serve until the other side closes the socket."""
    pipe = Connection(int(sys.argv[1]))
    staging: Path | None = None
    try:
        start = receive(pipe)
        if start["protocol"] != PROTOCOL:
            send(pipe, {"error": f"protocol {start['protocol']}, this worker speaks {PROTOCOL}"})
            return
        staging = Path(start["staging"])
        Thread(target=end_with_parent, args=(os.getppid(), staging), daemon=True).start()
        try:
            engine = Engine(start, staging)
        except Exception as error:  # whatever it is, the other side has to learn the reason
            send(pipe, {"error": f"{type(error).__name__}: {error}"})
            raise
        send(pipe, {"ready": engine.versions()})
        while True:
            request = receive(pipe)
            try:
                send(pipe, engine.generate(request))
            except (RuntimeError, ValueError, OSError, TypeError, KeyError) as error:
                send(pipe, {"error": f"{type(error).__name__}: {error}"})
    except (EOFError, BrokenPipeError, ConnectionResetError):
        if staging:
            shutil.rmtree(staging, ignore_errors=True)


def end_with_parent(parent: int, staging: Path) -> None:
    """End this process and all it started once the parent is gone: the engine may be busy for minutes."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    shutil.rmtree(staging, ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)  # the parent gave us a session of our own


class Engine:
    """A vLLM engine with its built-in extraction of hidden states."""

    def __init__(self, start: dict[str, Any], staging: Path) -> None:
        from vllm import LLM, SamplingParams

        settings = start["engine"]
        layers = settings.pop("layers")
        states = staging / "states"
        states.mkdir()
        self._llm = LLM(
            **settings,
            trust_remote_code=False,
            generation_config="vllm",  # greedy: the model's own file may ask for sampling
            disable_log_stats=True,
            **extraction_options(layers, states),
        )
        self._sampling = SamplingParams(
            temperature=0.0,
            max_tokens=start["max_new_tokens"],
            stop_token_ids=start["stop_ids"],
            detokenize=False,
            extra_args={"kv_transfer_params": {"include_output_tokens": True}},
        )

    def versions(self) -> dict[str, str]:
        import torch
        import vllm

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return {"vllm": vllm.__version__, "torch": str(torch.__version__), "device": device}

    def generate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Generate for every row of the request. States are in files when this returns."""
        from safetensors.numpy import load_file

        frames = load_file(request["frames"])
        rows = zip(request["prompts"], request["videos"], strict=True)
        prompts = [
            {
                "prompt": prompt,
                "multi_modal_data": visual_data(frames[str(row)], metadata),
                "mm_processor_kwargs": request["processor"],
            }
            for row, (prompt, metadata) in enumerate(rows)
        ]
        outputs = self._llm.generate(prompts, self._sampling, use_tqdm=False)
        paths = [output.kv_transfer_params["hidden_states_path"] for output in outputs]
        self._wait_for(paths)
        return {
            "states": paths,
            "prompt_tokens": [len(output.prompt_token_ids) for output in outputs],
            "generated": [list(output.outputs[0].token_ids) for output in outputs],
        }

    def _wait_for(self, paths: list[str]) -> None:
        """Wait until every file is written: the engine hands states over in the step after the last token."""
        deadline = time.monotonic() + WRITE_TIMEOUT_S
        waiting = list(paths)
        while waiting:
            self._llm.llm_engine.step()
            waiting = [path for path in waiting if not is_written(path)]
            if waiting and time.monotonic() > deadline:
                raise RuntimeError(f"no states after {WRITE_TIMEOUT_S:g} s in {waiting[0]}")
            time.sleep(POLL_S)
        for path in paths:
            Path(path + ".lock").unlink()
            if not Path(path).exists():
                raise OSError("the engine could not write states into the staging folder")


def extraction_options(layers: Sequence[int], states: Path) -> dict[str, Any]:
    """Options that make vLLM write the inputs of these layers into a folder, one file per request."""
    return {
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(layers)}},
        },
        "kv_transfer_config": {
            "kv_connector": "ExampleHiddenStatesConnector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"shared_storage_path": str(states)},
        },
    }


def visual_data(frames: Any, metadata: dict[str, Any] | None) -> dict[str, Any]:
    """Frames in the form that vLLM takes."""
    if metadata is not None:
        return {"video": [(frames, metadata)]}
    from PIL import Image

    return {"image": [Image.fromarray(frame) for frame in frames]}


def is_written(path: str) -> bool:
    """True if the connector has released its lock next to the states: it has written them, or failed to."""
    try:
        lock = os.open(path + ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


def receive(pipe: Connection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(pipe.recv_bytes())
    return message


if __name__ == "__main__":
    main()
