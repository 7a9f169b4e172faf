"""Any gymnasium env with a flat or a dict observation: its own success, or its own reward."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from tensordict.utils import NestedKey

from dsrl_torchrl.data.demonstration_transitions import step_penalty
from dsrl_torchrl.envs.episodic import EpisodicEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import shown

CHANNELS = (1, 3, 4)
#: What the name of a success has in it, so that another key of ``info`` is taken for the one that was meant.
SUCCESS_WORDS = ("succe", "solved", "won")
#: Packages that register envs when they are imported, under names without a ``module:`` before them.
REGISTERS = ("gymnasium_robotics",)


class GymnasiumEnv(EpisodicEnv):
    """``N`` gymnasium envs one after the other, made by ``gymnasium.make``.

    Entries, ends and seeds as :class:`~dsrl_torchrl.envs.episodic.EpisodicEnv` has them; how far a seed determines an
    episode is the env's to say. ``terminated`` is the env's own or a success; an env that has ended is not stepped
    again before its reset. The time limit is ours: the env's ``TimeLimit`` is left out. With
    ``terminate_on_success=False`` a success does not end the episode; what the env itself ends then does so as
    ``truncated``, since it can't be stepped on.

    Args:
        env_id: e.g. ``FetchReach-v4``, or ``my_package:Mine-v0``, which imports ``my_package``.
        num_envs: ``N``.
        max_episode_steps: time limit in env steps; ``None`` keeps the one that the env is registered with.
        success_key: name in ``info`` of the success, a flag or 0 and 1; missing means no success, with a warning where
            no ``info`` had it up to the first episode's end. ``None`` for envs that know none: the return is what
            counts, and ``reward`` has to be ``env``.
        reward: ``step_penalty`` is ``-1 + success_bonus * success``, ``env`` the env's own.
        success_bonus: see ``step_penalty``.
        terminate_on_success: ``False`` runs on after success, for evaluation.
        observation_keys: of a dict observation, what is flattened to the state, in this order (``a.b`` lies deeper);
            ``None`` takes all vectors and numbers in the space's own order, and no maps, which have more axes.
        images: of a dict observation, entry -> name of a uint8 picture ``[H, W, C]``, channels last. The env draws it
            at every step.
        kwargs: further arguments of ``gymnasium.make``.
        seed: seeds the stream of starts; ``None`` takes fresh entropy.
        device: where the tensors live.
        observation_key: name of the state's entry.

    Raises:
        UserError: an unknown env or one that needs what is not installed, no time limit, actions that are not bounded
            vectors, observations that are not there, or, at a step, a success that ``info`` has under another name.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: Annotated[int, Field(ge=1)] = 1,
        max_episode_steps: Annotated[int, Field(ge=1)] | None = None,
        success_key: str | None = "is_success",
        reward: Literal["step_penalty", "env"] = "step_penalty",
        success_bonus: float = 1.0,
        terminate_on_success: bool = True,
        observation_keys: Sequence[str] | None = None,
        images: Mapping[str, str] = {},
        kwargs: Mapping[str, Any] = {},
        seed: int | None = None,
        device: torch.device | str = "cpu",
        observation_key: NestedKey = "observation",
    ) -> None:
        if success_key is None and reward == "step_penalty":
            raise UserError(f"{env_id} without success_key needs reward=env: a step penalty would never end")
        self._envs = [_make(env_id, kwargs) for _ in range(num_envs)]
        spec, space = self._envs[0].spec, self._envs[0].action_space
        limit = max_episode_steps or _registered_limit(env_id) or spec.max_episode_steps
        if limit is None:
            raise UserError(f"{env_id} has no time limit of its own: set max_episode_steps")
        bounds = [getattr(space, name, None) for name in ("low", "high")]
        if any(bound is None or bound.ndim != 1 or not np.isfinite(bound).all() for bound in bounds):
            raise UserError(f"{env_id} should take bounded action vectors, it takes {shown(space)}")
        observed = self._envs[0].observation_space
        self._read = _reader(observed, observation_keys, env_id)
        self._picture_keys = dict(images)
        pictures = {entry: _picture_shape(observed, key, env_id) for entry, key in images.items()}
        super().__init__(
            num_envs=num_envs,
            obs_dim=len(self._read(observed.sample())),
            low=torch.as_tensor(bounds[0]),
            high=torch.as_tensor(bounds[1]),
            terminate_on_success=terminate_on_success,
            seed=seed,
            device=device,
            observation_key=observation_key,
            images=pictures,
        )
        self.is_closed = False  # EnvBase starts closed
        self.env_id, self.max_episode_steps, self.success_key = env_id, limit, success_key
        self.reward, self.success_bonus = reward, success_bonus
        self._raw: list[Any] = [None] * num_envs
        self._told_success = False
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._state = np.zeros((num_envs, self.observation_spec[observation_key].shape[-1]), np.float32)
        self._success, self._ended, self._cut = (np.zeros(num_envs, dtype=bool) for _ in range(3))
        self._own_reward = np.zeros(num_envs, np.float32)

    def __repr__(self) -> str:
        return f"GymnasiumEnv({self.env_id}, num_envs={self.batch_size.numel()})"

    def _start(self, seeds: list[int], env_idx: torch.Tensor | None, asked: bool) -> tuple[torch.Tensor, torch.Tensor]:
        for index in range(len(seeds)) if env_idx is None else env_idx.tolist():
            observation, info = self._envs[index].reset(seed=seeds[index])
            self._see(index, observation, info)
            self._elapsed[index], self._ended[index], self._cut[index] = 0, False, False
        return torch.from_numpy(self._state), torch.from_numpy(self._success)

    def _advance(
        self, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        space = self._envs[0].action_space
        for index, one in enumerate(action.cpu().numpy()):
            if self._ended[index] or self._cut[index]:
                continue
            clipped = one.clip(space.low, space.high).astype(space.dtype)
            observation, reward, ended, cut, info = self._envs[index].step(clipped)
            self._see(index, observation, info)
            self._elapsed[index] += 1
            self._own_reward[index] = reward
            self._ended[index] = ended or (self._success[index] and self.terminate_on_success)
            self._cut[index] = cut or self._elapsed[index] >= self.max_episode_steps
            if self.success_key is not None and (ended or self._cut[index]) and not self._told_success:
                self._miss_success(info)
        success = torch.from_numpy(self._success)
        reward = torch.from_numpy(self._own_reward)
        if self.reward == "step_penalty":
            reward = step_penalty(success, self.success_bonus)
        ended, cut = torch.from_numpy(self._ended), torch.from_numpy(self._cut)
        return torch.from_numpy(self._state), success, reward, ended, cut if self.terminate_on_success else ended | cut

    def _miss_success(self, info: Mapping[str, Any]) -> None:
        """An episode has ended and no ``info`` had the success: its name is wrong, or the env says yes and never no."""
        keys = ", ".join(map(str, info)) or "nothing"
        line = f"{self.env_id}: info never had {self.success_key!r}, it has {keys}: set success_key"
        if any(word in str(key).lower() for key in info for word in SUCCESS_WORDS):
            raise UserError(line)
        warnings.warn(f"{line}, unless the env says it on success alone", stacklevel=2)
        self._told_success = True  # once

    def _see(self, index: int, observation: Any, info: Mapping[str, Any]) -> None:
        self._raw[index], self._state[index] = observation, self._read(observation)
        success = None if self.success_key is None else info.get(self.success_key)
        self._told_success = self._told_success or success is not None
        self._success[index] = success is not None and bool(np.all(np.asarray(success) > 0.5))

    def _images(self, env_idx: torch.Tensor) -> Mapping[NestedKey, torch.Tensor]:
        chosen = [self._raw[index] for index in env_idx.tolist()]
        return {
            entry: torch.from_numpy(np.stack([_find(raw, key) for raw in chosen]).transpose(0, 3, 1, 2).copy())
            for entry, key in self._picture_keys.items()
        }

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Closes the envs."""
        if not self.is_closed:
            for env in self._envs:
                env.close()
        super().close(raise_if_closed=raise_if_closed)


def _registered_limit(env_id: str) -> int | None:
    import gymnasium

    return gymnasium.spec(env_id.rpartition(":")[2]).max_episode_steps  # its module is imported by now


def _make(env_id: str, kwargs: Mapping[str, Any]) -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise UserError(f"gymnasium cannot be imported ({error}): pip install 'gymnasium>=1.1'") from None
    gymnasium.logger.min_level = gymnasium.logger.ERROR
    for module in REGISTERS:
        if env_id not in gymnasium.registry and ":" not in env_id and importlib.util.find_spec(module) is not None:
            importlib.import_module(module)
    if env_id not in gymnasium.registry and ":" not in env_id:
        near = difflib.get_close_matches(env_id, gymnasium.registry, n=3)
        hint = f"near it: {', '.join(near)}" if near else "name the module that registers it, module:Name-v0"
        raise UserError(f"unknown gymnasium env {env_id!r}; {hint}")
    try:
        return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    # Whatever the env's own constructor raises: a missing package, an unknown argument.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{env_id} cannot be made: {reason[:300]}") from None


def _find(values: Any, key: str) -> Any:
    """``a.b`` in nested dicts or spaces; a name that has dots itself, LeRobot's ``observation.state``, wins."""
    values = getattr(values, "spaces", values)  # `in` asks a dict space for a sample
    if not isinstance(values, Mapping):
        raise KeyError(key)
    if key in values:
        return values[key]
    parts = key.split(".")
    for end in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:end])
        if outer in values:
            return _find(values[outer], ".".join(parts[end:]))
    raise KeyError(key)


def _vectors(space: Any) -> dict[str, Any]:
    """A dict space's parts by their names, but for its pictures."""
    return _leaves(space, lambda part: not _is_picture(part))


def _leaves(space: Any, wanted: Callable[[Any], bool], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, part in getattr(space, "spaces", {}).items():
        if hasattr(part, "spaces"):
            found |= _leaves(part, wanted, f"{where}{name}.")
        elif getattr(part, "shape", None) is not None and wanted(part):
            found[f"{where}{name}"] = part
    return found


def _is_picture(space: Any) -> bool:
    return space.dtype == np.uint8 and len(space.shape) == 3


def _reader(space: Any, keys: Sequence[str] | None, env_id: str) -> Callable[[Any], np.ndarray]:
    """What flattens an observation to the state, ``[d]`` float32."""
    if not hasattr(space, "spaces"):
        if keys is not None:
            raise UserError(f"{env_id} has no dict observation, and so no observation_keys")
        if len(getattr(space, "shape", None) or ()) != 1:
            raise UserError(f"{env_id} should give a vector or a dict, it gives {shown(space)}")
        return lambda observation: np.asarray(observation, np.float32)
    known = _vectors(space)
    for key in keys or ():
        if key not in known:
            raise UserError(f"{env_id} has no observation {key!r}; it has {', '.join(known)}")
    names = [name for name, part in known.items() if len(part.shape) <= 1] if keys is None else list(keys)
    if not names:
        raise UserError(f"{env_id} gives no vector, and a state is needed; it gives {shown(space)}")
    return lambda observation: np.concatenate([np.ravel(_find(observation, key)).astype(np.float32) for key in names])


def _picture_shape(space: Any, key: str, env_id: str) -> tuple[int, int, int]:
    try:
        part = _find(space, key)
    except KeyError:
        part = None
    if part is None or not _is_picture(part):
        has = ", ".join(_leaves(space, _is_picture)) or "none"
        raise UserError(f"{env_id} has no uint8 picture [H, W, C] named {key!r}; it has {has}")
    height, width, channels = part.shape
    if channels not in CHANNELS:
        raise UserError(f"{env_id}: {key} should be a picture [H, W, C] of 1, 3 or 4 channels, is {list(part.shape)}")
    return channels, height, width
