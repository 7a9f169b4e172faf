"""The contract of a base policy: frozen, ``(entries, noise) -> action chunk``, deterministic in all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from typing_extensions import Self

from dsrl_torchrl.errors import UserError, positive_int
from dsrl_torchrl.policies.content_hash import policy_hash


class BasePolicy(nn.Module):
    """What DSRL steers: a policy that somebody trained, seen as a function of its initial noise.

    A subclass implements ``forward`` and keeps these promises:

    - deterministic: the same observation and noise give the same chunk (:func:`~dsrl_torchrl.policies.probe` checks);
    - batched: any leading dims, on whatever device the module is;
    - complete: normalisation happens inside, so observations and actions are in env units, and observations are what
      the env gave;
    - differentiable in ``noise`` when that requires grad: no ``torch.no_grad`` inside; or it says
      ``differentiable = False`` (a server, a JAX model), and what needs a gradient is refused or left out.

    Which action runs first, ``first_action = f`` and ``act_horizon = H_a``::

        chunk index     0  ...  f-1   f  ...  f + H_a - 1   ...  pred_horizon - 1
        executed        no      no    yes     yes           no   no

    Args:
        action_dim: size of one action.
        pred_horizon: number of actions in a chunk.
        in_keys: the entries that ``forward`` reads, in order.
        obs_horizon: number of primitive steps in each entry, oldest first, concatenated along the entry's first axis.
        noise_horizon: steps of the noise, default ``pred_horizon``.
        noise_dim: size of one step's noise, default ``action_dim`` (a VLA: 32 for 7 actions).
        first_action: index of the chunk that is executed first (``obs_horizon - 1`` in Diffusion Policy's convention).
        control_mode: how the robot reads an action, e.g. ManiSkill's ``pd_ee_delta_pos``. Metadata.

    Attributes:
        action_low, action_high: ``[action_dim]``, the range that decoded actions are measured in, ±1 by default.
        differentiable: in its noise.
        picklable: whether it can be sent to another process. Nothing of ours does so: workers step the simulator, the
            chunks are decoded where the learner is.

    Raises:
        UserError: a size that is not a positive integer, or a ``first_action`` outside of the chunk.
    """

    differentiable: bool = True
    picklable: ClassVar[bool] = True
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        action_dim: int,
        pred_horizon: int,
        *,
        in_keys: Sequence[NestedKey] = ("observation",),
        obs_horizon: int = 1,
        noise_horizon: int | None = None,
        noise_dim: int | None = None,
        first_action: int = 0,
        control_mode: str = "",
    ) -> None:
        super().__init__()
        in_keys = [in_keys] if isinstance(in_keys, str) else in_keys
        self.in_keys: list[NestedKey] = [tuple(key) if isinstance(key, list) else key for key in in_keys]
        self.action_dim = positive_int("action_dim", action_dim)
        self.pred_horizon = positive_int("pred_horizon", pred_horizon)
        self.obs_horizon = positive_int("obs_horizon", obs_horizon)
        self.noise_horizon = pred_horizon if noise_horizon is None else positive_int("noise_horizon", noise_horizon)
        self.noise_dim = action_dim if noise_dim is None else positive_int("noise_dim", noise_dim)
        self.first_action = positive_int("first_action", first_action, at_least=0)
        if first_action >= pred_horizon:
            raise UserError(f"first_action must be below pred_horizon ({pred_horizon}), got {first_action}")
        self.control_mode = str(control_mode)
        self.register_buffer("action_low", -torch.ones(action_dim))
        self.register_buffer("action_high", torch.ones(action_dim))
        self._frozen = False

    def forward(self, *entries_and_noise: Any, **kwargs: Any) -> Tensor:
        """Decodes noise into an action chunk.

        Args:
            entries_and_noise: the entries of :attr:`in_keys`, ``[*B, ...]`` each, in env units and finite (not checked
                here, where it would cost a synchronisation per call); last the noise ``[*B, noise_horizon,
                noise_dim]``, ``N(0, I)`` for the policy's own behaviour.

        Returns:
            Actions ``[*B, pred_horizon, action_dim]`` in env units.
        """
        raise NotImplementedError

    @property
    def features_dim(self) -> int | None:
        """Size of what :meth:`features` gives; ``None`` where the policy cannot be taken apart."""
        return None

    def features(self, *entries: Any) -> Tensor:
        """What the policy makes of an observation before it sees any noise: the entries -> ``[*B, features_dim]``.

        With :meth:`from_features` it is :meth:`forward` in two parts. A policy that has them lets the latent policy and
        the critics read what its own encoder has made of images, once per macro step
        (:mod:`dsrl_torchrl.latent_env.base_features`).
        """
        raise NotImplementedError

    def from_features(self, features: Tensor, noise: Tensor) -> Tensor:
        """``[*B, features_dim]``, ``[*B, noise_horizon, noise_dim]`` -> ``[*B, pred_horizon, action_dim]``."""
        raise NotImplementedError

    def decode(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        """Calls the policy with its entries, in its own :attr:`dtype`.

        Simulators often hand out float64, and a policy may be bfloat16 where the learner is float32.

        Args:
            observations: ``[*B]``, the entries of :attr:`in_keys`.
            noise: ``[*B, noise_horizon, noise_dim]``.

        Returns:
            ``[*B, pred_horizon, action_dim]`` in the noise's dtype.

        Raises:
            UserError: ``forward`` gives no tensor.
        """
        chunk = self(*self._cast(*(observations.get(key) for key in self.in_keys), noise))
        if not isinstance(chunk, Tensor):
            raise UserError(
                f"{type(self).__name__}.forward() should return a tensor [*B, pred_horizon, action_dim], it returned a "
                f"{type(chunk).__name__}"
            )
        return chunk.to(noise.dtype)

    def encode(self, observations: TensorDictBase) -> Tensor:
        """:meth:`features` of the entries of ``[*B]``, cast as in :meth:`decode`: ``[*B, features_dim]`` float32."""
        return self.features(*self._cast(*(observations.get(key) for key in self.in_keys))).float()

    def _cast(self, *entries: Tensor) -> list[Tensor]:
        dtype = self.dtype
        if dtype is None:
            return list(entries)
        return [entry.to(dtype) if entry.is_floating_point() else entry for entry in entries]

    def observation_statistics(self, key: NestedKey) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of a state entry, each of its shape, if the policy knows them.

        They standardise what latent policy and critics see.
        """
        return None

    def content_hash(self) -> str | None:
        """A hash of what the policy computes: the key under which anything derived from it may be kept.

        By default that is its class, sizes, state dict and ``config``, a property of plain JSON values for whatever
        else changes its output. ``None`` says that it cannot be hashed (a server, a network that is no ``nn.Module``:
        no state of its own): a run is then keyed by how the policy was loaded.
        """
        stateless = self.state_dict().keys() == {"action_low", "action_high"} and not hasattr(self, "config")
        return None if stateless else policy_hash(self)

    @property
    def device(self) -> torch.device:
        """Where the policy decodes."""
        return self.action_low.device

    @cached_property  # hundreds of parameters of a VLA take milliseconds to look at, in each decode
    def dtype(self) -> torch.dtype | None:
        """In which floating-point observations and noise come: its parameters'; ``None`` leaves them as they are.

        Parameters of several floating-point dtypes (a bfloat16 tower with a float32 head) say nothing: ``None``, and
        ``forward`` makes its own conversions, as where this is overridden.
        """
        found = {parameter.dtype for parameter in self.parameters() if parameter.is_floating_point()}
        return found.pop() if len(found) == 1 else None

    def normalise_action(self, action: Tensor) -> Tensor:
        """``[*B, action_dim]`` in env units -> [-1, 1] inside of the range."""
        return 2 * (action - self.action_low) / (self.action_high - self.action_low) - 1

    def denormalise_action(self, action: Tensor) -> Tensor:
        """``[*B, action_dim]`` in [-1, 1] -> env units."""
        return self.action_low + (action + 1) / 2 * (self.action_high - self.action_low)

    def take_after(self, base: BasePolicy) -> None:
        """For a policy around ``base``, last in its ``__init__``: the range of actions, the device, frozen or not."""
        self.action_low.copy_(base.action_low)
        self.action_high.copy_(base.action_high)
        self.to(base.device)
        if base.frozen:
            self.freeze()

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` has been called, and every part of the policy is as it left it."""
        thawed = any(module.training for module in self.modules()) or any(p.requires_grad for p in self.parameters())
        return self._frozen and not thawed

    def freeze(self) -> Self:
        """No parameter requires grad any more and the policy stays in eval mode; returns the policy."""
        self._frozen = True
        self.__dict__.pop("dtype", None)
        self.requires_grad_(False)
        return self.eval()

    def _apply(self, *args: Any, **kwargs: Any) -> Self:  # what to(), bfloat16() and the like call
        self.__dict__.pop("dtype", None)
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """As in ``nn.Module``, but a frozen policy stays in eval mode when a parent calls this."""
        return super().train(mode and not self._frozen)

    def __reduce_ex__(self, protocol):
        if not self.picklable:
            raise UserError(
                f"{type(self).__name__} cannot be sent to another process or copied: put make_macro_env inside of the "
                "workers and LatentActionEnv around the ParallelEnv"
            )
        return super().__reduce_ex__(protocol)


def require_differentiable(policy: BasePolicy, what: str) -> None:
    """Raises :class:`UserError` for a policy that says that it isn't differentiable in its noise, as ``what`` needs."""
    if not policy.differentiable:
        raise UserError(
            f"{what} needs a base policy that is differentiable in its noise, {type(policy).__name__} is not"
        )
