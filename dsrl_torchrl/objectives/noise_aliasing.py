"""Noise aliasing: ``Q^A`` distilled into noise space (SPEC §3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import LossModule

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.ensemble import ensemble_values


class NoiseAliasingLoss(LossModule):
    """Many noises decode to the same action; ``Q^W`` learns that from ``Q^A``, whatever produced the data.

    ``Σ_i mean (Q^W_i(s, w) - stopgrad Q^A_i(s, decode(s, w)))²``, ``w ~ N(0, I)``, member by member. Dataset actions
    are not inverted: not needing their noise is the point of the method. DSRL-NA, Wagenmaker et al. 2025; SPEC §3.

    Reads ``observation`` ``[*B, obs]``, and ``alias_noise`` ``[*B, latent_dim]`` with its ``alias_chunk``
    ``[*B, act_horizon, action_dim]`` where the batch has them (:mod:`dsrl_torchrl.data.decoded_pairs`): pairs that were
    drawn from the prior and decoded before. Otherwise a fresh noise is drawn and decoded. Returns
    ``loss_noise_aliasing`` and, detached, ``q_noise`` and ``q_action`` (both ``[N, *B]``), whose difference is the
    distillation gap.

    Args:
        noise_value_network: one member of ``Q^W``; its in keys are the observation and the noise, in this order.
        action_values: ``Q^A``, ``(observation, chunk) -> [N, *B]``, e.g. :meth:`ActionValueLoss.action_values`. No
            gradient reaches it.
        decode: the frozen policy, ``(observation, noise) -> executed head``. No gradient reaches it.
        latent_dim: size of the noise.
        num_critics: ensemble size N, that of ``Q^A``.
        noise_value_params: the ensemble's parameters ``[N, ...]`` where another loss holds them already, e.g.
            ``LatentSACLoss.qvalue_network_params``; the two then train and use the same ``Q^W``. By default fresh ones.
        reduction: ``none``, ``mean`` or ``sum``.
        deactivate_vmap: loop over the ensemble instead of ``torch.vmap``.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable tensordict keys.

        Attributes:
            observation: what the critics and ``decode`` read.
            alias_noise: noise drawn from the prior, optional.
            alias_chunk: the executed head that it decodes to, optional.
        """

        observation: NestedKey = "observation"
        alias_noise: NestedKey = "alias_noise"
        alias_chunk: NestedKey = "alias_chunk"

    tensor_keys: _AcceptedKeys
    action_values: Callable[[Tensor, Tensor], Tensor]
    decode: Callable[[Tensor, Tensor], Tensor]
    default_keys = _AcceptedKeys
    out_keys: ClassVar = ["loss_noise_aliasing", "q_noise", "q_action"]  # type: ignore[misc]

    noise_value_network: TensorDictModule
    noise_value_network_params: TensorDictParams
    target_noise_value_network_params: TensorDictParams

    def __init__(
        self,
        noise_value_network: TensorDictModule,
        action_values: Callable[[Tensor, Tensor], Tensor],
        decode: Callable[[Tensor, Tensor], Tensor],
        *,
        latent_dim: int,
        num_critics: int = 2,
        noise_value_params: TensorDictParams | None = None,
        reduction: str = "mean",
        deactivate_vmap: bool = False,
    ) -> None:
        if num_critics < 1:
            raise UserError(f"num_critics must be at least 1, got {num_critics}")
        super().__init__()
        self.convert_to_functional(noise_value_network, "noise_value_network", num_critics)
        if noise_value_params is not None:
            if noise_value_params.batch_size[:1] != (num_critics,):
                raise UserError(
                    f"noise_value_params must hold {num_critics} members like Q^A, "
                    f"got batch size {list(noise_value_params.batch_size)}"
                )
            self.noise_value_network_params = noise_value_params
        # In __dict__, where TorchRL keeps its networks: a module given here must not become a part of the loss.
        self.__dict__["action_values"] = action_values
        self.__dict__["decode"] = decode
        self.latent_dim = latent_dim
        self.reduction = reduction
        self.deactivate_vmap = deactivate_vmap
        self.set_keys()

    def set_keys(self, **kwargs: NestedKey) -> None:
        """Renames ``observation``, ``alias_noise`` or ``alias_chunk``."""
        super().set_keys(**kwargs)
        self.in_keys = [self.tensor_keys.observation]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        pass

    def noise_values(self, observation: Tensor, noise: Tensor) -> Tensor:
        """``Q^W_i(s, w)``: ``[*B, obs]``, ``[*B, latent_dim]`` -> ``[N, *B]``, with gradients."""
        return ensemble_values(
            self.noise_value_network,
            self.noise_value_network_params,
            observation,
            noise,
            deactivate_vmap=self.deactivate_vmap,
        )

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """One ``w ~ N(0, I)`` for every element of the batch ``[*B]``, from the batch or the global generator."""
        observation = tensordict.get(self.tensor_keys.observation)
        noise = tensordict.get(self.tensor_keys.alias_noise, None)
        with torch.no_grad():
            if noise is None:
                shape = (*observation.shape[:-1], self.latent_dim)
                noise = torch.randn(shape, dtype=observation.dtype, device=observation.device)
                chunk = self.decode(observation, noise)
            else:
                chunk = tensordict.get(self.tensor_keys.alias_chunk)
            target = self.action_values(observation, chunk)  # (N, *B)
        q = self.noise_values(observation, noise)  # (N, *B)
        loss = (q - target).square().sum(0)
        return TensorDict(
            {
                "loss_noise_aliasing": self._reduce_loss(loss, tensordict),
                "q_noise": q.detach(),
                "q_action": target,
            }
        )
