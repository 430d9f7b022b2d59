"""Copy the predictor of a V-JEPA 2 checkpoint (transformers' layout) into ours.

In bidirectional mode the result computes what transformers' `VJEPA2Predictor` does. In frame-causal mode it
is a warm start, not parity: the weights were trained to see all tokens.

The head count is not visible in the weights: another count loads without an error and computes nonsense. So
it is taken from the checkpoint's config, and a predictor of another count is refused.
"""

from collections.abc import Mapping

from torch import Tensor

from thinkjepa.stages.errors import StageError
from thinkjepa.stages.train.predictor import Predictor
from thinkjepa.stages.train.trunk import MLP_RATIO

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
            f"V-JEPA 2 checkpoint has weights with no place here: {unknown[0]!r} ({len(unknown)})"
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
            raise StageError(f"V-JEPA 2 config has no {field!r}; pass the config.json beside the weights")
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
