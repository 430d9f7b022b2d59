"""Hand labels of videos by MediaPipe: writes VIDEO.joints.parquet next to each.

    pip install mediapipe        # and hand_landmarker.task, from the page of MediaPipe's hand landmarker
    python recipes/mediapipe_hands.py hand_landmarker.task videos/*.mp4
    thinkjepa-data check videos --plot labels.png

MediaPipe gives each hand twice: as fractions of the frame, and in metres around the hand's own center with
the camera's axes. Where the hand is before the camera follows from both and the focal length.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from thinkjepa.stages.data.decoding.client import VideoDecoder

FOCAL_WIDTHS = 1.0
"""Focal length in frame widths, 53 degrees across: your camera's, where you know it. Depths scale with it."""

THUMB = [f"Thumb{part}" for part in ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")]
PARTS = ("Knuckle", "IntermediateBase", "IntermediateTip", "Tip")
FINGERS = [f"{name}Finger{part}" for name in ("Index", "Middle", "Ring", "Little") for part in PARTS]
JOINTS = ["Hand", *THUMB, *FINGERS]
"""MediaPipe's 21 landmarks in their order, by EgoDex's names."""


def in_camera(world_m: Any, image: Any, size_px: tuple[int, int]) -> Any:
    """Joints `(21, 3)` in the camera's frame, metres, from both kinds of landmarks.

    A joint at X + t falls on the pixel u: f * (X + t)_x = (u - c) * (X + t)_z, linear in the shift t.
    """
    focal = FOCAL_WIDTHS * size_px[0]
    rays = (image - 0.5) * size_px / focal  # x / z and y / z
    shift = np.zeros((2, len(rays), 3))
    shift[0, :, 0] = shift[1, :, 1] = 1
    shift[..., 2] = -rays.T
    known = rays.T * world_m[:, 2] - world_m[:, :2].T
    return world_m + np.linalg.lstsq(shift.reshape(-1, 3), known.ravel(), rcond=None)[0]


def rows(result: Any, frame: int, size_px: tuple[int, int]) -> list[dict[str, Any]]:
    """Rows of the table for one frame's result; of two hands of a side the surer one."""
    focal = FOCAL_WIDTHS * size_px[0]
    camera = {"fx": focal, "fy": focal, "cx": size_px[0] / 2, "cy": size_px[1] / 2}
    hands: dict[str, list[dict[str, Any]]] = {}
    found = zip(result.handedness, result.hand_landmarks, result.hand_world_landmarks, strict=True)
    for (side, *_), image, world in sorted(found, key=lambda hand: hand[0][0].score):
        world_m = np.array([[point.x, point.y, point.z] for point in world])
        placed = in_camera(world_m, np.array([[point.x, point.y] for point in image]), size_px)
        score, name = min(float(side.score), 1.0), side.category_name.lower()
        hands[name] = [
            {"frame": frame, "joint": name + joint, "x": x, "y": y, "z": z, "confidence": score, **camera}
            for joint, (x, y, z) in zip(JOINTS, placed.tolist(), strict=True)
        ]
    return [row for hand in hands.values() for row in hand]


def main(model: str, videos: list[str]) -> None:
    """Label each video, with the frames that the project's own decoder gives."""
    if not Path(model).is_file():
        sys.exit(
            f"{model!r} is no file: get hand_landmarker.task from the page of MediaPipe's hand landmarker"
        )
    import mediapipe as mp

    options = mp.tasks.vision.HandLandmarkerOptions(
        base_options=mp.tasks.BaseOptions(model_asset_path=model),
        running_mode=mp.tasks.vision.RunningMode.VIDEO,
        num_hands=2,
    )
    with VideoDecoder(timeout_s=60) as decoder:
        for video in map(Path, videos):
            info, table = decoder.open(video), []
            size_px = (info.width_px, info.height_px)
            with mp.tasks.vision.HandLandmarker.create_from_options(options) as landmarker:
                stream = decoder.stream(video, range(len(info.times_s)), at_once=1)
                for frame, (pixels,) in enumerate(stream):
                    image = mp.Image(image_format=mp.ImageFormat.SRGB, data=np.ascontiguousarray(pixels))
                    result = landmarker.detect_for_video(image, round(1000 * info.times_s[frame]))
                    table += rows(result, frame, size_px)
            if not table:
                sys.stdout.write(f"{video}: no hand found, nothing written\n")
                continue
            pq.write_table(pa.Table.from_pylist(table), video.with_suffix(".joints.parquet"))
            hands = f"{len(table) // len(JOINTS)} hands in {len(info.times_s)} frames"
            sys.stdout.write(f"{video}: {hands}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
