"""A ManiSkill task with N envs on the CPU, as ManiSkill itself would have them: N tasks, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class SerialTasks:
    """N gym envs of one env each, with the batched interface that ManiSkill's tasks have on the GPU.

    What :func:`~dsrl_torchrl.envs.batched_maniskill.batched_class` is measured against, and what remains where it
    can't be used.

    Args:
        envs: ``gym.make`` of a ManiSkill task with ``num_envs=1``, N times.
    """

    def __init__(self, envs: Sequence[Any]) -> None:
        self.envs = envs
        self.num_envs = len(envs)
        first = envs[0].unwrapped
        self.device, self.render_mode, self.gpu_sim_enabled = first.device, first.render_mode, False
        self.single_observation_space, self.single_action_space = (
            first.single_observation_space,
            first.single_action_space,
        )
        self._observation = torch.zeros(self.num_envs, *self.single_observation_space.shape)
        self._info: list[dict] = [{}] * self.num_envs

    @property
    def unwrapped(self) -> SerialTasks:
        """Itself."""
        return self

    def reset(self, seed: Sequence[int], options: dict) -> tuple[Tensor, dict]:
        """Resets the envs ``options["env_idx"]``, all by default; ``seed`` has one for each of the N."""
        options = dict(options)
        envs = options.pop("env_idx", torch.arange(self.num_envs))
        for i in envs.tolist():
            observation, self._info[i] = self.envs[i].reset(seed=seed[i], options=options)
            self._observation[i] = observation[0]
        return self._observation.clone(), self._infos()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict]:
        """One step of all envs with ``action [N, action_dim]``."""
        results = [env.step(action[i : i + 1]) for i, env in enumerate(self.envs)]
        observations, rewards, terminated, truncated, self._info = map(list, zip(*results, strict=True))
        self._observation = torch.cat(observations)
        return (
            self._observation.clone(),
            torch.cat(rewards),
            torch.cat(terminated),
            torch.cat(truncated),
            self._infos(),
        )

    def forget_contacts(self, envs: Sequence[int], seed: int) -> None:
        """Moves some envs to some start, and their physics one step on: what touched then no longer does."""
        for i in envs:
            self.envs[i].reset(seed=seed)
            self.envs[i].unwrapped.scene.step()

    def render(self) -> Tensor:
        """A frame of each env, ``[N, height, width, 3]``."""
        return torch.cat([torch.as_tensor(env.render()) for env in self.envs])

    def close(self) -> None:
        """Frees the simulations."""
        for env in self.envs:
            env.close()

    def _infos(self) -> dict[str, Tensor]:
        names = ("success", "fail")
        return {name: torch.cat([info[name] for info in self._info]) for name in names if name in self._info[0]}
