"""The share of the head that counts, chosen on the validation clips after every epoch.

What a head learns on few training clips can do harm on others, and few validation clips cannot tell: after
one of many epochs, one of several shares is nearer than the ridge on them by chance alone. So the ridge is
kept unless the 95 % interval of the difference, for other groups, leaves it out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from thinkjepa.stages.intervals import Clusters
from thinkjepa.stages.train.data.features import Batch
from thinkjepa.stages.train.fit.losses import joint_distance
from thinkjepa.stages.train.model.head import TrajectoryHead


def distances_by_share(head: TrajectoryHead, joints_m: Tensor, clips: Batch) -> Tensor:
    """Distance of each clip's joints at each share of the head, `(clip, share)`, metres.

    `joints_m` are those of the whole head. A clip without a counted joint has 0.
    """
    assert clips.trajectory is not None, "clips with hand labels"
    target, counted = clips.trajectory, clips.trajectory.counted.float()
    found = head.at_shares(joints_m, target.poses)
    return torch.stack([joint_distance(one, target.future_m, counted) for one in found], dim=1)


def clusters_of(clip_ids: Sequence[str], groups: Mapping[str, str]) -> Clusters:
    """Groups and videos of clips. Videos stand in for groups where `groups`, by clip id, has none."""
    videos = [clip_id.partition("@")[0] for clip_id in clip_ids]
    return Clusters(groups=[groups.get(clip_id, "") for clip_id in clip_ids], videos=videos)


def choose_share(distances_m: Tensor, clusters: Clusters) -> int:
    """Index of the share to use, from the distances `(clip, share)` of the validation clips.

    Distances are float64 on the CPU, NaN where unknown. The last share is that of the ridge alone. It is
    chosen unless another share has the least mean and the interval of their difference is below zero.
    """
    means = distances_m.nanmean(dim=0)
    best, ridge = int(means.argmin()), len(means) - 1
    difference = distances_m[:, best] - distances_m[:, ridge]
    figure = clusters.figure([difference.numpy()[np.newaxis]])
    high = figure["high"] if figure else None
    return best if high is not None and high < 0 else ridge
