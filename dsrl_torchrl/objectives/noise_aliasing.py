"""Noise aliasing: ``Q^A`` distilled into noise space (Eq. 13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from tensordict.utils import NestedKey
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.critics import Critic
from dsrl_torchrl.objectives.latent_loss import LatentLoss, check_ensemble, check_reduction, with_batch_of
from dsrl_torchrl.objectives.q_action import Decode


class NoiseAliasingLoss(LatentLoss):
    """Many noises decode to the same action; ``Q^W`` learns that from ``Q^A``, whatever produced the data.

    ``Σ_i mean (Q^W_i(s, w) - stopgrad Q^A_i(s, decode(s, w)))²``, ``w ~ N(0, I)``, member by member. Dataset actions
    are not inverted: not needing their noise is the point of the method. DSRL-NA, Wagenmaker et al. 2025; Eq. 13.

    Reads what the critics and ``decode`` read, and ``pair_noise`` ``[*B, latent_dim]`` with its ``pair_chunk``
    ``[*B, act_horizon, action_dim]`` where the batch has them (:mod:`dsrl_torchrl.agents.dsrl_aw_mle`): drawn from the
    prior and decoded before, or what was executed (``executed_share``). Otherwise a fresh noise is drawn and decoded.
    Returns ``loss_noise_aliasing`` and, detached, ``q_noise`` and ``q_action`` (both ``[N, *B]``), whose difference is
    the distillation gap.

    Args:
        q_noise: one member of ``Q^W``; its last in key is the noise.
        chunk_values: ``Q^A``, ``(observations, chunk) -> [N, *B]``, e.g. :meth:`QActionLoss.values`. No gradient
            reaches it.
        decode: the frozen policy. No gradient reaches it.
        latent_dim: size of the noise.
        num_critics: ensemble size N, that of ``Q^A``.
        q_noise_params: the ensemble's parameters ``[N, ...]`` where another loss holds them already, e.g.
            ``LatentSACLoss.qvalue_network_params``; the two then train and use the same ``Q^W``. By default fresh ones.
        decode_keys: entries that ``decode`` reads.
        reduction: ``none``, ``mean`` or ``sum``.
    """

    @dataclass
    class _AcceptedKeys:
        """Configurable tensordict keys.

        Attributes:
            pair_noise: noise of a decoded pair, optional.
            pair_chunk: the executed head that it decodes to, optional.
        """

        pair_noise: NestedKey = "pair_noise"
        pair_chunk: NestedKey = "pair_chunk"

    tensor_keys: _AcceptedKeys
    chunk_values: Callable[[TensorDictBase, Tensor], Tensor]
    decode: Decode
    default_keys = _AcceptedKeys
    out_keys: ClassVar = ["loss_noise_aliasing", "q_noise", "q_action"]  # type: ignore[misc]

    q_noise: Critic
    q_noise_params: TensorDictParams
    target_q_noise_params: TensorDictParams  # TorchRL makes them in any case, and warns of names without annotation

    def __init__(
        self,
        q_noise: Critic,
        chunk_values: Callable[[TensorDictBase, Tensor], Tensor],
        decode: Decode,
        *,
        latent_dim: int,
        num_critics: int,
        q_noise_params: TensorDictParams | None = None,
        decode_keys: Sequence[NestedKey] = ("observation",),
        reduction: str | None = "mean",
    ) -> None:
        check_ensemble(num_critics)
        super().__init__()
        self.convert_to_functional(q_noise, "q_noise", num_critics)
        if q_noise_params is not None:
            if q_noise_params.batch_size[:1] != (num_critics,):
                raise UserError(
                    f"q_noise_params must hold {num_critics} members like Q^A, "
                    f"got batch size {list(q_noise_params.batch_size)}"
                )
            self.q_noise_params = q_noise_params
        self.refer(chunk_values=chunk_values, decode=decode)
        self.latent_dim, self.reduction, self.decode_keys = latent_dim, check_reduction(reduction), list(decode_keys)

    def reads(self) -> list[NestedKey]:
        return [*self.q_noise.observation_keys, *self.decode_keys]

    def values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        """``Q^W_i(s, w)``: ``[*B]``, ``[*B, latent_dim]`` -> ``[N, *B]``, with gradients."""
        return self.q_noise.ensemble(self.q_noise_params, observations, noise)

    def candidate_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        """``Q^W_i(s, w_m)`` for M noises of every observation, ``[M, *B, latent_dim]`` -> ``[N, M, *B]``."""
        return self.q_noise.candidates(self.q_noise_params, observations, noise)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """One noise for every element of the batch ``[*B]``: its pair's, or ``N(0, I)`` of the global generator."""
        noise = tensordict.get(self.tensor_keys.pair_noise, None)
        with torch.no_grad():
            if noise is None:
                like = tensordict.get(self.q_noise.observation_keys[0])
                tensordict = with_batch_of(tensordict, like)
                noise = torch.randn(*tensordict.batch_size, self.latent_dim, dtype=like.dtype, device=like.device)
                chunk = self.decode(tensordict, noise)
            else:
                chunk = tensordict.get(self.tensor_keys.pair_chunk)
            target = self.chunk_values(tensordict, chunk)  # (N, *B)
        q = self.values(tensordict, noise)  # (N, *B)
        loss = (q - target).square().sum(0)
        return TensorDict(
            {
                "loss_noise_aliasing": self._reduce_loss(loss, tensordict),
                "q_noise": q.detach(),
                "q_action": target,
            }
        )
