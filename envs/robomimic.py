"""The simulated tasks of robomimic, in robosuite, as the checkpoints of DPPO have them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from tensordict.utils import NestedKey

from dsrl_torchrl.data.demonstration_transitions import step_penalty
from dsrl_torchrl.envs.episodic import EpisodicEnv
from dsrl_torchrl.errors import UserError

Task = Literal["lift", "can", "square", "transport"]


class Settings(NamedTuple):
    """Of one task: robosuite's name, the robots, and the time limit that DPPO trains with."""

    name: str
    robots: int
    max_episode_steps: int


TASKS = {
    "lift": Settings("Lift", 1, 300),
    "can": Settings("PickPlaceCan", 1, 300),
    "square": Settings("NutAssemblySquare", 1, 400),
    "transport": Settings("TwoArmTransport", 2, 800),
}
#: Of each robot, in this order.
OF_A_ROBOT = ("eef_pos", "eef_quat", "gripper_qpos")
OBJECTS = "object-state"
#: What robomimic's data sets were recorded with: displacements of at most 5 cm and 0.5 rad a step at 20 Hz.
CONTROLLER = {
    "type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "damping": 1, "impedance_mode": "fixed",
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp_limits": [0, 300], "damping_limits": [0, 10], "position_limits": None, "orientation_limits": None,
    "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
CONTROL_FREQ = 20
#: Whose physics, observations and placements the published checkpoints know.
VERSION = "1.4.1"


class RobomimicEnv(EpisodicEnv):
    """A robomimic task by state, ``N`` simulations one after the other.

    Entries, ends and seeds as :class:`~dsrl_torchrl.envs.episodic.EpisodicEnv` has them. The observation is DPPO's
    ``low_dim_keys`` in their order, as robosuite gives them: end effector's position and quaternion (x, y, z, w) and
    the gripper's joints of each robot, then the objects: 19 for ``lift``, 23 for ``can`` and ``square``, 59 for
    ``transport``. Actions are robosuite's, 7 a robot in [-1, 1]. Observations and actions are not normalised here: a
    checkpoint's own ``normalization.npz`` belongs to the policy. robomimic's own checkpoints read the same numbers in
    the alphabetical order of their names, the objects first: ``state_order``. ``success`` is robosuite's. The same seed
    and actions give the same episode bit for bit, in any env and process. (Unlike robomimic, which builds the scene
    anew in every episode, the 2 cm cube of ``lift`` doesn't vary by a millimetre in size.)

    Args:
        env_id: ``lift``, ``can``, ``square`` or ``transport``.
        num_envs: ``N``.
        max_episode_steps: time limit in env steps; ``None`` takes DPPO's: 300, 300, 400, 800.
        success_bonus: the reward is ``-1 + success_bonus * success``.
        terminate_on_success: ``False`` runs every episode to its time limit, for evaluation.
        seed: seeds the stream of starts; ``None`` takes fresh entropy.
        device: where the tensors live; the simulation is on the CPU.
        observation_key: name of the observation's entry.
        state_order: ``dppo``, or ``robomimic``, with the objects first.

    Raises:
        UserError: another task, or robosuite 1.4.1 is not installed.
    """

    def __init__(
        self,
        env_id: Task = "lift",
        num_envs: Annotated[int, Field(ge=1)] = 1,
        max_episode_steps: Annotated[int, Field(ge=1)] | None = None,
        success_bonus: float = 1.0,
        terminate_on_success: bool = True,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        observation_key: NestedKey = "observation",
        state_order: Literal["dppo", "robomimic"] = "dppo",
    ) -> None:
        if env_id not in TASKS:
            raise UserError(f"unknown robomimic task {env_id!r}; one of {', '.join(TASKS)}")
        self.settings = TASKS[env_id]
        self._sims = [_make(self.settings) for _ in range(num_envs)]
        robots = range(self.settings.robots)
        of_robots = [f"robot{robot}_{part}" for robot in robots for part in OF_A_ROBOT]
        self._names = [OBJECTS, *of_robots] if state_order == "robomimic" else [*of_robots, OBJECTS]
        state = self._read(self._sims[0].observation_spec())
        low, high = self._sims[0].action_spec
        super().__init__(
            num_envs=num_envs,
            obs_dim=len(state),
            low=torch.as_tensor(low),
            high=torch.as_tensor(high),
            terminate_on_success=terminate_on_success,
            seed=seed,
            device=device,
            observation_key=observation_key,
        )
        self.is_closed = False  # EnvBase starts closed
        self.env_id, self.success_bonus = env_id, success_bonus
        self.max_episode_steps = max_episode_steps or self.settings.max_episode_steps
        self._state = np.zeros((num_envs, len(state)))
        self._success = np.zeros(num_envs, dtype=bool)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)

    def __repr__(self) -> str:
        return f"RobomimicEnv({self.env_id}, num_envs={self.batch_size.numel()})"

    def _read(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([np.ravel(observation[name]) for name in self._names])

    def _start(self, seeds: list[int], env_idx: torch.Tensor | None, asked: bool) -> tuple[torch.Tensor, torch.Tensor]:
        for index in range(len(seeds)) if env_idx is None else env_idx.tolist():
            with _numpy_seeded(seeds[index]):
                self._state[index] = self._read(self._sims[index].reset())
            self._success[index], self._elapsed[index] = bool(self._sims[index]._check_success()), 0
        return torch.from_numpy(self._state), torch.from_numpy(self._success)

    def _advance(
        self, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        for index, one in enumerate(action.cpu().double().numpy().clip(-1, 1)):
            observation, _, _, _ = self._sims[index].step(one)
            self._state[index] = self._read(observation)
            self._success[index] = bool(self._sims[index]._check_success())
        self._elapsed += 1
        success = torch.from_numpy(self._success)
        cut = torch.from_numpy(self._elapsed >= self.max_episode_steps)
        return torch.from_numpy(self._state), success, step_penalty(success, self.success_bonus), success, cut

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Frees the simulations."""
        if not self.is_closed:
            for sim in self._sims:
                sim.close()
        super().close(raise_if_closed=raise_if_closed)


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """robosuite 1.4 places objects and arms by NumPy's global generator, which is left as it was."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def _make(settings: Settings) -> Any:
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # asks for a private macro file
    try:
        import robosuite
    except ImportError as error:
        raise UserError(
            f"robosuite cannot be imported ({error}): pip install 'dsrl-torchrl[robomimic]', in a venv of its own"
        ) from None
    if robosuite.__version__ != VERSION:
        raise UserError(f"robomimic's tasks are those of robosuite {VERSION}; {robosuite.__version__} is installed")
    more = {"env_configuration": "single-arm-opposed"} if settings.robots == 2 else {}
    with _numpy_seeded(0):  # the sizes of some objects are drawn now: the same in every env and process
        return robosuite.make(
            settings.name,
            robots=["Panda"] * settings.robots,
            controller_configs=copy.deepcopy(CONTROLLER),
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=True,
            ignore_done=True,  # the time limit is ours
            control_freq=CONTROL_FREQ,
            hard_reset=False,  # the scene stays, and with it these sizes: a reset takes milliseconds
            **more,
        )
