"""Copy the predictor of a V-JEPA 2 checkpoint (transformers' layout) into ours.

In bidirectional mode the result computes what transformers' `VJEPA2Predictor` does. In frame-causal mode it
is a warm start, not parity: the weights were trained to see all tokens.

The head count is not visible in the weights: another count loads without an error and computes nonsense. So
it is taken from the checkpoint's config, and a predictor of another count is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from thinkjepa.cache.disk.json_text import parse_json
from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.model.forecast import ForecastModel
from thinkjepa.stages.train.model.trunk import MLP_RATIO
from thinkjepa.stages.train.model.variants import Jepa, Predictor

PREFIX = "predictor."

MASK_TOKENS = "embeddings.mask_tokens"

MASK_TOKEN_USED = 1  # of the ten that are stored: `mask_index=1` in VJEPA2PredictorEmbeddings.forward

RENAMED = {
    "embeddings.predictor_embeddings.": "embed.",
    "layer.": "trunk.layer.",
    "layernorm.": "trunk.layernorm.",
    "proj.": "proj.",
}


def copy_vjepa2_predictor(
    predictor: Predictor, *, weights: Mapping[str, Tensor], config: Mapping[str, object]
) -> None:
    """Overwrite all of `predictor`'s weights by those of a checkpoint.

    `weights`: state dict of the whole model or of the predictor; `config`: the checkpoint's `config.json`.
    """
    _check_config(predictor, config)
    renamed = _rename(_predictor_only(weights))
    expected = predictor.state_dict()
    if missing := sorted(expected.keys() - renamed.keys()):
        raise StageError(f"V-JEPA 2 checkpoint has no weight for {missing[0]!r} ({len(missing)} missing)")
    if unknown := sorted(renamed.keys() - expected.keys()):
        raise StageError(
            f"V-JEPA 2 checkpoint has weights that the predictor lacks: {unknown[0]!r} ({len(unknown)})"
        )
    for name, weight in renamed.items():
        if weight.shape != expected[name].shape:
            raise StageError(
                f"V-JEPA 2 checkpoint: {name!r} is {tuple(weight.shape)}, the predictor has "
                f"{tuple(expected[name].shape)}"
            )
    predictor.load_state_dict(renamed)


def _check_config(predictor: Predictor, config: Mapping[str, object]) -> None:
    trunk = predictor.trunk.shape
    required = {
        "pred_num_attention_heads": trunk.heads,
        "pred_hidden_size": trunk.width,
        "pred_num_hidden_layers": trunk.depth,
        "hidden_size": predictor.grid.dim,
        "hidden_act": "gelu",
        "pred_mlp_ratio": MLP_RATIO,
    }
    for field, ours in required.items():
        if field not in config:
            raise StageError(f"V-JEPA 2 config has no {field!r}; pass the config.json next to the weights")
        if config[field] != ours:
            raise StageError(
                f"V-JEPA 2 checkpoint has {field}={config[field]!r}, the predictor {ours!r}: make them match"
            )


def _predictor_only(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {name.removeprefix(PREFIX): w for name, w in weights.items() if name.startswith(PREFIX)}
    return own or dict(weights)


def _rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, weight in weights.items():
        if name == MASK_TOKENS:
            renamed["mask_token"] = weight[MASK_TOKEN_USED % len(weight)].reshape(1, -1)
            continue
        prefix = next((prefix for prefix in RENAMED if name.startswith(prefix)), "")
        renamed[RENAMED.get(prefix, "") + name.removeprefix(prefix)] = weight
    return renamed


@dataclass(frozen=True, slots=True)
class WarmStart:
    """A checkpoint in transformers' layout: its folder, and its weights' digest, which a run records."""

    path: Path
    digest: str


def start_from(model: ForecastModel, checkpoint: WarmStart) -> None:
    """Overwrite the predictor's weights. Pyramid and head keep theirs.

    A predictor of changes keeps an output of zeros: the checkpoint's output layer predicts latents.

    Raises StageError where the checkpoint has no predictor of this very shape, or the variant has none.
    """
    if not isinstance(model.forecaster, Jepa):
        raise StageError(
            "variants vlm and poses have no predictor that could start from a checkpoint: leave out init_from"
        )
    copy_vjepa2_predictor(
        model.forecaster.predictor,
        weights=_predictor_weights(checkpoint.path),
        config=_config(checkpoint.path),
    )
    if model.forecaster.units.target.kind == "change":
        model.forecaster.predictor.put_out_zeros()


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise StageError(f"init_from {str(folder)!r}: config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise StageError(f"init_from {str(folder)!r}: config.json holds no object")
    return config


def _predictor_weights(folder: Path) -> dict[str, Tensor]:
    """The predictor's tensors of all safetensors files. The encoder's are not read."""
    weights = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(PREFIX)]  # noqa: SIM118
                weights.update({name: file.get_tensor(name).float() for name in names})
        except (OSError, SafetensorError) as error:
            raise StageError(f"init_from: {str(path)!r} cannot be read: {error}") from error
    if not weights:
        raise StageError(
            f"init_from {str(folder)!r}: no weight's name begins with {PREFIX!r}: it is no V-JEPA 2 with "
            "a predictor"
        )
    return weights


def _weight_files(folder: Path) -> Sequence[Path]:
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise StageError(f"init_from {str(folder)!r}: no .safetensors file; other formats are never loaded")
    return files
