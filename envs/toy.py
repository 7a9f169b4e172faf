"""A tiny task with a closed-form optimum: what ManiSkill does, in microseconds, for tests and first steps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from tensordict import TensorDict
from tensordict.utils import NestedKey

from dsrl_torchrl.data.demonstration_transitions import step_penalty
from dsrl_torchrl.envs.episodic import EpisodicEnv
from dsrl_torchrl.envs.trajectory_file import STEM, publishing, written_at_once
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.seeds import demonstration_seeds

#: Distance covered in one step by the action 1, and half the side of the square goal region; the world is [-1, 1]^2.
STEP_SIZE = 0.1
RADIUS = 0.1


class PointReachEnv(EpisodicEnv):
    """A point in the plane that must reach a square around its goal; batched, deterministic.

    ``p' = clip(p + STEP_SIZE * a, -1, 1)`` with ``|a_i| <= 1``; success is ``max_i |p_i - goal_i| <= RADIUS``. The
    distance is the max norm because the velocity bound is: each axis is its own race, and the fewest steps to success
    are a formula. The reward is ``-1 + success_bonus * success``. Entries, ends and seeds as
    :class:`~dsrl_torchrl.envs.episodic.EpisodicEnv` has them; the start depends on the env's own seed only.

    Args:
        num_envs: batch size ``N``.
        goal: the goal ``(x, y)``; ``None`` draws one per episode and appends it to the observation.
        max_episode_steps: time limit in steps; the farthest start needs 19.
        success_bonus: added to the reward of a step that ends in success.
        terminate_on_success: ``False`` runs every episode to its time limit.
        seed: seeds the stream of starts.
        device: where the tensors live.
        observation_key: name of the observation's entry.
        image_size: ``S`` adds the entry ``pixels`` ``[3, S, S]``: the world from above, the goal region in green and
            the point in red; ``None`` for state alone.
    """

    def __init__(
        self,
        num_envs: Annotated[int, Field(ge=1)] = 1,
        goal: tuple[float, float] | None = (0.0, 0.0),
        max_episode_steps: Annotated[int, Field(ge=1)] = 40,
        success_bonus: float = 1.0,
        terminate_on_success: bool = True,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        observation_key: NestedKey = "observation",
        image_size: Annotated[int, Field(ge=8, le=1024)] | None = None,
    ) -> None:
        super().__init__(
            num_envs=num_envs,
            obs_dim=4 if goal is None else 2,
            low=-torch.ones(2),
            high=torch.ones(2),
            terminate_on_success=terminate_on_success,
            seed=seed,
            device=device,
            observation_key=observation_key,
            images=None if image_size is None else {"pixels": (3, image_size, image_size)},
        )
        self.image_size = image_size
        self.fixed_goal = None if goal is None else np.asarray(goal, dtype=np.float64)
        self.max_episode_steps, self.success_bonus = max_episode_steps, success_bonus
        self.position = torch.zeros(num_envs, 2, device=self.device)
        self.goal = torch.zeros(num_envs, 2, device=self.device)
        self.elapsed = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def _start(self, seeds: list[int], env_idx: torch.Tensor | None, asked: bool) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = list(range(len(seeds))) if env_idx is None else env_idx.tolist()
        drawn = np.stack([self._draw(seeds[i]) for i in chosen])  # (n, 2, 2)
        position, goal = torch.as_tensor(drawn, dtype=torch.float32, device=self.device).unbind(1)
        self.position[chosen], self.goal[chosen], self.elapsed[chosen] = position, goal, 0
        return self._observation(), self._success()

    def _draw(self, seed: int) -> np.ndarray:
        """Start and goal ``[2, 2]`` of one episode, at least a step outside of the goal region."""
        generator = np.random.default_rng(seed)
        while True:
            start = generator.uniform(-1, 1, size=2)
            goal = generator.uniform(-1, 1, size=2) if self.fixed_goal is None else self.fixed_goal
            if np.abs(start - goal).max() > RADIUS + STEP_SIZE:
                return np.stack([start, goal])

    def _advance(
        self, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        self.position = (self.position + STEP_SIZE * action.clamp(-1, 1)).clamp(-1, 1)  # (N, 2)
        self.elapsed = self.elapsed + 1
        success = self._success()
        reward = step_penalty(success, self.success_bonus)
        return self._observation(), success, reward, success, self.elapsed >= self.max_episode_steps

    def get_state(self) -> list[tuple[torch.Tensor, ...]]:
        """Position, goal and elapsed steps of each env, which :meth:`set_state` takes."""
        return list(zip(self.position.clone(), self.goal.clone(), self.elapsed.clone(), strict=True))

    def set_state(self, states: Sequence[tuple[torch.Tensor, ...]]) -> None:
        """Puts env ``i`` into ``states[i]``, of whichever env that was."""
        self.position, self.goal, self.elapsed = (torch.stack(part) for part in zip(*states, strict=True))

    def _images(self, env_idx: torch.Tensor) -> dict[NestedKey, torch.Tensor]:
        assert self.image_size is not None
        centres = (torch.arange(self.image_size, device=self.device) + 0.5) / self.image_size * 2 - 1
        pixel = 2 / self.image_size

        def square(middle: torch.Tensor, half_side: float) -> torch.Tensor:  # (n, 2) -> (n, S, S), y upwards
            # Shaded at its edges, so that a picture tells less than a pixel.
            x, y = (
                ((half_side - (centres - at.unsqueeze(-1)).abs()) / pixel + 0.5).clamp(0, 1) for at in middle.unbind(-1)
            )
            return y.flip(-1).unsqueeze(-1) * x.unsqueeze(-2)

        goal = square(self.goal[env_idx], RADIUS)
        picture = torch.stack([square(self.position[env_idx], 0.15), goal, torch.zeros_like(goal)], dim=1)
        return {"pixels": (255 * picture).round().to(torch.uint8)}

    def _observation(self) -> torch.Tensor:
        return self.position if self.fixed_goal is not None else torch.cat([self.position, self.goal], -1)

    def _success(self) -> torch.Tensor:
        return (self.position - self.goal).abs().amax(-1) <= RADIUS + 1e-6


def make_toy_demonstrations(
    path: str | Path,
    count: int,
    seed: int = 0,
    action_noise: float = 0.5,
    speed: Annotated[float, Field(gt=0, le=1)] = 0.5,
    goal: tuple[float, float] | None = (0.0, 0.0),
    max_episode_steps: Annotated[int, Field(ge=1)] = 40,
    image_size: Annotated[int, Field(ge=8, le=1024)] | None = None,
    progress: bool = True,
) -> Path:
    """Records ``count`` successful episodes of :class:`PointReachEnv` in ManiSkill's trajectory format (h5 + json).

    Each episode has the data set ``obs``, or ``obs/state`` and ``obs/pixels`` where there are images.

    The expert walks straight to the goal at ``speed``, and its noise is executed and recorded. Slow and noisy on
    purpose: a policy cloned from it leaves room for steering.

    Args:
        path: the ``.h5`` to write; the ``.json`` goes beside it.
        count: number of episodes.
        seed: the run's: its episodes start from :func:`~dsrl_torchrl.seeds.demonstration_seeds`; seeds the noise, too.
        action_noise: standard deviation, in units of the action (its range is [-1, 1]; the sum is clipped to it).
        speed: the expert's bound on each action component, in (0, 1].
        goal: as :class:`PointReachEnv`'s.
        max_episode_steps: longest episode kept.
        image_size: as :class:`PointReachEnv`'s.
        progress: show a progress bar.

    Returns:
        The path of the ``.h5``.

    Raises:
        UserError: fewer than ``count`` successes in ``10 * count + 10`` episodes.
    """
    from tqdm import tqdm  # the env itself needs the core's dependencies alone

    path = Path(path)
    provenance: dict[str, float] = {"seed": seed, "action_noise": action_noise, "speed": speed, "attempts": 0}
    env = PointReachEnv(goal=goal, max_episode_steps=max_episode_steps, image_size=image_size)
    noise = np.random.default_rng(seed)
    episodes: list[dict] = []
    bar = tqdm(total=count, desc="toy demonstrations", unit="ep", disable=not progress)
    with publishing(path, provenance) as folder, bar, written_at_once(folder / f"{STEM}.h5") as file:
        for episode_seed in demonstration_seeds(seed)[: 10 * count + 10]:
            if len(episodes) == count:
                break
            provenance["attempts"] += 1
            episode = _walk(env, episode_seed, action_noise, speed, noise)
            if not episode["success"][-1]:
                continue
            group = file.create_group(f"traj_{len(episodes)}")
            for key, value in episode.items():
                group.create_dataset(key, data=value)
            episodes.append(
                {
                    "episode_id": len(episodes),
                    "episode_seed": episode_seed,
                    "elapsed_steps": len(episode["actions"]),
                    "success": True,
                }
            )
            bar.update()
        if len(episodes) < count:
            raise UserError(f"only {len(episodes)} of {count} toy demonstrations succeeded; lower action_noise")
        env_info = {"env_id": "PointReach", "env_kwargs": {"goal": goal}, "max_episode_steps": max_episode_steps}
        (folder / f"{STEM}.json").write_text(json.dumps({"env_info": env_info, "episodes": episodes}))
    return path


def _walk(
    env: PointReachEnv, seed: int, action_noise: float, speed: float, noise: np.random.Generator
) -> dict[str, np.ndarray]:
    """One episode of the noisy expert, by the dataset names of a ManiSkill h5."""
    now = env.reset(seed=seed)
    keys = [env.observation_key, *env.image_keys]
    observations, steps = [now.select(*keys)[0]], []
    while not now["done"].any():
        wanted = ((env.goal - env.position) / STEP_SIZE).clamp(-speed, speed)  # (1, 2)
        sample = torch.as_tensor(noise.standard_normal(2), dtype=torch.float32)
        now = env.step(now.set("action", (wanted + action_noise * sample).clamp(-1, 1)))
        steps.append(now.select("action", ("next", "success"), ("next", "terminated"), ("next", "truncated")))
        now = now["next"]
        observations.append(now.select(*keys)[0])
    episode, seen = TensorDict.cat(steps), TensorDict.stack(observations)
    state = seen[env.observation_key].numpy()
    images = {f"obs/{key}": seen[key].permute(0, 2, 3, 1).numpy() for key in env.image_keys}
    return {
        **({"obs/state": state, **images} if images else {"obs": state}),
        "actions": episode["action"].numpy(),
        **{key: episode["next", key].squeeze(-1).numpy() for key in ("success", "terminated", "truncated")},
    }
