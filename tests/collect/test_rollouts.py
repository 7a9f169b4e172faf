from __future__ import annotations

import torch
from torch import nn

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies.base_policy import BasePolicy
from tests.scripted_env import ScriptedCameraEnv
from tests.training.toy import make_env


class CameraPolicy(BasePolicy):
    """chunk = tanh(noise + brightness + first state entry)."""

    def __init__(self):
        super().__init__(1, 4, in_keys=["pixels", ("agent", "state")])
        self.weight = nn.Parameter(torch.ones(1))
        self.freeze()

    def forward(self, pixels, state, noise):
        bias = pixels.float().mean((-3, -2, -1)) / 255 + state[..., 0]
        return torch.tanh(self.weight * noise + bias[..., None, None])


def collect(seed=0, keys=("pixels", ("agent", "state")), env_steps=40):
    env = LatentActionEnv(ScriptedCameraEnv([2, 5], [True, False]), CameraPolicy(), act_horizon=3, gamma=0.9)
    return collect_rollouts(env, PriorNoise(4), env_steps, seed=seed, observation_keys=keys, progress=False)


def test_whole_episodes_failures_included():
    """The first sub-env succeeds by its second step, the end; the other one passes it by: once, but not at the end."""
    transitions, episodes = collect()
    next_ = transitions["next"]
    assert int(next_[STEPS_KEY].sum()) >= 40
    ends = int(next_["done"].sum())
    assert ends - 2 == len(episodes.successes) > 2  # the two last ones began too late for an episode of 5 steps to end
    ended = next_["terminated"].squeeze(-1) | next_["truncated"].squeeze(-1)
    assert sorted(set(next_["success"].squeeze(-1)[ended].tolist())) == [False, True]
    assert all(episodes.successes)
    assert set(episodes.successful_lengths) == {2, 5}


def test_only_the_named_entries_are_kept_in_their_dtype():
    transitions, _ = collect()
    assert transitions["pixels"].dtype == transitions["next", "pixels"].dtype == torch.uint8
    assert (transitions["pixels"] == transitions["agent", "state"][:, :1, None, None]).all()
    transitions, _ = collect(keys=[("agent", "state")])
    assert "pixels" not in transitions.keys() and "pixels" not in transitions["next"].keys()


def test_the_seed_decides():
    first, again, other = (collect(seed)[0]["action"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_seed_decides_where_episodes_start():
    first, again, other = (
        collect_rollouts(make_env(), PriorNoise(2), 16, seed=seed, observation_keys=["observation"], progress=False)[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first["observation"], again["observation"])
    assert not torch.equal(first["observation"][0], other["observation"][0])  # before anything has been done


def test_batches_of_the_collector_do_not_overwrite_each_other():
    transitions, _ = collect(env_steps=400)
    assert len(transitions) > 128
    assert len(transitions["action"].unique(dim=0)) == len(transitions)
