"""Aliasing: how much of the noise space decodes to the same executed actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.steerability.noise_response import decode_normalised, prior_noises

#: Two actions within this distance, in half ranges, are the same action: 1 mm of ManiSkill's 10 cm position deltas.
SAME_ACTION = 0.01

JACOBIAN_BATCH = 32
PAIR_NOISES = 16


@dataclass(frozen=True)
class Aliasing:
    """What DSRL's noise-aliasing critic exists for (Wagenmaker et al. 2025, section 4.3), measured.

    With the Jacobian ``J = ∂head/∂w`` of the executed head, in half action ranges, at prior noises: a direction ``v``
    (``|v| = 1``) is *aliased* when one standard deviation along it moves the head by ``|J v| < 0.01``: a Euclidean
    norm, so that no executed action changes by more than 1 %. The aliased fraction is that of singular values below
    0.01, those missing when the head is smaller than the noise included.

    Attributes:
        singular_values: ``[latent_dim]`` of J, largest first, averaged over points: half ranges per standard deviation.
        effective_dim: participation ratio ``(Σ σ²)² / Σ σ⁴``, averaged over points: the number of noise directions that
            share the response, 0 (nothing moves) to ``latent_dim`` (all move alike).
        aliased_fraction: of the ``latent_dim`` directions, averaged over points. It is local: also a noise whose action
            is clipped counts.
        same_head_fraction: of pairs of independent prior noises at one observation, those whose heads agree within 0.01
            in every action: aliasing at large. Above 0 only for a nearly deterministic policy or a few discrete modes.
    """

    singular_values: tuple[float, ...]
    effective_dim: float
    aliased_fraction: float
    same_head_fraction: float

    @property
    def latent_dim(self) -> int:
        """Size of the noise."""
        return len(self.singular_values)


def aliasing(decoder: NoiseDecoder, observations: TensorDictBase, *, n_points: int = 64, seed: int = 0) -> Aliasing:
    """Measures aliasing at ``n_points`` pairs of observation and prior noise.

    Costs ``act_horizon * action_dim`` backward passes in batches of 32 and 16 forward passes; keeps one Jacobian
    ``[32, head, latent_dim]`` at a time.

    Args:
        decoder: base policy and noise layout.
        observations: ``[N]``, the base policy's entries; the first ``n_points`` are used.
        n_points: more than N means N.
        seed: of the noises.

    Raises:
        UserError: the base policy is not differentiable in its noise.
    """
    observations = observations[:n_points]
    noise = prior_noises(decoder, 1, len(observations), seed=seed)[0]
    batches = zip(observations.split(JACOBIAN_BATCH), noise.split(JACOBIAN_BATCH), strict=True)
    values = torch.cat([_singular_values(noise_jacobian(decoder, *batch)) for batch in batches])  # (N, latent_dim)
    return Aliasing(
        tuple(values.mean(0).tolist()),
        float(participation_ratio(values).mean()),
        float((values < SAME_ACTION).float().mean()),
        _same_head_fraction(decoder, observations, seed=seed + 1),
    )


def noise_jacobian(decoder: NoiseDecoder, observations: TensorDictBase, noise: Tensor) -> Tensor:
    """``J = ∂head/∂w`` by reverse mode, one backward pass per action of the head.

    Args:
        decoder: base policy and noise layout.
        observations: ``[N]``, the base policy's entries.
        noise: ``[N, latent_dim]``.

    Returns:
        ``[N, act_horizon * action_dim, latent_dim]``, in half action ranges per standard deviation of noise.

    Raises:
        UserError: the base policy is not differentiable in its noise.
    """
    with torch.enable_grad():
        noise = noise.detach().clone().requires_grad_()
        head = decode_normalised(decoder, observations, noise[None])[0].flatten(1)  # (N, H_a * A)
        if not head.requires_grad:
            raise UserError(
                f"{type(decoder.base_policy).__name__} is not differentiable in its noise: run its forward without "
                "torch.no_grad, or set `differentiable = False` in the class (aliasing is then not measured)"
            )
        # An observation's head depends on its own noise only, so the gradient of the batch's sum is each one's.
        totals = head.sum(0)
        rows = [torch.autograd.grad(total, noise, retain_graph=True)[0] for total in totals]
    return torch.stack(rows, 1)


def participation_ratio(singular_values: Tensor) -> Tensor:
    """``(Σ σ²)² / Σ σ⁴`` over the last axis, 0 where all σ are 0."""
    power = singular_values.double().square()
    return power.sum(-1).square() / power.square().sum(-1).clamp(min=torch.finfo(power.dtype).tiny)


def _singular_values(jacobian: Tensor) -> Tensor:
    """``[N, head, latent_dim]`` -> ``[N, latent_dim]``, largest first, with zeros for directions beyond the rank."""
    values = torch.linalg.svdvals(jacobian.float())
    return torch.nn.functional.pad(values, (0, jacobian.shape[-1] - values.shape[-1]))


@torch.no_grad()
def _same_head_fraction(decoder: NoiseDecoder, observations: TensorDictBase, *, seed: int) -> float:
    noises = prior_noises(decoder, PAIR_NOISES, len(observations), seed=seed)
    heads = decode_normalised(decoder, observations, noises).flatten(2)  # (M, N, H_a * A)
    same = [(heads[i + 1 :] - heads[i]).abs().amax(-1) <= SAME_ACTION for i in range(PAIR_NOISES - 1)]
    return float(torch.cat(same).float().mean())
