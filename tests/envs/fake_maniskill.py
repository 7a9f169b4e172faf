"""A batched gym env that behaves like a GPU-simulated ManiSkill task, without the GPU."""

from __future__ import annotations

from types import SimpleNamespace

import torch


class FakeManiSkill:
    """``N`` points on a line: solved beyond 1, failed below -1, one action of one dimension in [-1, 1]."""

    gpu_sim_enabled = True
    render_mode = None

    def __init__(self, num_envs: int, limit: int) -> None:
        self.num_envs, self.limit, self.device = num_envs, limit, torch.device("cpu")
        self.single_observation_space = SimpleNamespace(shape=(2,))
        self.single_action_space = SimpleNamespace(low=[-1.0], high=[1.0])
        self.x = torch.zeros(num_envs)
        self.elapsed = torch.zeros(num_envs, dtype=torch.int32)
        self.resets: list[tuple] = []
        self.closed = False

    @property
    def unwrapped(self):
        return self

    def reset(self, seed, options):
        assert isinstance(seed, list) and len(seed) == self.num_envs
        index = options.get("env_idx", torch.arange(self.num_envs))
        self.resets.append((seed, index.tolist()))
        # As on ManiSkill's GPU simulation: one generator for the batch, seeded by the first entry.
        generator = torch.Generator().manual_seed(seed[0])
        self.x[index] = 0.2 * torch.rand(len(index), generator=generator)
        self.elapsed[index] = 0
        return self._observation(), self._info()

    def step(self, action):
        assert action.shape == (self.num_envs, 1)
        self.x += action[:, 0]
        self.elapsed += 1
        info = self._info()
        return (
            self._observation(),
            torch.zeros(self.num_envs),
            info["success"] | info["fail"],
            self.elapsed >= self.limit,
            info,
        )

    def close(self):
        self.closed = True

    def _observation(self):
        return torch.stack([self.x, self.elapsed.float()], -1)

    def _info(self):
        return {"success": self.x > 1, "fail": self.x < -1}
