"""The macro step: one action chunk is one step of a semi-Markov decision process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.data import Bounded, Categorical, TensorSpec, Unbounded
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase
from torchrl.envs.transforms import (
    CatFrames,
    Compose,
    DTypeCastTransform,
    InitTracker,
    ObservationTransform,
    RenameTransform,
    RewardSum,
    Transform,
)

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.checks import check_primitive_env, innermost, transforms_of

#: Not ``steps_to_next_obs``: estimators of TorchRL look for that at the root, where the previous macro step's k lies.
STEPS_KEY = "chunk_steps"
CHUNK_KEY = "action_chunk"
SUCCESS_KEY = "success"
SUCCESS_ONCE_KEY = "success_once"
#: Transforms that end no episode.
_END_NOTHING = (ObservationTransform, RewardSum, InitTracker, DTypeCastTransform, RenameTransform)


class MacroStep(Transform):
    """Executes a chunk of ``act_horizon`` actions as one environment step.

    With primitive rewards ``r`` and an episode that ends after ``k <= act_horizon`` actions of the chunk::

        action index      0      1     ...   k-1  |  k   ...  H_a - 1
        executed          yes    yes         yes  |  no        no
        macro reward    R = r_0 + γ r_1 + ... + γ^(k-1) r_(k-1)
        next              everything as the env left it after action k-1; bootstrap discount γ^k

    Each env of a batch ends on its own: when one finishes inside the chunk its observation, done flags and success
    are latched, it collects no more reward, and the others go on. A batched simulator keeps stepping the finished
    env physically, and the reset that follows clears it: nothing of that is seen but by transforms below that learn
    from what passes (``VecNorm``: put it above). TorchRL's own batches (``SerialEnv``, ``ParallelEnv``) leave the
    finished env alone. The wrapped env must not reset itself on done.

    Entries written under ``"next"``:

    - ``reward`` ``[*B, 1]``: R; ``chunk_steps`` ``[*B, 1]`` int64: k, in primitive env steps;
    - ``action_chunk`` ``[*B, act_horizon, action_dim]``: the commanded chunk, of which the first k actions were
      executed; in torch's default dtype, the learner's, whatever the env's;
    - ``success`` ``[*B, 1]`` bool (if the env has it, as flags or as 0 and 1): after action k-1; ``success_once``:
      after any of the k actions.

    The env's ``action`` ``[*B, action_dim]`` becomes ``[*B, act_horizon, action_dim]``. A transform above sees macro
    steps: ``RewardSum`` there sums rewards that are discounted inside of the chunks, a step counter counts chunks, and
    what repeats steps (``FrameSkipTransform``) spoils R and k. Below, they see every primitive step.

    Args:
        act_horizon: number of actions executed per macro step, ``H_a >= 1``.
        gamma: discount per primitive step, in (0, 1].
        skip_images: tells an env that has an attribute ``skip_images`` (as ``EpisodicEnv`` does)
            to render only where a macro step ends: at the last action and at the end of an episode.

    Raises:
        UserError: for an ``act_horizon`` or ``gamma`` out of range.
    """

    def __init__(self, act_horizon: int, gamma: float, skip_images: bool = False) -> None:
        if act_horizon < 1:
            raise UserError(f"act_horizon must be at least 1, got {act_horizon}")
        if not 0.0 < gamma <= 1.0:
            raise UserError(f"gamma must lie in (0, 1], got {gamma}")
        super().__init__(in_keys_inv=["action"], out_keys_inv=["action"])
        self.act_horizon = act_horizon
        self.gamma = gamma
        self.skip_images = skip_images

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        chunk = tensordict.get("action")  # (*B, H_a, action_dim)
        if chunk.ndim != tensordict.ndim + 2 or chunk.shape[-2] != self.act_horizon:
            raise ValueError(
                f"MacroStep expected a chunk [*{list(tensordict.batch_size)}, {self.act_horizon}, action_dim], "
                f"got {list(chunk.shape)}"
            )
        self._set_skipping(self.act_horizon > 1)
        # The base env takes action 0 now; _step finds the whole chunk again under this key.
        tensordict.set(CHUNK_KEY, chunk)
        return tensordict.set("action", chunk[..., 0, :])

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        parent = self._primitive_env()
        chunk = tensordict.get(CHUNK_KEY)
        # Entries of its state that the env reads and need not write again, as TorchRL's step_mdp carries them.
        state = tensordict.select(*parent.state_keys, strict=False)
        latched = current = _completed(parent, next_tensordict)
        reward = current.get("reward")
        alive = ~current.get("done")  # (*B, 1)
        steps = torch.ones_like(alive, dtype=torch.int64)
        success_once = _success(current)
        all_alive = bool(alive.all())
        for j in range(1, self.act_horizon):
            if not (all_alive or alive.any()):
                break
            if j == self.act_horizon - 1:
                self._set_skipping(False)
            # The env's own state entries ride along for envs that keep their state in the tensordict.
            step_input = current.exclude("reward", *parent.done_keys).set("action", chunk[..., j, :])
            if not state.is_empty():
                step_input = state.copy().update(step_input)
            if not all_alive and isinstance(batch := innermost(self.parent), BatchedEnvBase):
                # Its own entries would stand in for those left alone, and transforms below may have reshaped them.
                own = [key for key in batch.observation_spec.keys(True, True) if key not in batch.state_keys]
                step_input = step_input.exclude(*own).set("_step", alive.squeeze(-1))
                step_input.update(current.select(*parent.done_keys))
            current = _completed(parent, parent._step(step_input))
            latched = current if all_alive else current.where(alive.squeeze(-1), latched)
            # Not times `alive`: what an env gives after an episode's end may be NaN.
            reward = reward + self.gamma**j * torch.where(alive, current.get("reward"), 0)
            steps = steps + alive
            if success_once is not None:
                success_once = success_once | (_success(current) & alive)
            alive = alive & ~current.get("done")
            all_alive = all_alive and bool(alive.all())
        self._set_skipping(False)
        if latched is not next_tensordict:
            latched = next_tensordict.copy().update(latched)
        latched.set("reward", reward)
        latched.set(STEPS_KEY, steps)
        latched.set(CHUNK_KEY, chunk.to(torch.get_default_dtype()))
        if success_once is not None:
            latched.set(SUCCESS_KEY, _success(latched))
            latched.set(SUCCESS_ONCE_KEY, success_once)
        return latched

    def _set_skipping(self, skip: bool) -> None:
        if self.skip_images and hasattr(env := innermost(self.parent), "skip_images"):
            env.skip_images = skip

    def _primitive_env(self) -> EnvBase:
        # An empty chain of transforms between env and macro step would cost a twentieth of a ManiSkill step.
        parent = self.parent
        return parent if len(parent.transform) else parent.base_env

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        parent = self.parent
        device = parent.device
        spec = self._action_spec(parent.full_action_spec)
        batch = tensordict_reset.batch_size
        tensordict_reset.set(STEPS_KEY, torch.zeros(*batch, 1, dtype=torch.int64, device=device))
        tensordict_reset.set(CHUNK_KEY, torch.zeros(*batch, *spec.shape[-2:], device=device))
        success = _success(tensordict_reset)
        if success is not None:
            tensordict_reset.set(SUCCESS_KEY, success)
            tensordict_reset.set(SUCCESS_ONCE_KEY, success.clone())
        return tensordict_reset

    def _action_spec(self, full_action_spec: TensorSpec) -> TensorSpec:
        spec = full_action_spec["action"]  # (*B, action_dim)
        return spec.unsqueeze(-2).expand(*spec.shape[:-1], self.act_horizon, spec.shape[-1])

    def transform_input_spec(self, input_spec: TensorSpec) -> TensorSpec:
        full_action_spec = input_spec["full_action_spec"]
        full_action_spec["action"] = self._action_spec(full_action_spec)
        return input_spec

    def transform_reward_spec(self, reward_spec: TensorSpec) -> TensorSpec:
        # A discounted sum leaves the bounds of a single reward.
        for key in list(reward_spec.keys(True, True)):
            spec = reward_spec[key]
            reward_spec[key] = Unbounded(shape=spec.shape, dtype=spec.dtype, device=spec.device)
        return reward_spec

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        batch, device = observation_spec.shape, observation_spec.device
        chunk = self._action_spec(self.parent.full_action_spec)
        for key in (STEPS_KEY, CHUNK_KEY):
            if key in observation_spec.keys():
                raise UserError(f"an entry {key!r} of the env's is in the way of a macro step's: give it another name")
        observation_spec[STEPS_KEY] = Bounded(0, self.act_horizon, shape=(*batch, 1), dtype=torch.int64, device=device)
        observation_spec[CHUNK_KEY] = Unbounded(shape=chunk.shape, device=device)
        if SUCCESS_KEY in observation_spec.keys():
            shape = tuple(observation_spec[SUCCESS_KEY].shape)
            if shape not in (tuple(batch), (*batch, 1)):
                raise UserError(
                    f"expected one success flag per env, [*B] or [*B, 1] for B = {list(batch)}, got {shape}"
                )
            for key in (SUCCESS_KEY, SUCCESS_ONCE_KEY):
                observation_spec[key] = Categorical(2, shape=(*batch, 1), dtype=torch.bool, device=device)
        return observation_spec


def _completed(env: EnvBase, current: TensorDictBase) -> TensorDictBase:
    """What ``env._step`` gave, with every flag and ``[*B, 1]`` each: some envs leave that to TorchRL's ``step``."""
    shape = (*current.batch_size, 1)
    entries = (current.get(key, None) for key in ("reward", *env.done_keys))
    if all(entry is not None and entry.shape == shape for entry in entries):
        return current
    return env._step_proc_data(current)


def require_success(env: EnvBase, what: str) -> None:
    """Raises :class:`UserError` for a macro env that does not tell success, which ``what`` compares."""
    if SUCCESS_ONCE_KEY not in env.observation_spec.keys():
        raise UserError(f"{what} needs an env with a `success` entry: it compares success rates")


def _success(tensordict: TensorDictBase) -> Tensor | None:
    """The env's success as flags ``[*B, 1]``: simulators give ``[*B]`` and numbers, too."""
    success = tensordict.get(SUCCESS_KEY, None)
    if success is None:
        return None
    flags = success if success.dtype is torch.bool else success > 0.5
    return flags if flags.ndim > tensordict.ndim else flags.unsqueeze(-1)


class MacroEnv(TransformedEnv):
    """A ``TransformedEnv`` whose random actions are of its action spec.

    TorchRL's own asks the env below for one where that is a ``TransformedEnv``, too, and refuses where their actions
    differ. So does one around this env, and what an appended transform has for its ``parent``.
    """

    rand_action = EnvBase.rand_action


def make_macro_env(
    env: EnvBase,
    *,
    act_horizon: int,
    gamma: float,
    obs_horizon: int = 1,
    history_keys: Sequence[NestedKey] = ("observation",),
    below: Sequence[Transform] = (),
) -> MacroEnv:
    """Wraps an env for macro steps, with a history of ``obs_horizon`` *primitive* observations.

    In parallel CPU envs this belongs inside each worker: one message per chunk instead of one per action.

    Args:
        env: batch ``[*B]``, ``action`` ``[*B, action_dim]``, no auto-reset
            (:func:`~dsrl_torchrl.latent_env.checks.check_primitive_env`).
        act_horizon: actions executed per macro step.
        gamma: discount per primitive step.
        obs_horizon: observations in the history, oldest first (the first one is repeated at a reset).
        history_keys: the entries that get one, each along its first axis: ``[d]`` becomes ``[obs_horizon * d]``,
            ``[C, H, W]`` becomes ``[obs_horizon * C, H, W]``.
        below: transforms that see every primitive step: a recorder, ``RewardSum`` for the undiscounted return.

    Raises:
        UserError: an env that cannot make macro steps, or an entry that it does not have.
    """
    check_primitive_env(env)
    transforms: list[Transform] = list(below)
    histories = history_keys if obs_horizon > 1 else ()
    for key in histories:
        has = env.observation_spec.keys(True, True)
        if key not in has:
            raise UserError(f"no entry {key!r} in the env: it has {', '.join(map(str, has))}")
        transforms.append(_history(env, key, obs_horizon))
    # A history of images is one of primitive steps: each of them has to be looked at. So has what may be the end of an
    # episode that somebody below ends, a StepCounter for one: the env looks at the ends that it makes itself.
    others = any(not isinstance(transform, _END_NOTHING) for transform in [*transforms_of(env), *transforms])
    skip_images = not others and not any(_is_image(env, key) for key in histories)
    transforms.append(MacroStep(act_horizon, gamma, skip_images=skip_images))
    return MacroEnv(env, Compose(*transforms), auto_unwrap=False)


def _is_image(env: EnvBase, key: NestedKey) -> bool:
    return env.observation_spec[key].dtype == torch.uint8


def _history(env: EnvBase, key: NestedKey, obs_horizon: int) -> CatFrames:
    spec = env.observation_spec[key]
    dim = env.batch_dims - spec.ndim  # of the entry's first axis, counted from the end
    frames = CatFrames(N=obs_horizon, dim=dim, in_keys=[key], padding="same")
    # The macro step's own env is a copy that shares the transforms' buffers. CatFrames begins with a float32 one, and
    # replaces it at the first reset for an entry of another dtype: the copy would keep the old one.
    frames._make_missing_buffer(spec.zero(), f"_cat_buffers_{key}")
    return frames
