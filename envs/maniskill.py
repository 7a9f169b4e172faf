"""ManiSkill as a TorchRL environment: state observations, batched, one class for CPU and GPU simulation."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.evaluation import HELD_OUT_SEED
from envs.headless import import_mani_skill, rendering_available

#: What each ``reward`` of ours asks of ManiSkill. A step penalty needs no reward of the task, which saves its computation.
REWARD_MODES = {"step_penalty": "none", "dense": "normalized_dense", "sparse": "sparse"}


class ManiSkillEnv(EnvBase):
    """A ManiSkill task with state observations, batch ``[N]``; it never resets itself.

    Entries, for ``N`` simulated envs: ``observation`` ``[N, obs_dim]`` float32 (metres, radians, as the task stacks them),
    ``success`` ``[N, 1]`` bool (is the task solved *now*), ``action`` ``[N, action_dim]`` in the controller's bounds
    (``[-1, 1]`` for the delta controllers), ``reward`` ``[N, 1]``, ``terminated``, ``truncated``, ``done`` ``[N, 1]``.

    The two ends of an episode are kept apart: ``terminated`` is a success or a failure of the task, ``truncated`` the time
    limit, and an episode solved on its last step has both. A time limit therefore bootstraps and a success does not.

    Seeding: ``reset(seed=s)`` starts episode ``s`` whatever happened before: an int for the first env (env ``i`` takes ``s + i``),
    or a list, one seed for each env that is reset. ``set_seed(s)`` seeds the stream that later unseeded resets draw from,
    so the k-th reset after it is always the same. GPU simulation draws all starts of a reset from the *first* seed of the list
    (ManiSkill's design), so there a list of seeds names the batch of starts, not each start.

    Args:
        env_id: ManiSkill task, e.g. ``PickCube-v1``.
        control_mode: the robot's controller.
        num_envs: ``N``. Above 1 needs GPU simulation; on CPU use TorchRL's ``ParallelEnv``.
        max_episode_steps: time limit in env steps; ``None`` keeps the task's own.
        reward: ``step_penalty`` is ``-1 + success_bonus * success`` (RLinf's ``use_step_penalty``: -1/0), ``dense`` ManiSkill's
            reward normalised to about [0, 1], ``sparse`` +1 on success, -1 on failure.
        success_bonus: see ``step_penalty``.
        terminate_on_success: ``False`` runs every episode to its time limit (ManiSkill's ``ignore_terminations``: failures
            don't end it either), for evaluation: success at the end then differs from success once.
        sim_backend: ``auto`` (GPU if ``num_envs > 1``), ``physx_cpu``, ``physx_cuda``.
        device: where the tensors live; ``None`` leaves them on the simulation's device.
        seed: ``set_seed`` at once; ``None`` draws one.
        render_mode: ``rgb_array`` makes :meth:`render` return frames; needs a Vulkan device.
        env: a ready batched gym env in place of ``gym.make(env_id, ...)``; ``sim_backend`` and ``max_episode_steps`` are then its own.

    Raises:
        UserError: unknown task, controller, reward; missing assets; CPU simulation of several envs; no renderer for ``render_mode``.
        NonFiniteError: while stepping or resetting, if the simulation returns NaN or infinity.
    """

    def __init__(
        self,
        env_id: str = "PickCube-v1",
        control_mode: str = "pd_ee_delta_pos",
        num_envs: int = 1,
        max_episode_steps: int | None = None,
        reward: str = "step_penalty",
        success_bonus: float = 1.0,
        terminate_on_success: bool = True,
        sim_backend: str = "auto",
        device: torch.device | str | None = None,
        seed: int | None = None,
        render_mode: str | None = None,
        env: Any = None,
    ) -> None:
        if reward not in REWARD_MODES:
            raise UserError(f"unknown reward {reward!r}; one of {', '.join(REWARD_MODES)}")
        if env is None:
            env = make_gym_env(
                env_id,
                control_mode=control_mode,
                num_envs=num_envs,
                max_episode_steps=max_episode_steps,
                reward_mode=REWARD_MODES[reward],
                sim_backend=sim_backend,
                render_mode=render_mode,
            )
        self._env = env
        self._sim = env.unwrapped
        self._sim_device = torch.device(self._sim.device)
        self.env_id, self.control_mode, self.reward_kind = env_id, control_mode, reward
        self.success_bonus, self.terminate_on_success = success_bonus, terminate_on_success
        self._steps = 0
        num_envs = self._sim.num_envs
        super().__init__(device=self._sim_device if device is None else device, batch_size=[num_envs])

        obs_dim = self._sim.single_observation_space.shape[-1]
        space = self._sim.single_action_space
        low, high = (torch.as_tensor(bound, device=self.device).expand(num_envs, -1) for bound in (space.low, space.high))
        self.observation_spec = Composite(
            observation=Unbounded((num_envs, obs_dim), device=self.device),
            success=Categorical(2, shape=(num_envs, 1), dtype=torch.bool, device=self.device),
            shape=(num_envs,),
            device=self.device,
        )
        self.action_spec = Bounded(low, high, shape=low.shape, dtype=torch.float32, device=self.device)
        self.reward_spec = Unbounded((num_envs, 1), device=self.device)
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool, device=self.device)
        self.done_spec = Composite(
            done=flag, terminated=flag.clone(), truncated=flag.clone(), shape=(num_envs,), device=self.device
        )
        self.set_seed(int(torch.seed() % HELD_OUT_SEED) if seed is None else seed)

    def _set_seed(self, seed: int | None) -> None:
        # Our own stream of episode seeds: ManiSkill's unseeded resets draw from torch's global generator, so that whatever else
        # samples in the process (a policy, a replay buffer) would change the next start.
        self._seed_stream = np.random.default_rng(seed)

    def _reset(
        self, tensordict: TensorDictBase | None = None, seed: int | Sequence[int] | None = None, **kwargs: Any
    ) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)  # (N, 1)
        env_idx = None if mask is None or mask.all() else mask.reshape(-1).nonzero().squeeze(-1).to(self._sim_device)
        options = {} if env_idx is None else {"env_idx": env_idx}
        observation, info = self._env.reset(seed=self._episode_seeds(seed, env_idx), options=options)
        reset = self._observe(observation, info)
        for key in ("done", "terminated", "truncated"):
            flag = torch.zeros((*self.batch_size, 1), dtype=torch.bool, device=self.device)
            if mask is not None and (before := tensordict.get(key, None)) is not None:
                flag = before & ~mask.view_as(before)
            reset.set(key, flag)
        return reset

    def _episode_seeds(self, seed: int | Sequence[int] | None, env_idx: torch.Tensor | None) -> list[int]:
        """One seed per env, whichever are reset: ManiSkill reads the list as the whole batch's, even in a partial reset."""
        num_envs = self.batch_size.numel()
        if seed is None:
            # Below the evaluation's seeds, which training must never see.
            return self._seed_stream.integers(HELD_OUT_SEED, size=num_envs).tolist()
        chosen = range(num_envs) if env_idx is None else env_idx.tolist()
        given = [int(seed) + i for i in chosen] if isinstance(seed, (int, np.integer)) else [int(s) for s in seed]
        if len(given) != len(chosen):
            raise UserError(f"reset of {len(chosen)} envs got {len(given)} seeds; give one for each")
        # The first entry also seeds the GPU's generator, so it must be one of the given, even if env 0 goes on.
        seeds = [given[0]] * num_envs
        for i, s in zip(chosen, given, strict=True):
            seeds[i] = s
        return seeds

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.get("action").to(self._sim_device)  # (N, action_dim)
        observation, reward, terminated, truncated, info = self._env.step(action)
        self._steps += 1
        step = self._observe(observation, info)
        success = step.get("success")
        if self.reward_kind == "step_penalty":
            reward = self.success_bonus * success.float() - 1.0
        terminated, truncated = self._column(terminated, torch.bool), self._column(truncated, torch.bool)
        if not self.terminate_on_success:
            terminated = torch.zeros_like(terminated)
        step.set("reward", self._column(reward, torch.float32))
        step.set("terminated", terminated)
        step.set("truncated", truncated)
        step.set("done", terminated | truncated)
        return step

    def _observe(self, observation: torch.Tensor, info: dict) -> TensorDict:
        observation = observation.to(device=self.device, dtype=torch.float32)  # (N, obs_dim)
        if not torch.isfinite(observation).all():
            raise NonFiniteError("observation", self._steps, hint=f"{self.env_id}'s simulation diverged")
        success = info.get("success", torch.zeros(self.batch_size, dtype=torch.bool))
        return TensorDict(
            {"observation": observation, "success": self._column(success, torch.bool)}, self.batch_size, self.device
        )

    def _column(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``[N]`` from ManiSkill to the ``[N, 1]`` of TorchRL, as a copy: ManiSkill may write into its own tensors."""
        return torch.as_tensor(value).to(device=self.device, dtype=dtype, copy=True).reshape(*self.batch_size, 1)

    def render(self) -> torch.Tensor:
        """The current frame of each env, ``[N, height, width, 3]`` uint8; needs ``render_mode="rgb_array"``."""
        if self._sim.render_mode is None:
            raise UserError('render() needs ManiSkillEnv(render_mode="rgb_array")')
        return self._env.render()

    def close(self, *, raise_if_closed: bool = True) -> None:
        if not self.is_closed:
            self._env.close()
        super().close(raise_if_closed=raise_if_closed)


def make_gym_env(
    env_id: str,
    *,
    control_mode: str,
    num_envs: int = 1,
    max_episode_steps: int | None = None,
    reward_mode: str = "none",
    sim_backend: str = "auto",
    render_mode: str | None = None,
    obs_mode: str = "state",
) -> Any:
    """``gym.make`` for ManiSkill, quiet, without a renderer unless frames are asked for, and with one-line errors.

    Args: as :class:`ManiSkillEnv`'s, with ManiSkill's own ``reward_mode`` and ``obs_mode``.

    Raises:
        UserError: see :class:`ManiSkillEnv`.
    """
    if num_envs > 1 and sim_backend in ("cpu", "physx_cpu"):
        raise UserError(f"num_envs={num_envs} needs GPU simulation; on CPU put one-env ManiSkillEnvs into a ParallelEnv")
    if num_envs > 1 and not torch.cuda.is_available():
        raise UserError(f"num_envs={num_envs} needs a CUDA GPU and none is here; on CPU use a ParallelEnv of num_envs=1")
    if not import_mani_skill() and render_mode is not None:
        raise UserError(f"render_mode={render_mode!r}: {rendering_available()[1]}")
    import gymnasium
    from mani_skill.utils import assets
    from mani_skill.utils.registration import REGISTERED_ENVS

    if env_id not in REGISTERED_ENVS:
        close = difflib.get_close_matches(env_id, REGISTERED_ENVS, n=3) or sorted(REGISTERED_ENVS)[:5]
        raise UserError(f"unknown ManiSkill task {env_id!r}; near it: {', '.join(close)}")
    # ManiSkill would stop and ask on the terminal, which hangs a worker process for ever.
    for asset in REGISTERED_ENVS[env_id].asset_download_ids or []:
        sources = assets.expand_data_group_into_individual_data_source_ids(asset) if asset in assets.DATA_GROUPS else [asset]
        if not all(assets.is_data_source_downloaded(source) for source in sources):
            raise UserError(f"{env_id} needs assets: python -m mani_skill.utils.download_asset {asset}")
    kwargs: dict[str, Any] = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    if render_mode is None:
        # State needs no renderer even where there is one: less GPU memory, and the same physics everywhere.
        kwargs["render_backend"] = "none"
    try:
        return gymnasium.make(
            env_id,
            num_envs=num_envs,
            obs_mode=obs_mode,
            control_mode=control_mode,
            reward_mode=reward_mode,
            sim_backend=sim_backend,
            render_mode=render_mode,
            **kwargs,
        )
    except AssertionError as error:
        if "not in supported modes" in str(error):
            raise UserError(f"unknown control_mode for {env_id}: {error}") from None
        raise
