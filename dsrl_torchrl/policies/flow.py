"""Rectified flow: the policy, its Euler sampler and its behaviour-cloning loss."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dsrl_torchrl.policies.cloning_loss import BehaviourCloningLoss
from dsrl_torchrl.policies.generative import GenerativePolicy, time_like


class FlowPolicy(GenerativePolicy):
    """A policy that integrates a learned velocity field from noise (t = 0) to the action chunk (t = 1).

    Rectified flow (Liu et al., 2022; Lipman et al., 2022): along ``x_t = (1 - t) * x_0 + t * x_1`` the velocity is
    ``x_1 - x_0``. The arguments are :class:`~dsrl_torchrl.policies.generative.GenerativePolicy`'s.

    Examples:
        >>> policy = FlowPolicy(observation_dim=10, action_dim=4, pred_horizon=8).freeze()
        >>> policy(torch.randn(3, 10), torch.randn(3, 8, 4)).shape
        torch.Size([3, 8, 4])
    """

    policy_type: ClassVar[str] = "flow"

    def cloning_loss(self) -> FlowBCLoss:
        """:class:`FlowBCLoss` of this policy."""
        return FlowBCLoss(self)

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Euler: ``x_{t + dt} = x_t + dt * v(s, x_t, t)``, then clipped to [-1, 1]."""
        x, dt = noise, 1 / self.sampler_steps
        for i in range(self.sampler_steps):
            x = x + dt * self.network(observation, x, time_like(x, i * dt))
        return x.clamp(-1, 1)

    def squared_error(self, observation: Tensor, chunk: Tensor) -> Tensor:
        """``(v(s, x_t, t) - (x_1 - x_0))²`` with ``x_0 ~ N(0, I)``, ``t ~ U[0, 1]``: ``[B, H, A]``."""
        x_1, x_0 = chunk, torch.randn_like(chunk)
        t = torch.rand(chunk.shape[0], dtype=chunk.dtype, device=chunk.device)
        time = t[:, None, None]
        x_t = (1 - time) * x_0 + time * x_1
        return (self.network(observation, x_t, t) - (x_1 - x_0)).square()


class FlowBCLoss(BehaviourCloningLoss):
    """Conditional flow matching on expert chunks; out key ``loss_flow_bc``."""

    loss_key = "loss_flow_bc"
    policy_class = FlowPolicy
