"""What an env must be to make macro steps: looked at before the first one."""

from __future__ import annotations

from collections.abc import Iterator

from tensordict.utils import NestedKey
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.transforms import (
    AutoResetTransform,
    Compose,
    Transform,
    VecGymEnvTransform,
)

from dsrl_torchrl.errors import UserError

DONE_KEYS = {"done", "terminated", "truncated"}


def innermost(env: EnvBase) -> EnvBase:
    """What is below all transforms: the simulator, or the worker processes of several."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env


def transforms_of(env: EnvBase) -> Iterator[Transform]:
    """From the outermost env inwards; a ``ParallelEnv`` is not asked: it would start its workers."""
    while isinstance(env, TransformedEnv):
        yield from single_transforms(env.transform)
        env = env.base_env


def single_transforms(transform: Transform) -> Iterator[Transform]:
    """The transforms of a chain of chains, from the env upwards."""
    if isinstance(transform, Compose):
        for part in transform:
            yield from single_transforms(part)
    else:
        yield transform


def check_primitive_env(env: EnvBase) -> None:
    """Refuses an env whose steps cannot be put together.

    Raises:
        UserError: an env that resets itself, as far as it can be seen (TorchRL's ``auto_reset``, vector envs of
            gymnasium), entries under other names than ``action``, ``reward``, ``done``, an action that is not a vector
            of real numbers, or a reward or done flag that is not ``[*B, 1]``.
    """
    for transform in transforms_of(env):
        if isinstance(transform, (AutoResetTransform, VecGymEnvTransform)):
            raise UserError(
                f"macro steps need an env that does not reset itself, but {type(transform).__name__} is there for one "
                "that does: leave auto_reset out (gymnasium's vector envs: autoreset_mode=AutoresetMode.DISABLED)"
            )
    _check_names("action", env.action_keys, {"action"})
    _check_names("reward", env.reward_keys, {"reward"})
    _check_names("done", env.done_keys, DONE_KEYS)
    batch = tuple(env.batch_size)
    action = env.full_action_spec["action"]
    if not action.dtype.is_floating_point or tuple(action.shape[:-1]) != batch:
        raise UserError(
            f"macro steps need an action {_shape(batch, 'action_dim')} of real numbers, got {list(action.shape)} "
            f"{action.dtype}"
        )
    for name, spec in (("reward", env.full_reward_spec["reward"]), ("done", env.full_done_spec["done"])):
        if tuple(spec.shape) != (*batch, 1):
            raise UserError(f"macro steps need a {name} {_shape(batch, '1')}, got {list(spec.shape)}")


def _check_names(what: str, keys: list[NestedKey], expected: set[str]) -> None:
    # No set of keys: a nested one would do, but a list of two of the same agent's would pass for one.
    if not keys or not all(key in expected for key in keys):
        names = ", ".join(map(repr, keys)) or "none"
        raise UserError(
            f"macro steps need the env's {what} under the name {what!r}, got {names}: "
            "rename it below, by TorchRL's RenameTransform"
        )


def _shape(batch: tuple[int, ...], last: str) -> str:
    return f"[{', '.join([*map(str, batch), last])}]"
