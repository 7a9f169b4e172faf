"""One LIBERO task: its simulation, its recorded starts, its instruction, quietly and with one-line mistakes."""

from __future__ import annotations

import importlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsrl_torchrl.errors import UserError

#: LIBERO's own; the package knows their variations (LIBERO-PRO) by further names.
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
#: Placements are drawn until no two objects touch; LIBERO itself would draw for ever.
PLACEMENTS = 1_000


@dataclass(frozen=True)
class LiberoTask:
    """What the suite has recorded of a task."""

    name: str  #: of its BDDL file
    instruction: str  #: what a language-conditioned policy is told
    bddl: Path  #: the scene and the goal
    starts: np.ndarray  #: ``[50, 1 + nq + nv]``: MuJoCo's time, positions and velocities


def find_task(suite: str, number: int) -> LiberoTask:
    """Looks a task up.

    Raises:
        UserError: LIBERO is not installed, or has no such suite or task.
    """
    benchmark = _import("libero.libero.benchmark")
    known = benchmark.get_benchmark_dict()
    if suite.lower() not in known:
        raise UserError(f"unknown LIBERO suite {suite!r}; one of {', '.join(SUITES)}")
    with redirect_stdout(io.StringIO()):  # it tells in which order it has put its tasks
        tasks = known[suite.lower()]()
    if not 0 <= number < tasks.get_num_tasks():
        raise UserError(f"{suite} has the tasks 0..{tasks.get_num_tasks() - 1}, got {number}")
    task = tasks.get_task(number)
    try:
        starts = np.asarray(tasks.get_task_init_states(number), dtype=np.float64)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"task {number} of {suite} has no initial states that can be read ({reason})") from None
    folder = _import("libero.libero").get_libero_path("bddl_files")
    return LiberoTask(task.name, task.language, Path(folder) / task.problem_folder / task.bddl_file, starts)


class Simulation:
    """The robosuite env of a task, without a renderer, that forgets its last episode: 300 MB, 2 to 4 CPU seconds.

    Panda arm, ``OSC_POSE``: ``[7]`` in [-1, 1], 5 cm and 0.5 rad a step for 1, and the gripper (-1 opens, 1 closes); 20
    steps a second.
    """

    def __init__(self, task: LiberoTask) -> None:
        wrapper = _import("libero.libero.envs.env_wrapper").ControlEnv(
            bddl_file_name=str(task.bddl),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            ignore_done=True,  # the time limit is ours
            hard_reset=False,  # loading the scene again takes 2 seconds and changes nothing
        )
        self.env = wrapper.env
        model = self.model
        self._fixtures = model.body_pos.copy(), model.body_quat.copy()
        self.objects_of_interest: list[str] = list(self.env.obj_of_interest)

    @property
    def model(self) -> Any:
        """MuJoCo's ``MjModel``."""
        return self.env.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's ``MjData``."""
        return self.env.sim.data._data

    def reset(self, seed: int, state: np.ndarray | None = None) -> None:
        """Begins an episode, which depends on the arguments alone.

        LIBERO draws placements from NumPy's global generator, which is as it was afterwards.

        Args:
            seed: of the placement of fixtures and, without ``state``, of all objects.
            state: a recorded start ``[1 + nq + nv]``.
        """
        from robosuite.utils.errors import RandomizationError

        # What a reset of robosuite's leaves as it was: where the fixtures stand, from which it places what stands on
        # them, and how far the gripper was told to close.
        self.model.body_pos[:], self.model.body_quat[:] = self._fixtures
        for robot in self.env.robots:
            robot.gripper.current_action = np.zeros(robot.gripper.dof)
        with _numpy_seeded(seed):
            for _ in range(PLACEMENTS):
                try:
                    self.env.reset()
                    break
                except RandomizationError:
                    continue
            else:
                raise UserError(f"LIBERO finds no placement of the objects for seed {seed} in {PLACEMENTS} attempts")
        if state is not None:
            self.env.sim.set_state_from_flattened(state)
            self.env.sim.forward()
            self.env._post_process()
            self.env._update_observables(force=True)

    def step(self, action: np.ndarray) -> None:
        """One control step with ``[7]``."""
        self.env.step(action)

    def robot_state(self) -> np.ndarray:
        """``[8]``: end effector (metres), its axis-angle (radians), finger joints (metres).

        As robosuite measures them: at the first of a step's 25 substeps, so that they lag by nearly a step. What
        policies were trained on lags as well.
        """
        robot = self.env._get_observations()
        rotation = axis_angle(robot["robot0_eef_quat"])
        return np.concatenate([robot["robot0_eef_pos"], rotation, robot["robot0_gripper_qpos"]])

    def pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position ``[3]`` in metres and rotation ``[3, 3]`` of an object or a fixture, now."""
        body = self.env.obj_body_id[name]
        return self.data.xpos[body], self.data.xmat[body].reshape(3, 3)

    def state(self) -> np.ndarray:
        """MuJoCo's time, positions and velocities, ``[1 + nq + nv]``: what :meth:`reset` takes."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def success(self) -> bool:
        """Whether LIBERO's goal predicate holds now."""
        return bool(self.env._check_success())

    def close(self) -> None:
        """Frees the simulation."""
        self.env.close()


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """A rotation ``[4]`` (x, y, z, w) as its axis times its angle, ``[3]`` in radians, robosuite's convention.

    The angle is in [0, 2π], so that a hand that points down (angle π) does not jump.
    """
    w = np.clip(quaternion[3], -1.0, 1.0)
    sine = np.sqrt(1.0 - w * w)
    return np.zeros(3) if sine < 1e-6 else quaternion[:3] * 2.0 * np.arccos(w) / sine


def _import(name: str) -> Any:
    _choose_gl()
    # robosuite warns on every import that nobody has written a private macro file.
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"LIBERO is not installed ({error}): pip install 'dsrl-torchrl[libero]'") from None
    # robosuite loads OpenGL at once, which fails in any way where there is none, or MUJOCO_GL is odd.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"LIBERO cannot be imported ({reason}): it needs OpenGL's libraries (Debian: libegl1 libgl1-mesa-dri), "
            "also where nothing is drawn; MUJOCO_GL may be egl or osmesa"
        ) from None
    finally:
        logging.disable(disabled)


def _choose_gl() -> None:
    """robosuite reads once how to render, and on which device; where nobody says it: EGL on the first."""
    os.environ.setdefault("MUJOCO_GL", "egl")
    # It refuses a device that CUDA_VISIBLE_DEVICES hides, and knows devices by number only.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if os.environ["MUJOCO_GL"] == "egl" and (not visible or visible.isdigit()):
        os.environ.setdefault("MUJOCO_EGL_DEVICE_ID", visible or "0")


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
