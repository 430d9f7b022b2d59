"""Settings that do nothing in a run: runs that differ in these alone are equal, and are shown as equal."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from thinkjepa.stages.train.model.config import Variant, reads_joints_directly

ONLY_OF_GUIDANCE = (
    "guidance",
    "levels",
    "cross_tokens",
    "drop_guidance",
    "fusion_width",
    "guidance_form",
    "gate_learning_rate",
)

OF_THE_STATES = ("use_levels", "use_streams", "guidance_source", "oracle_table")
"""Settings that choose the thinker's states."""

ONLY_OF_LATENTS = (
    "latent_loss",
    "latent_weight",
    "latent_pool",
    "latent_target",
    "whiten_latents",
    "normalise_targets",
    "next_step_weight",
    "init_from",
)

IDLE: Mapping[Variant, tuple[str, ...]] = MappingProxyType(
    {
        "thinkjepa": (),
        "jepa": (*ONLY_OF_GUIDANCE, *OF_THE_STATES),
        "vlm": (
            "drop_guidance",
            "fusion_width",
            "guidance_form",
            "init_from",
            "next_step_weight",
            "latent_target",
        ),
        "poses": (
            *ONLY_OF_GUIDANCE,
            *OF_THE_STATES,
            *ONLY_OF_LATENTS,
            "depth",
            "head_inputs",
            "drop_poses",
        ),
    }
)
"""Settings that do nothing in a variant."""

ONLY_OF_JOINTS = (
    "min_confidence",
    "anchor",
    "head_inputs",
    "drop_poses",
    "head_width",
    "reader_depth",
    "head_learning_rate",
    "trajectory_weight",
    "trajectory_units",
)
"""Settings that do nothing in a run on latents alone."""

ONLY_OF_CROSS = ("guidance", "levels", "cross_tokens", "gate_learning_rate")
"""Settings that do nothing in `vlm`, either, unless it reads states one by one."""

IDLE_OF_GUIDANCE: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"cross": ("fusion_width", "guidance_form"), "spatial": ("guidance_form",)}
)
"""Settings that do nothing under a kind of guidance."""


def idle_settings(settings: Mapping[str, Any]) -> frozenset[str]:
    """Names of the settings that do nothing in a run of these settings, given by name.

    The variant tells, the kind of guidance, and whether the run has joints.
    """
    variant, guidance = settings["variant"], settings.get("guidance")
    idle = frozenset(IDLE[variant])
    if variant == "vlm" and guidance not in ("cross", "spatial"):
        idle |= frozenset(ONLY_OF_CROSS)
    if not str(settings.get("guidance_source", "own")).startswith("oracle"):
        idle |= {"oracle_table"}
    if guidance != "cross":
        idle |= {"cross_tokens"}
    if variant == "thinkjepa":
        idle |= frozenset(IDLE_OF_GUIDANCE.get(str(guidance), ()))
    if not reads_joints_directly(variant, settings.get("head_inputs", "poses")):
        idle |= {"reader_depth"}
    if settings.get("anchor") == "last_pose" or settings.get("head_inputs") == "latents":
        idle |= {"drop_poses"}
    return idle | frozenset(ONLY_OF_JOINTS) if settings.get("task") == "latent" else idle
