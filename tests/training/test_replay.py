"""Replay that mixes online and offline transitions."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.training.replay import MixedReplay


def transitions(n, value, **more):
    return TensorDict(
        {"observation": torch.full((n, 2), value), "next": {"reward": torch.full((n, 1), value)}} | more, [n]
    )


@pytest.mark.parametrize(("fraction", "share"), [(0.25, 4), (0.5, 8), (0.9, 14), (0.99, 15)])
def test_the_fraction_is_exact_and_only_common_entries_stay(fraction, share):
    replay = MixedReplay(100, 16, transitions(5, 1.0), fraction)
    replay.online.extend(transitions(50, 0.0, action=torch.zeros(50, 3)))
    for _ in range(3):
        batch = replay.sample(2)
        assert batch.shape == (2, 16)
        assert batch["observation"][..., 0].sum(1).tolist() == [share, share]
        assert "action" not in batch.keys()


@pytest.mark.parametrize("offline", [None, transitions(5, 1.0)])
def test_no_fraction_is_online_data_alone(offline):
    replay = MixedReplay(100, 16, offline, 0.0)
    replay.online.extend(transitions(50, 0.0, action=torch.zeros(50, 3)))
    batch = replay.sample(1)
    assert batch.shape == (1, 16)
    assert batch["observation"].sum() == 0
    assert "action" in batch.keys()
