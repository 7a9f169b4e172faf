"""A ManiSkill task's state without what only a simulator knows, for policies that look through cameras."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def hide_privileged_state(sim: Any) -> None:
    """Makes a task's flat state what ManiSkill itself gives beside pictures.

    Joint positions and velocities, and of the task's own entries those that a robot has or is told: PickCube's pose of
    the gripper, whether it holds something, and the goal; not where the cube is. Which these are is the task's: it asks
    for the observation mode.

    Args:
        sim: an unwrapped ManiSkill task in observation mode ``state``.
    """
    from mani_skill.envs.utils.observations import parse_obs_mode_to_struct

    whole, shown = sim._get_obs_state_dict, parse_obs_mode_to_struct("rgb")

    def proprioception(info: dict) -> dict[str, Tensor]:
        asked, sim._obs_mode, sim.obs_mode_struct = (sim._obs_mode, sim.obs_mode_struct), "rgb", shown
        try:
            return whole(info)
        finally:
            sim._obs_mode, sim.obs_mode_struct = asked

    sim._get_obs_state_dict = proprioception
    sim.update_obs_space(sim.get_obs())
