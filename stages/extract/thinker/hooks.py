"""The thinker through transformers: hooks on the decoder layers during greedy generation.

Hooks, not `output_hidden_states`: Qwen3-VL adds DeepStack features between its first layers, so a layer's
output differs from the next layer's input. The last entry of `output_hidden_states` is after the norm. Hooks
also hold only the chosen layers.

Shape letters: B prompts, L layers, S tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoModelForImageTextToText, GenerationConfig

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.weights import ModelFolder, explained_load_errors
from thinkjepa.stages.extract.thinker.base import Thinker, as_stop_ids
from thinkjepa.stages.extract.thinker.contract import HiddenStates, Prompt

ATTENTION = "sdpa"


class CapturedStates:
    """A buffer of hidden states that grows with every forward: the whole prompt, then a token at a time."""

    def __init__(self, layers: Sequence[int], *, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._lengths = dict.fromkeys(layers, 0)
        self._rows = {layer: row for row, layer in enumerate(layers)}
        self._buffer_BLSD = torch.empty(0)

    @property
    def states(self) -> Tensor:
        """`(B, L, S, D)` of the tokens that have gone through every layer."""
        return self._buffer_BLSD[:, :, : min(self._lengths.values())]

    def add(self, layer: int, states_BSD: Tensor) -> None:
        """Append a layer's states of the next tokens. Raises ValueError beyond `most_tokens`."""
        batch, count, width = states_BSD.shape
        if not self._buffer_BLSD.numel():
            shape = (batch, len(self._rows), self._most_tokens, width)
            self._buffer_BLSD = torch.empty(shape, dtype=states_BSD.dtype)
        begin = self._lengths[layer]
        if begin + count > self._most_tokens:
            raise ValueError(
                f"layer {layer} was given {begin + count} tokens, expected {self._most_tokens} at most"
            )
        self._buffer_BLSD[:, self._rows[layer], begin : begin + count].copy_(states_BSD)
        self._lengths[layer] = begin + count


@contextmanager
def captured_states(
    decoder_layers: nn.ModuleList, layers: Sequence[int], *, most_tokens: int
) -> Iterator[CapturedStates]:
    """Record the inputs of the chosen layers. Layer N of N layers is the output of the last one."""
    captured = CapturedStates(layers, most_tokens=most_tokens)
    handles: list[RemovableHandle] = []

    def keep_input(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured.add(layer, args[0] if args else kwargs["hidden_states"])

    def keep_output(layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        captured.add(layer, output[0] if isinstance(output, tuple) else output)

    try:
        for layer in layers:
            if layer < len(decoder_layers):
                hook = partial(keep_input, layer)
                handles.append(decoder_layers[layer].register_forward_pre_hook(hook, with_kwargs=True))
            else:
                handles.append(decoder_layers[-1].register_forward_hook(partial(keep_output, layer)))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


class HookedThinker(Thinker):
    """A vision-language model of transformers in this process."""

    backend = "transformers"
    _model: Any = None

    @property
    def origin(self) -> dict[str, Any]:
        """As promised, with the attention kernel that is asked for."""
        return {**super().origin, "attention": ATTENTION}

    def load(self) -> None:
        """Load processor and weights. Raises StageError for what transformers cannot load."""
        self.load_processor()
        with explained_load_errors(self.folder, "thinker"):
            self._model = AutoModelForImageTextToText.from_pretrained(
                self.folder.path,
                dtype=getattr(torch, self.dtype),
                attn_implementation=ATTENTION,
                use_safetensors=True,
                trust_remote_code=False,
            ).eval()
        self._model.to(self.device)
        self._decoder_layers = find_decoder_layers(self._model, self.num_layers, self.folder)
        self._stop_ids = as_stop_ids(self._model.generation_config.eos_token_id)
        self._generation = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=sorted(self._stop_ids) or None,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )

    def close(self) -> None:
        """Do nothing: the model ends with this process."""

    def generate(self, prompts: Sequence[Prompt], *, batch_size: int = 1) -> list[HiddenStates]:
        """Hidden states for every prompt, on the CPU.

        Only prompts of one shape share a forward. It always has `batch_size` rows, the last one repeated
        where prompts are fewer. So a prompt's states depend on it alone: padding and the number of neighbors
        would change their last digits. In a mixture of experts the neighbors' contents would, too, so each
        prompt has a forward of its own there.
        """
        if is_mixture_of_experts(self.config.get_text_config()):
            batch_size = 1
        shapes = [_shape(prompt.inputs) for prompt in prompts]
        states: dict[int, HiddenStates] = {}
        for shape in dict.fromkeys(shapes):
            indices = [index for index, other in enumerate(shapes) if other == shape]
            for start in range(0, len(indices), batch_size):
                group = indices[start : start + batch_size]
                rows = [prompts[index] for index in group]
                full = rows + rows[-1:] * (batch_size - len(rows))
                states |= dict(zip(group, self._forward(full), strict=False))
        return [states[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Prompt]) -> list[HiddenStates]:
        """One generation over inputs of one shape."""
        inputs = {
            name: _joined([row.inputs[name] for row in rows]).to(self.device) for name in rows[0].inputs
        }
        prompt_length = inputs["input_ids"].shape[1]
        most_tokens = prompt_length + self.settings.max_new_tokens - 1
        with captured_states(self._decoder_layers, self.layers, most_tokens=most_tokens) as captured:
            sequences = self._model.generate(**inputs, generation_config=self._generation)
        states_BLSD = captured.states
        _check_prompt(sequences, inputs["input_ids"], num_states=states_BLSD.shape[2])
        return [
            self._as_hidden_states(states_LSD, ids.tolist(), prompt_length, row.layout)
            for row, states_LSD, ids in zip(rows, states_BLSD, sequences, strict=True)
        ]


def _joined(values: Sequence[Tensor]) -> Tensor:
    """Rows as one batch. A single one is not copied: pixels are tens of megabytes."""
    return values[0] if len(values) == 1 else torch.cat(list(values))


def _shape(inputs: Mapping[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    """The shapes of all inputs and the visual grid, equal for rows that may share a forward."""
    grids = [value.flatten().tolist() for name, value in inputs.items() if name.endswith("_grid_thw")]
    return (*map(tuple, grids), *(tuple(value.shape) for value in inputs.values()))


def _check_prompt(sequences: Tensor, prompt_ids: Tensor, *, num_states: int) -> None:
    """Raise ValueError where the model did not continue the processor's own prompt."""
    length = prompt_ids.shape[1]
    if not torch.equal(sequences[:, :length], prompt_ids):
        raise ValueError("the model generated from another prompt than its processor made")
    if num_states != sequences.shape[1] - 1:
        raise ValueError(f"{sequences.shape[1]} tokens gave {num_states} states, expected one less")


def is_mixture_of_experts(text_config: Any) -> bool:
    """True if a decoder routes tokens to experts, by the names that configurations give their number."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return any((getattr(text_config, name, None) or 0) > 1 for name in names)


def find_decoder_layers(model: Any, num_layers: int, folder: ModelFolder) -> nn.ModuleList:
    """The text decoder's layers, as many as its config says. Raises StageError where they are not clear.

    Where the model does not name its decoder, they are the only list of that length outside the vision part.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    layers = getattr(decoder, "layers", None)
    if isinstance(layers, nn.ModuleList) and len(layers) == num_layers:
        return layers
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    fitting = [name for name, part in lists.items() if len(part) == num_layers and "vis" not in name.lower()]
    if len(fitting) == 1:
        return lists[fitting[0]]
    found = ", ".join(f"{name} ({len(part)})" for name, part in lists.items()) or "none"
    raise StageError(
        f"--thinker {folder.name!r}: its config has {num_layers} decoder layers, and {type(model).__name__} "
        f"has {len(fitting)} lists of that many outside its vision part; it has {found}: choose another model"
    )
