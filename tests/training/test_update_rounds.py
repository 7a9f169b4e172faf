"""Rounds of updates: which parts an update makes, and what the updates of a round share."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.agents.actor_agent import ACTOR
from dsrl_torchrl.agents.dsrl_aw_mle import DISTIL
from dsrl_torchrl.errors import NonFiniteError
from dsrl_torchrl.training.update_rounds import check_metrics, make_updates
from tests.training.toy import DSRLAWMLE, make_agent, run_online


class Recorder:
    """In the place of an agent and its update."""

    def __init__(self, parts=lambda update: frozenset()):
        self.agent, self.parts = self, parts
        self.prepared, self.updates = [], []

    def prepare(self, batches):
        self.prepared.append(len(batches))
        return batches.set("prepared", torch.full(batches.shape, len(self.prepared)))

    def __call__(self, batch, parts):
        self.updates.append((batch["x"].tolist(), parts))
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
    metrics = make_updates(update, sample, first=0, count=19)
    assert drawn == update.prepared == [8, 8, 3]
    batches = [batch for batch, _ in update.updates]
    assert batches[:2] == [[100, 101], [102, 103]]
    assert batches[7:9] == [[114, 115], [200, 201]]
    assert batches[-1] == [304, 305]
    assert metrics["loss"] == 19


def test_actor_and_distillation_keep_their_intervals_across_rounds():
    agent = make_agent(DSRLAWMLE, critic_only_updates=3, actor_interval=2, distillation_interval=3)
    update, (sample, _) = Recorder(agent.parts), make_sample()
    for first, count in ((0, 5), (5, 4)):
        make_updates(update, sample, first=first, count=count)
    assert [ACTOR in parts for _, parts in update.updates] == [step >= 3 and step % 2 == 0 for step in range(9)]
    assert [DISTIL in parts for _, parts in update.updates] == [step % 3 == 0 for step in range(9)]


def test_no_update_samples_nothing():
    update, (sample, drawn) = Recorder(), make_sample()
    assert make_updates(update, sample, first=0, count=0) == {}
    assert drawn == []


def test_a_metric_that_is_not_finite_is_named():
    metrics = {"actor/loss": torch.tensor(1.0), "q_noise/loss": torch.tensor(float("inf"))}
    with pytest.raises(NonFiniteError, match=r"q_noise/loss is NaN or infinite at update 7"):
        check_metrics(metrics, 7)
    assert check_metrics({}, 0) == {}


@pytest.mark.parametrize(("waits", "says"), [(100, True), (99, False), (0, False)])
def test_a_run_that_ends_before_the_actors_first_update_says_so(tmp_path, recwarn, waits, says):
    """200 env steps in macro steps of 2."""
    small = {"total_env_steps": 200, "warmup_env_steps": 60, "checkpoint_env_steps": 50, "log_env_steps": 30}
    run_online(make_agent(DSRLAWMLE, critic_only_updates=waits), tmp_path, macro_steps_per_round=8, utd=1.0, **small)
    lines = [str(warning.message) for warning in recwarn if "leave the actor alone" in str(warning.message)]
    assert len(lines) == says and all("about 100 updates, the first 100 of which" in line for line in lines)
