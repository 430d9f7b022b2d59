"""Where joints would be if hands just stayed, or just went on: forecasts without a model.

Shape letters: F observed frames, K future frames, J joints.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from thinkjepa.stages.data.trajectories import Positions


def constant_velocity(
    observed_m: Positions,
    seen: npt.NDArray[np.bool_],
    *,
    observed_times_s: Sequence[float],
    future_times_s: Sequence[float],
) -> Positions:
    """Positions `(future frame, joint, 3)`, metres: each joint goes on as between the last two times it was
    seen at.

    `observed_m` is `(observed frame, joint, 3)`, `seen` `(observed frame, joint)`. Times are the frames' real
    ones, so that uneven and repeated frames do no harm. A joint seen at one time only stays there; what it
    gives for a joint never seen is meaningless and finite.
    """
    times_F = np.asarray(observed_times_s, dtype=np.float64)
    joints_J = np.arange(seen.shape[1])
    last_J = _last(seen)
    earlier_FJ = seen & (times_F[:, np.newaxis] < times_F[last_J])
    before_J = np.where(earlier_FJ.any(axis=0), _last(earlier_FJ), last_J)
    elapsed_J = times_F[last_J] - times_F[before_J]
    last_J3 = observed_m[last_J, joints_J].astype(np.float64)
    moved_J3 = last_J3 - observed_m[before_J, joints_J]
    velocity_J3 = moved_J3 / np.where(elapsed_J > 0, elapsed_J, 1.0)[:, np.newaxis]
    ahead_KJ = np.asarray(future_times_s, dtype=np.float64)[:, np.newaxis] - times_F[last_J]
    moved: Positions = (last_J3 + ahead_KJ[..., np.newaxis] * velocity_J3).astype(np.float32)
    return moved


def _last(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """The last marked frame of each joint; the last frame of all where none is."""
    last: npt.NDArray[np.intp] = len(marked) - 1 - np.argmax(marked[::-1], axis=0)
    return last
