"""The newest macro steps of an on-policy agent: in order, once over per epoch, and gone after the updates."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from dsrl_torchrl.data.rollout import Rollout


def step(t, n=3):
    """Macro step ``t`` of n envs, named ``10 env + t``."""
    return TensorDict({"name": 10 * torch.arange(n) + t}, [n])


def make(steps=4, batch_size=5):
    seen = []

    def finish(rollout):
        seen.append(rollout["name"].tolist())
        return rollout.copy().set("late", rollout["name"] + 0.5)

    rollout = Rollout(12, batch_size, finish)
    for t in range(steps):
        rollout.extend(step(t))
    return rollout, seen


def test_it_is_finished_once_in_the_order_of_each_env():
    rollout, seen = make()
    assert len(rollout) == 12 and rollout.nbytes == 12 * 8
    for _ in range(3):
        batches = rollout.sample(2)
        assert batches.shape == (2, 5) and torch.equal(batches["late"], batches["name"] + 0.5)
    assert seen == [[[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]]


def test_an_epoch_has_every_macro_step_once():
    """However its minibatches are asked for."""
    rollout, _ = make()
    drawn = torch.cat([rollout.sample(n).reshape(-1)["name"] for n in (1, 3, 2, 6)]).tolist()
    for epoch in range(5):
        assert sorted(drawn[12 * epoch : 12 * (epoch + 1)]) == sorted(
            10 * env + t for env in range(3) for t in range(4)
        )
    assert drawn[:12] != drawn[12:24]


def test_updates_empty_it_and_so_does_a_reset():
    rollout, seen = make()
    rollout.sample(1)
    rollout.extend(step(4))
    assert len(rollout) == 3
    assert set(rollout.sample(1)["name"].flatten().tolist()) == {4, 14, 24}  # fewer than a minibatch: again and again
    rollout.restart()
    assert len(rollout) == 0
    rollout.extend(step(7))
    rollout.load_state_dict(rollout.state_dict())
    assert len(rollout) == 0 and len(seen) == 2
