"""The raw workers step the same envs as the raw env in this process."""

from __future__ import annotations

import multiprocessing

import pytest
import torch

from benchmarks.latent_env import HORIZON, RawEnv, RawWorkers
from tests.processes import READY


class Counting:
    """A gym env ``[1]`` that adds its actions up and ends after two chunks."""

    def reset(self, seed=None):
        self.total, self.steps = torch.zeros(1, 4), 0
        return self.total, {}

    def step(self, action):
        self.total, self.steps = self.total + action, self.steps + 1
        return self.total, torch.zeros(1), torch.tensor([False]), torch.tensor([self.steps == 2 * HORIZON]), {}


def make():
    return RawEnv(Counting())


@pytest.mark.slow
def test_workers_step_their_own_envs_and_reset_them(monkeypatch):
    ready = multiprocessing.get_context(READY)  # not `spawn`, whose processes import everything anew
    monkeypatch.setattr("benchmarks.latent_env.multiprocessing.get_context", lambda method: ready)
    workers, alone = RawWorkers(make, 2), [make(), make()]
    chunks = torch.randn(3, 2, 1, HORIZON, 4)
    for chunk in chunks:  # the second ends the episodes
        workers.step(chunk)
        for env, own in zip(alone, chunk, strict=True):
            env.step(own)
        torch.testing.assert_close(workers.observation, torch.stack([env.observation for env in alone]))
    torch.testing.assert_close(workers.observation, chunks[2].sum(2))
    workers.close()
