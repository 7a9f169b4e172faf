"""A scripted expert for LIBERO-Spatial: picks the bowl up by its rim and places it on the plate."""

from __future__ import annotations

import numpy as np

from dsrl_torchrl.envs.libero_task import Simulation

#: Metres that an action of 1 commands.
METRES = 0.05
#: Of the bowl, in metres: from its middle to where the rim is grasped, and how high above its origin that is.
RIM, GRASP_HEIGHT = 0.053, 0.035
#: Metres above the bowl from which the hand descends, and above the grasp at which it carries.
ABOVE, LIFT = 0.15, 0.16
#: Metres by which the bowl's origin lies above the plate's when it is let go.
RELEASE_HEIGHT = 0.035
OPEN, CLOSED = -1.0, 1.0


class PickAndPlace:
    """The expert in one episode: closed loop on the true poses, so that it corrects noise on its actions, too.

    Carries the first object of interest onto the second, which is what all tasks of LIBERO-Spatial ask for. The hand is
    never turned: its fingers close along the table's y axis, around the rim on the side that faces the target.

    Args:
        simulation: just reset.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._object, self._target = simulation.objects_of_interest[:2]
        self._phases = iter(
            (self._approach, self._descend, self._close, self._lift, self._carry, self._lower, self._open)
        )
        self._phase = next(self._phases)
        self._steps = 0
        self._at = self._hand
        self._side = -1.0 if self._position(self._object)[1] > self._position(self._target)[1] else 1.0

    def action(self) -> np.ndarray:
        """``[7]`` in [-1, 1], for the state that the simulation is in."""
        action, over = self._phase()
        self._steps += 1
        if over:
            self._phase, self._steps, self._at = next(self._phases, self._retreat), 0, self._hand
        return action

    def _approach(self) -> tuple[np.ndarray, bool]:
        above = _up(self._rim, ABOVE)
        error = np.abs(above - self._hand)
        return self._towards(above, OPEN), bool(np.hypot(*error[:2]) < 0.008 and error[2] < 0.03)

    def _descend(self) -> tuple[np.ndarray, bool]:
        grasp = _up(self._rim, GRASP_HEIGHT)
        near = float(np.linalg.norm(grasp - self._hand)) < 0.008
        return self._towards(grasp, OPEN, speed=0.6), near or self._steps > 60

    def _close(self) -> tuple[np.ndarray, bool]:
        return self._towards(self._at, CLOSED), self._steps >= 12

    def _lift(self) -> tuple[np.ndarray, bool]:
        above = _up(self._at, LIFT)
        return self._towards(above, CLOSED, speed=0.8), self._hand[2] > above[2] - 0.02 or self._steps > 60

    def _carry(self) -> tuple[np.ndarray, bool]:
        goal = self._held_over_target(self._at[2])
        off = np.linalg.norm((self._position(self._object) - self._position(self._target))[:2])
        return self._towards(goal, CLOSED, speed=0.8), bool(off < 0.012) or self._steps > 100

    def _lower(self) -> tuple[np.ndarray, bool]:
        above = self._position(self._object)[2] - self._position(self._target)[2]
        goal = self._held_over_target(self._hand[2] - above + 0.02)
        return self._towards(goal, CLOSED, speed=0.5), bool(above < RELEASE_HEIGHT) or self._steps > 50

    def _open(self) -> tuple[np.ndarray, bool]:
        return self._towards(self._at, OPEN), self._steps >= 10

    def _retreat(self) -> tuple[np.ndarray, bool]:
        return self._towards(_up(self._at, ABOVE), OPEN), False

    @property
    def _hand(self) -> np.ndarray:
        return self._simulation.robot_state()[:3]

    @property
    def _rim(self) -> np.ndarray:
        return self._position(self._object) + np.array([0, self._side * RIM, 0])

    def _position(self, name: str) -> np.ndarray:
        return self._simulation.pose(name)[0].copy()

    def _held_over_target(self, height: float) -> np.ndarray:
        """Where the hand has to be so that what it holds is above the target."""
        offset = self._hand - self._position(self._object)
        return np.append((self._position(self._target) + offset)[:2], height)

    def _towards(self, goal: np.ndarray, gripper: float, speed: float = 1.0) -> np.ndarray:
        """At most ``speed`` in the fastest dimension, slower near the goal."""
        motion = (goal - self._hand) / METRES
        motion = motion / max(np.abs(motion).max() / speed, 1.0)
        return np.array([*motion, 0.0, 0.0, 0.0, gripper])


def _up(position: np.ndarray, metres: float) -> np.ndarray:
    return position + np.array([0, 0, metres])
