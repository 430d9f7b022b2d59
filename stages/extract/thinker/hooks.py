"""What enters the chosen decoder layers while a model generates, copied to the CPU as it happens.

Shape letters: B prompts, L layers, S tokens, D width.

The thinker through transformers: hooks on the decoder layers during greedy generation.

Hooks, not `output_hidden_states`: Qwen3-VL adds DeepStack features between its first layers, so what a
layer returns is not what the next one reads, and the last entry of `output_hidden_states` is after the
norm. Hooks also hold only the chosen layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as image_ops
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from thinkjepa.stages.data.decoding.client import FrameStack
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.extract.models.runtime import library_versions, run_source
from thinkjepa.stages.extract.models.weights import (
    ModelFolder,
    explained_load_errors,
    preprocessing_digest,
    weights_digest,
)
from thinkjepa.stages.extract.settings import ModelSettings, parse_layers
from thinkjepa.stages.extract.thinker.contract import Prompt, Scene, Thought, token_kinds
from thinkjepa.stages.extract.thinker.prompting import CLOCK_FPS, Prompting, choose_prompting


class CapturedStates:
    """Grows with every forward pass: the whole prompt first, then a token at a time."""

    def __init__(self, layers: Sequence[int], *, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._lengths = dict.fromkeys(layers, 0)
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._room_BLSD = torch.empty(0)

    @property
    def states(self) -> Tensor:
        """`(B, L, S, D)` of the tokens that have gone through every layer."""
        return self._room_BLSD[:, :, : min(self._lengths.values())]

    def add(self, layer: int, states_BSD: Tensor) -> None:
        """A layer's states of the next tokens. Raises ValueError for more tokens than there can be."""
        rows, count, width = states_BSD.shape
        if not self._room_BLSD.numel():
            room = (rows, len(self._places), self._most_tokens, width)
            self._room_BLSD = torch.empty(room, dtype=states_BSD.dtype)
        begin = self._lengths[layer]
        if begin + count > self._most_tokens:
            raise ValueError(
                f"layer {layer} was given {begin + count} tokens, expected {self._most_tokens} at most"
            )
        self._room_BLSD[:, self._places[layer], begin : begin + count].copy_(states_BSD)
        self._lengths[layer] = begin + count


@contextmanager
def captured_states(
    decoder_layers: nn.ModuleList, layers: Sequence[int], *, most_tokens: int
) -> Iterator[CapturedStates]:
    """Record what enters the chosen layers; N layers have an N-th entry, what leaves the last."""
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


ATTENTION = "sdpa"


class HookedThinker:
    """A vision-language model of transformers, which can be described before `load` brings its weights."""

    def __init__(
        self, folder: ModelFolder, settings: ModelSettings, *, dtype: str, device: torch.device
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.dtype = dtype
        self.device = device
        with explained_load_errors(folder, "thinker"):
            self.config = config = AutoConfig.from_pretrained(folder.path)
            text = config.get_text_config()
            self.num_layers, self.width = int(text.num_hidden_layers), int(text.hidden_size)
            self.mixture_of_experts = is_mixture_of_experts(text)
            self.patch_px = int(getattr(getattr(config, "vision_config", None), "patch_size", 1))
            self.visual_ids = frozenset(
                token
                for name in ("image_token_id", "video_token_id")
                if isinstance(token := getattr(config, name, None), int)
            )
        self.layers = parse_layers(settings.layers, num_layers=self.num_layers)
        self._model: Any = None
        self._processor: Any = None
        self.prompting: Prompting

    @property
    def origin(self) -> Mapping[str, Any]:
        return {
            "backend": "transformers",
            "weights": weights_digest(self.folder),
            "layers": list(self.layers),
            "prompt": self.settings.prompt,
            "max_new_tokens": self.settings.max_new_tokens,
            "dtype": self.dtype,
            "preprocessing": {
                "files": preprocessing_digest(self.folder),
                "short_side_px": self.settings.thinker_size,
                "cap_pixels_per_frame": True,
                "clock_fps": CLOCK_FPS,
                **({"frames_as": "images"} if self.settings.frames_as == "images" else {}),
            },
            "attention": ATTENTION,
            "versions": library_versions(),
        }

    @property
    def source(self) -> Mapping[str, Any]:
        return run_source(self.folder, self.device)

    def load_processor(self) -> None:
        """Bring what `prepare` needs into memory. Raises StageError for what transformers cannot load."""
        with explained_load_errors(self.folder, "thinker"):
            self._processor = AutoProcessor.from_pretrained(self.folder.path)
            require_chat_template(self._processor, self.folder)
            self.prompting = choose_prompting(
                self._processor,
                self.settings.prompt,
                model=self.folder.name,
                frames_as=self.settings.frames_as,
            )
        self._think_tags = [_token_id(self._processor.tokenizer, tag) for tag in ("<think>", "</think>")]

    def load(self) -> None:
        """Bring processor and weights into memory. Raises StageError for what transformers cannot load."""
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
        ends = self._model.generation_config.eos_token_id
        self._stop_ids = frozenset([ends] if isinstance(ends, int) else ends or [])
        self._generation = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=sorted(self._stop_ids) or None,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )

    def close(self) -> None:
        """Nothing is held that would outlive this process."""

    def preprocess(self, frames: FrameStack) -> Tensor:
        """Frames `(frame, 3, height, width)` uint8 of a size that the thinker shall see."""
        return shrink(frames, short_side_px=self.settings.thinker_size)

    def prepare(self, scene: Scene) -> Prompt:
        """The model's inputs for a scene; frames are passed as chosen, never sampled again."""
        return Prompt(self.prompting.inputs(scene))

    def think(self, scenes: Sequence[Scene], *, batch_size: int = 1) -> list[Thought]:
        """Prepare scenes and answer them."""
        return self.answer([self.prepare(scene) for scene in scenes], batch_size=batch_size)

    def answer(self, prompts: Sequence[Prompt], *, batch_size: int = 1) -> list[Thought]:
        """One thought per prompt, on the CPU.

        Only prompts of one shape share a forward, always of `batch_size` rows, the last one repeated where
        they are fewer. So a prompt's states depend on it alone: padding and the number of neighbours, which
        follow from whatever else is extracted, would change their last digits. In a mixture of experts the
        neighbours' contents do so, too: there a prompt has a forward of its own.
        """
        batch_size = 1 if self.mixture_of_experts else batch_size
        shapes = [_shape(prompt.inputs) for prompt in prompts]
        thoughts: dict[int, Thought] = {}
        for shape in dict.fromkeys(shapes):
            places = [place for place, other in enumerate(shapes) if other == shape]
            for start in range(0, len(places), batch_size):
                group = places[start : start + batch_size]
                rows = [prompts[place].inputs for place in group]
                full = rows + rows[-1:] * (batch_size - len(rows))
                thoughts |= dict(zip(group, self._forward(full), strict=False))
        return [thoughts[place] for place in range(len(prompts))]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Mapping[str, Tensor]]) -> list[Thought]:
        """One generation over inputs of one shape."""
        inputs = {name: _joined([row[name] for row in rows]).to(self.device) for name in rows[0]}
        prompt_length = inputs["input_ids"].shape[1]
        most_tokens = prompt_length + self.settings.max_new_tokens - 1
        with captured_states(self._decoder_layers, self.layers, most_tokens=most_tokens) as captured:
            sequences = self._model.generate(**inputs, generation_config=self._generation)
        states_BLSD = captured.states
        _check_prompt(sequences, inputs["input_ids"], num_states=states_BLSD.shape[2])
        return [
            self._thought(states_BLSD[place], sequences[place].tolist(), prompt_length)
            for place in range(len(rows))
        ]

    def _thought(self, hidden_LSD: Tensor, ids: Sequence[int], prompt_length: int) -> Thought:
        prompt_ids = ids[:prompt_length]
        generated_ids = until_stop(ids[prompt_length:], self._stop_ids)
        num_states = len(prompt_ids) + len(generated_ids) - 1
        think_open, think_close = self._think_tags
        return Thought(
            hidden_LSD=hidden_LSD[:, :num_states].contiguous(),
            token_kind_S=token_kinds(
                prompt_ids,
                generated_ids,
                visual_ids=self.visual_ids,
                think_open=think_open,
                think_close=think_close,
            ),
            token_ids=(*prompt_ids, *generated_ids),
            prompt_token_count=len(prompt_ids),
            text=self._processor.tokenizer.decode(generated_ids, skip_special_tokens=True),
        )


def require_chat_template(processor: Any, folder: ModelFolder) -> None:
    """Raise StageError where nothing says how this model's prompts are written."""
    tokenizer = getattr(processor, "tokenizer", None)
    if not (getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)):
        raise StageError(
            f"--thinker {folder.name!r} has no chat template (chat_template.jinja, or in the tokenizer's "
            "config): copy the whole folder of the model, or choose one that was trained on instructions"
        )


def _joined(values: Sequence[Tensor]) -> Tensor:
    """Rows as one batch; a single one is not copied: pixels are tens of megabytes."""
    return values[0] if len(values) == 1 else torch.cat(list(values))


def _shape(inputs: Mapping[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    """What rows of one forward have in common: the shapes of all inputs, and the visual grid."""
    grids = [value.flatten().tolist() for name, value in inputs.items() if name.endswith("_grid_thw")]
    return (*map(tuple, grids), *(tuple(value.shape) for value in inputs.values()))


def _check_prompt(sequences: Tensor, prompt_ids: Tensor, *, num_states: int) -> None:
    """Raises ValueError where the model did not go on from the processor's own prompt."""
    length = prompt_ids.shape[1]
    if not torch.equal(sequences[:, :length], prompt_ids):
        raise ValueError("the model generated from another prompt than its processor made")
    if num_states != sequences.shape[1] - 1:
        raise ValueError(f"{sequences.shape[1]} tokens gave {num_states} states, expected one less")


def is_mixture_of_experts(text_config: Any) -> bool:
    """Whether a decoder routes tokens to experts, by the names that configurations give their number."""
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


def shrink(frames: FrameStack, *, short_side_px: int) -> Tensor:
    """Frames `(frame, 3, height, width)` uint8, scaled down to a short side, never up."""
    video = torch.from_numpy(np.require(frames, requirements="W")).permute(0, 3, 1, 2)
    if min(video.shape[-2:]) <= short_side_px:
        return video.contiguous()
    smaller: Tensor = image_ops.resize(
        video, [short_side_px], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return smaller.contiguous()


def until_stop(generated_ids: Sequence[int], stop_ids: frozenset[int]) -> list[int]:
    """Generated tokens up to the first stop token, which belongs to them; behind it is padding."""
    for place, token in enumerate(generated_ids):
        if token in stop_ids:
            return list(generated_ids[: place + 1])
    return list(generated_ids)


def _token_id(tokenizer: Any, token: str) -> int | None:
    number = tokenizer.convert_tokens_to_ids(token)
    return number if isinstance(number, int) and number != tokenizer.unk_token_id else None
