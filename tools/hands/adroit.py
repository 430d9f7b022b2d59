"""Names of the Adroit hand's bodies and marked points, by the EgoDex joints that they stand for."""

from __future__ import annotations

FINGER_BODIES = {"Index": "ff", "Middle": "mf", "Ring": "rf", "Little": "lf"}

EGODEX_BODIES = {
    "rightHand": "palm",
    "rightForearm": "forearm",
    "rightLittleFingerMetacarpal": "lfmetacarpal",
    **{
        f"right{finger}Finger{part}": f"{prefix}{body}"
        for finger, prefix in FINGER_BODIES.items()
        for part, body in (
            ("Knuckle", "proximal"),
            ("IntermediateBase", "middle"),
            ("IntermediateTip", "distal"),
        )
    },
    "rightThumbKnuckle": "thproximal",
    "rightThumbIntermediateBase": "thmiddle",
    "rightThumbIntermediateTip": "thdistal",
}
"""Bodies whose origin, at their hinge, is an EgoDex joint. Adroit's index, middle and ring fingers have no
metacarpal joint: EgoDex's are left out."""

EGODEX_SITES = {
    **{f"right{finger}FingerTip": f"S_{prefix}tip" for finger, prefix in FINGER_BODIES.items()},
    "rightThumbTip": "S_thtip",
}
"""Fingertips are marked points of the last bodies."""
