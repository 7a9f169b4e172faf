"""``dsrl demos``: the task's demonstrations."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.envs import EnvBase

from dsrl_torchrl.cli.config import RunConfig, TaskOptions
from dsrl_torchrl.cli.steps.base import policy_keys
from dsrl_torchrl.cli.targets import make
from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.data.readers.any_format import read_any
from dsrl_torchrl.envs.trajectory_file import RECORDING
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.base_features import BASE_FEATURES_KEY
from dsrl_torchrl.networks.encoders import PixelEncoder

FILE = "trajectory.h5"


@dataclass(frozen=True)
class TaskInterface:
    """What the task's env gives and takes, which its demonstrations must fit."""

    shapes: Mapping[NestedKey, tuple[int, ...]]  #: entry -> the shape of one observation
    low: Tensor  #: lowest action, ``[action_dim]``
    high: Tensor  #: highest action, ``[action_dim]``
    instruction: str | None = None  #: the task in words, where the env has it


def task_interface(task: TaskOptions) -> TaskInterface:
    """Makes the task's env once, which takes a simulator seconds, and closes it."""
    env = make(task.env)
    if not isinstance(env, EnvBase):
        raise UserError(f"task.env: {task.env['_target_']} should make a TorchRL env, it made a {type(env).__name__}")
    try:
        entries = env.observation_spec.items(True, True)
        space = env.action_spec.space
        low, high = (bound.reshape(-1, bound.shape[-1])[0].cpu() for bound in (space.low, space.high))
        shapes = {key: tuple(spec.shape[env.batch_dims :]) for key, spec in entries}
        return TaskInterface(shapes, low, high, env.__dict__.get("instruction"))
    finally:
        env.close()


def check_entries(interface: TaskInterface, config: RunConfig) -> None:
    """Raises :class:`UserError` for what a cloned policy or the networks are to read and the env has not, or too small.

    Before demonstrations are recorded: to find it with them takes as long as they do.
    """
    networks, policy = config.networks, config.base_policy.policy
    cloned = policy_keys(policy) if config.base_policy.load is None and policy is not None else []
    read = [key for key in networks.in_keys or () if key != BASE_FEATURES_KEY]
    for option, keys in (("base_policy.policy", cloned), ("networks.in_keys", read)):
        for key in keys:
            if key not in interface.shapes:
                raise UserError(
                    f"{option} reads {entry_name(key)}, but task.env gives "
                    f"{', '.join(map(entry_name, interface.shapes))}: pictures need task.env.image_size, and an entry "
                    "of task.env.cameras each where there are several"
                )
    encoded = read if networks.in_keys is not None or config.latent.base_features else cloned
    with torch.random.fork_rng(devices=[]):
        for make_pixels, keys in ((PixelEncoder, cloned), (networks.encoders["pixels"], encoded)):
            for shape in (interface.shapes[key] for key in keys):
                if len(shape) == 3:
                    make_pixels(shape)


def record_demonstrations(task: TaskOptions, path: Path, *, seed: int, progress: bool) -> None:
    """Records ``task.demonstrations.count`` episodes with the task's generator, in a folder of this run alone."""
    for interrupted in path.parent.glob(f"{RECORDING}*"):
        shutil.rmtree(interrupted)
    demonstrations = task.demonstrations
    make(
        task.generator_spec,
        path=str(path),
        count=demonstrations.count,
        action_noise=demonstrations.action_noise,
        seed=seed,
        progress=progress,
    )


def read_task_demonstrations(task: TaskOptions, path: Path, interface: TaskInterface | None = None) -> list[Episode]:
    """The successful episodes of ``path``, in the task's control mode and, if ``interface`` is given, of its sizes."""
    entries = {_key(name): dataset for name, dataset in task.demonstrations.entries.items()}
    return read_any(
        path,
        entries=entries,
        control_mode=task.control_mode or None,
        action_dim=None if interface is None else len(interface.low),
        shapes=None if interface is None else {key: s for key, s in interface.shapes.items() if key in entries},
        instruction=None if interface is None else interface.instruction,
    )


def _key(name: str) -> str | tuple[str, ...]:
    """``agent.state`` is the nested entry ``("agent", "state")``."""
    return tuple(name.split(".")) if "." in name else name
