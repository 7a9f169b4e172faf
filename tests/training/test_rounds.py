"""Rounds of updates: which parts an update makes, and what the updates of a round share."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.training.learner_config import LearnerConfig
from dsrl_torchrl.training.rounds import make_updates


class Recorder:
    """In the place of the update."""

    def __init__(self):
        self.prepared, self.updates = [], []

    def prepare(self, batches):
        self.prepared.append(len(batches))
        return batches.set("prepared", torch.full(batches.shape, len(self.prepared)))

    def __call__(self, batch, *, update_actor, distil):
        self.updates.append((batch["x"].tolist(), update_actor, distil))
        assert (batch["prepared"] == len(self.prepared)).all()
        return TensorDict({"loss": torch.tensor(float(len(self.updates)))})


def make_sample():
    drawn = []

    def sample(batches):
        drawn.append(batches)
        values = torch.arange(2 * batches).view(batches, 2) + 100 * len(drawn)
        return TensorDict({"x": values}, [batches, 2])

    return sample, drawn


def test_updates_share_samples_and_each_sees_its_own_batch():
    update, (sample, drawn) = Recorder(), make_sample()
    metrics = make_updates(update, sample, LearnerConfig(target_interval=3), first=0, updates=7)
    assert drawn == update.prepared == [3, 3, 1]
    assert [batch for batch, _, _ in update.updates] == [
        [100, 101], [102, 103], [104, 105], [200, 201], [202, 203], [204, 205], [300, 301],
    ]  # fmt: skip
    assert metrics["loss"] == 7


@pytest.mark.parametrize("target_interval", [1, 4])
def test_actor_and_distillation_keep_their_intervals_across_rounds(target_interval):
    options = {"critic_only_updates": 3, "actor_interval": 2, "distillation_interval": 3}
    config = LearnerConfig(target_interval=target_interval, **options)
    update, (sample, _) = Recorder(), make_sample()
    after = []
    for first, updates in ((0, 5), (5, 4)):
        make_updates(update, sample, config, first=first, updates=updates, after_actor=lambda: after.append(1))
    assert [actor for _, actor, _ in update.updates] == [step >= 3 and step % 2 == 0 for step in range(9)]
    assert [distil for _, _, distil in update.updates] == [step % 3 == 0 for step in range(9)]
    assert len(after) == 3


def test_no_update_samples_nothing():
    update, (sample, drawn) = Recorder(), make_sample()
    assert make_updates(update, sample, LearnerConfig(), first=0, updates=0) == {}
    assert drawn == []
