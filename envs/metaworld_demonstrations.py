"""Demonstrations in Meta-World: its scripted experts, with noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dsrl_torchrl.envs.metaworld import CAMERAS, MetaWorldEnv, import_metaworld
from dsrl_torchrl.envs.scripted_demonstrations import record_scripted

#: The hand's displacement; noise on the gripper would drop what it holds.
HAND = (0, 1, 2)


def make_metaworld_demonstrations(
    path: str | Path,
    env_id: str,
    count: int,
    seed: int = 0,
    action_noise: float = 0.5,
    max_episode_steps: Annotated[int, Field(ge=1)] = 500,
    state: Literal["full", "proprioception"] = "full",
    image_size: Annotated[int, Field(ge=8, le=2048)] | None = None,
    cameras: Mapping[str, str] = CAMERAS,
    progress: bool = True,
) -> Path:
    """Records ``count`` successful episodes of Meta-World's scripted expert.

    As :func:`~dsrl_torchrl.envs.scripted_demonstrations.record_scripted` says; the noise is on the hand alone.

    Args:
        path: the ``.h5`` to write; the ``.json`` goes beside it.
        env_id: one of the 50 tasks.
        count: number of episodes.
        seed: the run's.
        action_noise: standard deviation, in units of the action.
        max_episode_steps: longest episode kept.
        state: as :class:`~dsrl_torchrl.envs.metaworld.MetaWorldEnv`'s.
        image_size: as there.
        cameras: as there.
        progress: show a progress bar.

    Returns:
        The path of the ``.h5``.

    Raises:
        UserError: as :class:`~dsrl_torchrl.envs.metaworld.MetaWorldEnv`, or too few successes.
    """
    env = MetaWorldEnv(env_id, 1, max_episode_steps, state=state, cameras=cameras, image_size=image_size)
    _, experts = import_metaworld()
    return record_scripted(
        path,
        env,
        partial(_expert, env, experts[env_id]),
        count,
        env_info={"env_id": env_id, "env_kwargs": {"state": state}, "max_episode_steps": max_episode_steps},
        seed=seed,
        action_noise=action_noise,
        noisy=HAND,
        progress=progress,
    )


def _expert(env: MetaWorldEnv, policy_class: type[Any]) -> Callable[[], np.ndarray]:
    """A new one for each episode: some remember how far they have got."""
    policy = policy_class()

    def act() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it asks for more than the env's range, at every other step
            return np.asarray(policy.get_action(env.full_state[0]), dtype=np.float64)

    return act
