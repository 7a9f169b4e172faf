"""The slot is open: an algorithm of one's own, short, goes through both stages and everything around them."""

from __future__ import annotations

import inspect

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch.nn.functional import mse_loss
from torchrl.modules import MLP

from dsrl_torchrl.agents import Agent, AgentConfig
from dsrl_torchrl.agents.agent import CRITIC, scalars
from dsrl_torchrl.collect.rollouts import collect_rollouts
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.options import option
from tests.training.toy import assert_same_state, make_env, run_offline, run_online


class RandomShooting(Agent):
    """Regresses the reward of one macro step on observation and noise, and takes the best of some prior noises."""

    class Config(AgentConfig):
        shots: int = option(16, "prior noises to choose from", ge=1)

    reads_noise = True

    def __init__(self, env, config=None, networks=None, data=None):
        super().__init__(env, config, networks, data)
        sizes = {"in_features": self.encoder.out_features + env.latent_dim, "out_features": 1, "num_cells": [32]}
        self.reward = MLP(**sizes, device=self.device)
        self.optimise(CRITIC, self.reward.parameters(), self.config.critic_lr)
        self.policy = self.kept_policy = Shooter(self)

    def update(self, batch, parts):
        predicted = self.reward(torch.cat([self.encode(batch)["features"], batch["action"]], -1))
        loss = mse_loss(predicted, batch["next", "reward"])
        return TensorDict(scalars("q_noise", loss=loss, grad_norm=self.descend(CRITIC, loss)))

    def noise_values(self, observations, noise):
        features = self.encoder(observations.copy())["features"].expand(*noise.shape[:-1], -1)
        return self.reward(torch.cat([features, noise], -1)).squeeze(-1).unsqueeze(0)

    def tensors(self):
        return {"q_noise": self.reward.state_dict()}


class Shooter(TensorDictModuleBase):
    def __init__(self, agent):
        super().__init__()
        self.in_keys, self.out_keys, self.__dict__["agent"] = agent.in_keys, ["action"], agent

    def forward(self, td):
        noise = torch.randn(self.agent.config.shots, *td.batch_size, self.agent.decoder.latent_dim)
        best = self.agent.noise_values(td, noise).squeeze(0).argmax(0)[None, ..., None].expand(1, *noise.shape[1:])
        return td.set("action", noise.gather(0, best).squeeze(0))


def make_shooter():
    torch.manual_seed(0)
    return RandomShooting(make_env(), RandomShooting.Config(batch_size=32, gamma=0.9))


def make_data():
    return collect_rollouts(
        make_env(), PriorNoise(2), 1_000, seed=1, observation_keys=["observation"], progress=False
    )[0]  # fmt: skip


def test_it_is_short():
    lines = [*inspect.getsource(RandomShooting).splitlines(), *inspect.getsource(Shooter).splitlines()]
    assert len([line for line in lines if line.strip()]) < 40


@pytest.mark.slow
def test_it_learns_offline_and_online_and_is_saved(tmp_path):
    agent, data = make_shooter(), make_data()
    result, rows = run_offline(agent, data, tmp_path / "stage1", updates=200, log_updates=50)
    assert result.updates == 200 and rows[-1][1]["q_noise/loss"] < rows[0][1]["q_noise/loss"]
    assert result.q_gain > 4 * result.q_gain_stderr  # it takes what it thinks is best
    agent.save(tmp_path)
    again = make_shooter()
    again.load(tmp_path, components=("critics",))
    assert_same_state(agent, again)
    result, rows = run_online(again, tmp_path / "stage2", offline=data, offline_fraction=0.25)
    assert result.env_steps >= 800 and result.updates > 0
    assert {"q_noise/loss", "env/success_running", "train/utd"} <= rows[-1][1].keys()
    evaluation = evaluate(make_env(), again.kept_policy, range(500, 516))
    assert evaluation.success_once.value > 0
