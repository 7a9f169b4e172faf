"""N CPU simulations behind the interface of ManiSkill's GPU simulation, whose Python runs once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsrl_torchrl.envs.simulation_buffer import Buffer, Part


class ContactQuery:
    """Contact impulses of bodies or of pairs of bodies, N s, ``cuda_impulses.torch()`` ``[n, 3]``."""

    def __init__(self, impulse: Callable[[Any], np.ndarray], asked: Sequence[Any]) -> None:
        self._impulse, self._asked = impulse, asked

    @property
    def cuda_impulses(self) -> ContactQuery:
        return self

    def torch(self) -> Tensor:
        return torch.from_numpy(np.stack([self._impulse(each) for each in self._asked])).to(torch.float32)


class BatchedPhysics:
    """What ManiSkill's state-based tasks use of ``sapien.physx.PhysxGpuSystem``, on one ``PhysxCpuSystem`` an env.

    ManiSkill is written twice: for one CPU simulation, whose Python and torch run once per env, and for a batch of envs
    on the GPU. This is the second half on the physics of the first: every number is what the CPU simulation gives.

    Args:
        systems: one for each env.
    """

    def __init__(self, systems: Sequence[Any]) -> None:
        self.systems = systems
        self._contacts: dict[int, list[Any]] = {}

    @property
    def timestep(self) -> float:
        """Seconds of one step."""
        return self.systems[0].timestep

    @timestep.setter
    def timestep(self, seconds: float) -> None:
        for system in self.systems:
            system.timestep = seconds

    def step(self, envs: Iterable[int] | None = None) -> None:
        """One step of the given envs, of all by default."""
        for env in range(len(self.systems)) if envs is None else envs:
            self.systems[env].step()
            self._contacts.pop(env, None)

    def place(self, scene: Any) -> None:
        """Gives the actors, links, articulations and joints of a ManiSkill scene their rows, and makes the buffers."""
        bodies: dict[Any, Any] = {}  # component -> what has its pose, in the order of their rows
        articulations: list[Any] = []
        for actor in (*scene.actors.values(), *scene.actor_views.values()):
            if actor.px_body_type != "static":
                _index_bodies(
                    actor, bodies, [ActorBody(*each) for each in zip(actor._objs, actor._bodies, strict=True)]
                )
        for articulation in (*scene.articulations.values(), *scene.articulation_views.values()):
            articulations += [each for each in articulation._objs if each not in articulations]
            rows = torch.tensor([articulations.index(each) for each in articulation._objs], dtype=torch.int32)
            articulation._data_index = rows
            for joint in articulation.joints or ():
                joint._data_index = rows
            for link in articulation.links or (articulation.root,):
                _index_bodies(link, bodies, [LinkBody(component) for component in link._objs])
        self.cuda_rigid_body_data = _body_buffer(list(bodies.values()), self.forget)
        for name in ("qpos", "qvel", "qf", "qacc"):
            setattr(self, f"cuda_articulation_{name}", _joint_buffer(articulations, name, self.forget))
        self.cuda_articulation_target_qpos = _drive_buffer(articulations, "drive_target")
        self.cuda_articulation_target_qvel = _drive_buffer(articulations, "drive_velocity_target")

    def forget(self) -> None:
        """The simulation has moved: everything but the drives' targets is read anew."""
        for name in (
            "rigid_body_data",
            "articulation_qpos",
            "articulation_qvel",
            "articulation_qf",
            "articulation_qacc",
        ):
            getattr(self, f"cuda_{name}").forget()

    def gpu_update_articulation_kinematics(self) -> None:
        """Nothing: the CPU simulation moves the links as soon as joints are set."""

    def gpu_create_contact_pair_impulse_query(self, pairs: Sequence[tuple[Any, Any]]) -> ContactQuery:
        """Of one pair of bodies in each env."""
        from mani_skill.utils.sapien_utils import get_pairwise_contact_impulse

        def impulse(asked: tuple[int, tuple[Any, Any]]) -> np.ndarray:
            env, (first, second) = asked
            return get_pairwise_contact_impulse(self._contacts_of(env), first.entity, second.entity)

        return ContactQuery(impulse, list(enumerate(pairs)))

    def gpu_create_contact_body_impulse_query(self, bodies: Sequence[Any]) -> ContactQuery:
        """Of the given bodies with all others; env by env, as often as there are bodies of an env."""
        from mani_skill.utils.sapien_utils import compute_total_impulse, get_cpu_actor_contacts

        def impulse(asked: tuple[int, Any]) -> np.ndarray:
            index, body = asked
            contacts = self._contacts_of(index % len(self.systems))
            return compute_total_impulse(get_cpu_actor_contacts(contacts, body.entity))

        return ContactQuery(impulse, list(enumerate(bodies)))

    def gpu_query_contact_pair_impulses(self, query: ContactQuery) -> None:
        """Nothing: a query computes when it is read."""

    gpu_query_contact_body_impulses = gpu_query_contact_pair_impulses

    def _contacts_of(self, env: int) -> list[Any]:
        if env not in self._contacts:
            self._contacts[env] = self.systems[env].get_contacts()
        return self._contacts[env]


class ActorBody:
    """Pose and velocities of an actor, read and set as ManiSkill does on the CPU."""

    def __init__(self, entity: Any, component: Any) -> None:
        self._entity, self._component = entity, component

    def pose(self) -> Any:
        return self._entity.pose

    def velocity(self, name: str) -> np.ndarray:
        return getattr(self._component, f"{name}_velocity")

    def set_pose(self, pose: Any) -> None:
        self._entity.pose = pose

    def set_velocity(self, name: str, values: np.ndarray) -> None:
        setattr(self._component, f"{name}_velocity", values)


class LinkBody:
    """Those of a link. Its velocity is what its joints make of it; that of the root link can be set."""

    def __init__(self, component: Any) -> None:
        self._component = component

    def pose(self) -> Any:
        return self._component.entity_pose

    def velocity(self, name: str) -> np.ndarray:
        return getattr(self._component, f"{name}_velocity")

    def set_pose(self, pose: Any) -> None:
        self._component.pose = pose

    def set_velocity(self, name: str, values: np.ndarray) -> None:
        setattr(self._component.articulation, f"root_{name}_velocity", values)


def _index_bodies(struct: Any, bodies: dict[Any, Any], own: Sequence[ActorBody | LinkBody]) -> None:
    struct._body_data_name = "cuda_rigid_body_data"
    for component, body in zip(struct._bodies, own, strict=True):
        bodies.setdefault(component, body)
    order = {component: row for row, component in enumerate(bodies)}
    struct._body_data_index_internal = torch.tensor([order[component] for component in struct._bodies])


def _body_buffer(bodies: Sequence[ActorBody | LinkBody], moved: Callable[[], None]) -> Buffer:
    import sapien

    def read_pose(row: int) -> np.ndarray:
        pose = bodies[row].pose()
        return np.concatenate((pose.p, pose.q))

    def write_pose(row: int, values: np.ndarray, chosen: np.ndarray) -> None:
        bodies[row].set_pose(sapien.Pose(values[:3], values[3:]))

    def velocity(name: str, columns: slice) -> Part:
        return Part(
            columns,
            lambda row: bodies[row].velocity(name),
            lambda row, values, chosen: bodies[row].set_velocity(name, values),
        )

    parts = (
        Part(slice(0, 7), read_pose, write_pose),
        velocity("linear", slice(7, 10)),
        velocity("angular", slice(10, 13)),
    )
    return Buffer(len(bodies), parts, moved)


def _joint_buffer(articulations: Sequence[Any], name: str, moved: Callable[[], None]) -> Buffer:
    def write(row: int, values: np.ndarray, chosen: np.ndarray) -> None:
        setattr(articulations[row], name, values[: articulations[row].dof])

    part = Part(_joints(articulations), lambda row: getattr(articulations[row], name), write)
    return Buffer(len(articulations), (part,), moved)


def _drive_buffer(articulations: Sequence[Any], name: str) -> Buffer:
    joints = [articulation.active_joints for articulation in articulations]

    def read(row: int) -> list[float]:
        return [getattr(joint, name)[0] for joint in joints[row]]

    def write(row: int, values: np.ndarray, chosen: np.ndarray) -> None:
        for j in np.flatnonzero(chosen).tolist():
            setattr(joints[row][j], name, values[j : j + 1])

    return Buffer(len(articulations), (Part(_joints(articulations), read, write),), moved=lambda: None)


def _joints(articulations: Sequence[Any]) -> slice:
    return slice(0, max((each.dof for each in articulations), default=1))
