"""What every environment of ours has in common: its entries, the two ends of an episode, the seeds of its starts."""

from __future__ import annotations

import multiprocessing
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.utils import NestedKey
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.seeds import TRAINING


class EpisodicEnv(EnvBase):
    """A batch ``[N]`` of goal-reaching episodes with flat observations and images; it never resets itself.

    Entries: ``observation_key`` ``[N, obs_dim]`` float32, those of ``images`` ``[N, C, H, W]`` uint8, ``success``
    ``[N, 1]`` bool (is the task solved *now*), ``action`` ``[N, action_dim]``, ``reward`` ``[N, 1]``, ``terminated``,
    ``truncated`` and ``done`` ``[N, 1]``.

    Rendering costs several times the physics, and a latent policy looks at the world once in a macro step: while
    :attr:`skip_images` is set, as :class:`~dsrl_torchrl.latent_env.macro_step.MacroStep` does inside of its chunk, the
    images of envs that go on stay those of before.

    The two ends are kept apart: ``terminated`` is the task's (success, failure), ``truncated`` the time limit's, and an
    episode solved on its last step has both. So a time limit bootstraps and a success does not.

    Seeds: ``reset(seed=...)`` takes an int (env ``i`` starts episode ``seed + i``) or a list, one seed for each env
    that is reset, and the start is then the same whatever happened before. Unseeded resets draw from
    :data:`~dsrl_torchrl.seeds.TRAINING` by a stream of their own, seeded by ``set_seed``: the k-th reset after it is
    always the same, whatever else samples in the process. The first one starts afresh: from there the same actions give
    the same episodes, whatever happened before ``set_seed``.

    Subclasses write :meth:`_start` and :meth:`_advance`, and :meth:`_images` if they have any.

    Args:
        num_envs: ``N``.
        obs_dim: size of an observation.
        low: lower action bounds, ``[action_dim]``.
        high: upper action bounds, ``[action_dim]``.
        terminate_on_success: ``False`` runs every episode to its time limit and ``terminated`` stays False, failures
            included (ManiSkill's ``ignore_terminations``): for evaluation, where success at the end differs from
            success once.
        seed: seeds the stream of starts; ``None`` takes fresh entropy.
        device: where the tensors live.
        observation_key: name of the observation's entry.
        images: entry -> ``[C, H, W]``.
    """

    skip_images = False

    def __init__(
        self,
        num_envs: int,
        obs_dim: int,
        low: torch.Tensor,
        high: torch.Tensor,
        *,
        terminate_on_success: bool = True,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        observation_key: NestedKey = "observation",
        images: Mapping[NestedKey, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(device=torch.device(device), batch_size=[num_envs])
        self.terminate_on_success, self.observation_key = terminate_on_success, observation_key
        self._steps = 0
        flag = Categorical(2, shape=(num_envs, 1), dtype=torch.bool, device=self.device)
        spec = Composite(success=flag, shape=(num_envs,), device=self.device)
        spec[observation_key] = Unbounded((num_envs, obs_dim), device=self.device)
        for key, shape in (images or {}).items():
            spec[key] = Bounded(0, 255, (num_envs, *shape), dtype=torch.uint8, device=self.device)
        self._pictures = {key: spec[key].zero() for key in images or {}}  # as of when they were last looked at
        self.observation_spec = spec
        bounds = [bound.to(device=self.device, dtype=torch.float32).expand(num_envs, -1) for bound in (low, high)]
        self.action_spec = Bounded(*bounds, shape=bounds[0].shape, dtype=torch.float32, device=self.device)
        self.reward_spec = Unbounded((num_envs, 1), device=self.device)
        self.done_spec = Composite(
            done=flag.clone(),
            terminated=flag.clone(),
            truncated=flag.clone(),
            shape=(num_envs,),
            device=self.device,
        )
        self._set_seed(seed)

    @property
    def image_keys(self) -> list[NestedKey]:
        """The entries that are images."""
        return list(self._pictures)

    @abstractmethod
    def _start(self, seeds: list[int], env_idx: torch.Tensor | None, asked: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Starts episodes ``seeds`` (one for each of the ``N`` envs) in the envs ``env_idx``, ``None`` for all.

        ``asked`` tells that the caller named the seeds, or that this is the first reset after ``set_seed``: the episode
        must then not depend on earlier ones at all.

        Returns:
            ``observation [N, obs_dim]`` and ``success [N]`` of *all* envs.
        """

    @abstractmethod
    def _advance(
        self, action: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One step of all envs with ``action [N, action_dim]``.

        Returns:
            ``observation [N, obs_dim]``, ``success``, ``reward``, ``terminated``, ``truncated``, each ``[N]``.
        """

    def _images(self, env_idx: torch.Tensor) -> Mapping[NestedKey, torch.Tensor]:
        """What the cameras of the envs ``env_idx`` ``[n]`` see now: entry -> uint8 ``[n, C, H, W]``."""
        raise NotImplementedError(f"{type(self).__name__} has images and no _images()")

    def _set_seed(self, seed: int | None) -> None:
        self._seed_stream = np.random.default_rng(seed)
        self._anew = True

    def _reset(
        self, tensordict: TensorDictBase | None = None, seed: int | Sequence[int] | None = None, **kwargs
    ) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)  # (N, 1)
        env_idx = None if mask is None or mask.all() else mask.reshape(-1).nonzero().squeeze(-1)  # (n,)
        started = self._start(self._episode_seeds(seed, env_idx), env_idx, seed is not None or self._anew)
        self._anew = False
        self._look(torch.arange(self.batch_size.numel()) if env_idx is None else env_idx)
        reset = self._entries(*started)
        for key in self.done_keys:
            flag = torch.zeros_like(reset["success"])
            if tensordict is not None and mask is not None and key in tensordict:
                # An env that is done and not reset yet stays done.
                flag = tensordict.get(key) & ~mask.view_as(flag)
            reset.set(key, flag)
        return reset

    def _episode_seeds(self, seed: int | Sequence[int] | None, env_idx: torch.Tensor | None) -> list[int]:
        """One seed per env of the whole batch; those of envs that go on are not used for a start."""
        num_envs = self.batch_size.numel()
        if seed is None:
            return self._seed_stream.integers(TRAINING.start, TRAINING.stop, size=num_envs).tolist()
        chosen = list(range(num_envs)) if env_idx is None else env_idx.tolist()
        given = [int(seed) + i for i in chosen] if isinstance(seed, (int, np.integer)) else [int(s) for s in seed]
        if len(given) != len(chosen):
            raise UserError(f"a reset of {len(chosen)} envs got {len(given)} seeds; give one for each")
        # GPU simulators seed one generator from the first entry, so even that must come from what was given.
        seeds = [given[0]] * num_envs
        for i, s in zip(chosen, given, strict=True):
            seeds[i] = s
        return seeds

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        observation, success, reward, terminated, truncated = self._advance(tensordict.get("action"))
        self._steps += 1
        terminated, truncated = self._column(terminated), self._column(truncated)
        if not self.terminate_on_success:
            terminated = torch.zeros_like(terminated)
        done = terminated | truncated
        if self._pictures:
            # An episode ends once: what its end looks like is bootstrapped from where a time limit ended it.
            wanted = done.flatten() if self.skip_images else torch.ones_like(done.flatten())
            self._look(wanted.nonzero().squeeze(-1))
        return self._entries(
            observation,
            success,
            reward=self._column(reward, torch.float32),
            terminated=terminated,
            truncated=truncated,
            done=done,
        )

    def _look(self, env_idx: torch.Tensor) -> None:
        if self._pictures and len(env_idx):
            for key, seen in self._images(env_idx).items():
                # What was returned before stays as it is.
                self._pictures[key] = self._pictures[key].index_copy(0, env_idx.to(self.device), seen.to(self.device))

    def _entries(self, observation: torch.Tensor, success: torch.Tensor, **more: torch.Tensor) -> TensorDict:
        observation = observation.to(device=self.device, dtype=torch.float32, copy=True)  # (N, obs_dim)
        # In a worker process an exception would only kill the worker; there the NaN travels to the main process, where
        # the training loop and the evaluation name it.
        if multiprocessing.parent_process() is None and not torch.isfinite(observation).all():
            hint = f"the simulation of {self} diverged"
            raise NonFiniteError(entry_name(self.observation_key), self._steps, hint=hint)
        entries = TensorDict({"success": self._column(success), **more}, self.batch_size, self.device)
        entries.set(self.observation_key, observation)
        for key, picture in self._pictures.items():
            entries.set(key, picture)
        return entries

    def _column(self, value: torch.Tensor, dtype: torch.dtype = torch.bool) -> torch.Tensor:
        """``[N]`` to TorchRL's ``[N, 1]``, as a copy: simulators write into the tensors they returned."""
        return value.to(device=self.device, dtype=dtype, copy=True).reshape(*self.batch_size, 1)
