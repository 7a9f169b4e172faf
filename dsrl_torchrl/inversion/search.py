"""Inversion of the frozen policy: which noise would have decoded into this executed chunk (Eq. 20, 21)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from tensordict import TensorDictBase
from torch import Tensor

from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import NonFiniteError, UserError, positive_int
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder

#: ``[m, candidates, latent_dim]`` -> squared errors ``[m, candidates]``, each of its own candidate only.
SquaredError = Callable[[Tensor], Tensor]

NO_GRADIENT = "the base policy has no gradient in its noise, so noise cannot be optimised: take NoiseRetrieval"


class InvertedNoise(NamedTuple):
    """What :func:`invert_noise` found."""

    noise: Tensor  #: ``[n, latent_dim]``, float32, within ±action_magnitude
    error: Tensor  #: ``[n]`` RMS over the executed entries, in half action ranges


@dataclass(frozen=True)
class NoiseOptimisation:
    """Gradient descent through the frozen decoder, from prior noise: accurate, and costs ``steps`` backward passes.

    ``min_w ||decode(s, w)_{<k} - a_{<k}||²`` by Adam. The best iterate of the best start is kept. Coordinates of ``w``
    that do not move the executed actions keep their start's value and stay distributed as the prior; the others may
    end where the prior rarely goes.

    The bound is kept by projection, a clamp after every step: a tanh parameterisation would flatten the gradient next
    to the bound, where many solutions lie, and never reach it.

    Args:
        steps: Adam steps; the seeds have 20 to 50.
        lr: Adam's learning rate, in standard deviations of the prior per step; the seeds have 1e-2 to 1e-1.
        starts: initial noises per element.

    Raises:
        UserError: a count below 1, or a learning rate that is not positive.
    """

    needs_gradient: ClassVar[bool] = True

    steps: int = 50
    lr: float = 0.1
    starts: int = 4

    def __post_init__(self) -> None:
        positive_int("steps", self.steps)
        positive_int("starts", self.starts)
        if not self.lr > 0:
            raise UserError(f"lr must be positive, got {self.lr}")

    @property
    def candidates(self) -> int:
        """Prior noises that :meth:`search` begins with."""
        return self.starts

    def search(self, squared_error: SquaredError, candidates: Tensor, bound: float) -> InvertedNoise:
        """Starts ``[m, starts, latent_dim]`` within the bound -> noise ``[m, latent_dim]``, squared error ``[m]``."""
        w = candidates.clone().requires_grad_()
        optimiser = torch.optim.Adam([w], lr=self.lr)
        best = InvertedNoise(candidates, torch.full_like(candidates[..., 0], torch.inf))
        for step in range(self.steps + 1):
            with torch.enable_grad():
                error = squared_error(w)  # (m, starts)
                total = error.sum()
            best = _better(best, InvertedNoise(w.detach(), error.detach()))
            if step == self.steps:
                break
            if not error.requires_grad:  # a torch.no_grad inside of a policy that calls itself differentiable
                raise UserError(NO_GRADIENT)
            (w.grad,) = torch.autograd.grad(total, w)  # not backward(): the base policy's weights get none
            optimiser.step()
            with torch.no_grad():
                w.clamp_(-bound, bound)
        return _best_candidate(best)


@dataclass(frozen=True)
class NoiseRetrieval:
    """The nearest decoded head among prior samples: coarse, needs no gradient, and stays where the prior is.

    More samples help slowly in many dimensions.

    Args:
        samples: prior noises per element, M.

    Raises:
        UserError: a count below 1.
    """

    needs_gradient: ClassVar[bool] = False

    samples: int = 64

    def __post_init__(self) -> None:
        positive_int("samples", self.samples)

    @property
    def candidates(self) -> int:
        """Prior noises that :meth:`search` chooses from."""
        return self.samples

    @torch.no_grad()
    def search(self, squared_error: SquaredError, candidates: Tensor, bound: float) -> InvertedNoise:
        """Samples ``[m, samples, latent_dim]`` -> noise ``[m, latent_dim]``, squared error ``[m]``."""
        return _best_candidate(InvertedNoise(candidates, squared_error(candidates)))


InversionMethod = NoiseOptimisation | NoiseRetrieval


def invert_noise(
    decoder: NoiseDecoder,
    observations: TensorDictBase,
    action_chunk: Tensor,
    method: InversionMethod,
    executed_steps: Tensor | None = None,
    *,
    seed: int = 0,
    first_index: int = 0,
    batch_size: int = 1024,
) -> InvertedNoise:
    """Finds, for every element, noise within the decoder's bound that decodes into its executed actions.

    Element ``i`` starts from noise ``N(0, I)``, clamped to the bound, that depends on ``seed`` and ``first_index + i``
    alone: cutting the data differently, or another ``batch_size``, changes the result only by the rounding of batched
    kernels. Torch's random state and the base policy's ``.grad`` stay untouched.

    Args:
        decoder: the frozen base policy with its noise layout and ``action_magnitude``, on any device.
        observations: ``[n]`` with the entries that the base policy reads; others are ignored.
        action_chunk: ``[n, act_horizon, action_dim]`` in env units.
        method: :class:`NoiseOptimisation` or :class:`NoiseRetrieval`.
        executed_steps: ``[n, 1]`` integers in 1..act_horizon; only the first so many actions of a chunk count, the rest
            may hold anything. ``None`` counts all.
        seed: of the initial noise, not negative.
        first_index: index of the first element in the whole data.
        batch_size: noises decoded at once, which bounds the memory.

    Returns:
        Noise ``[n, latent_dim]`` and its reconstruction error ``[n]``, on the decoder's device. The error is the RMS
        over the executed entries of ``(decoded - executed) / half_range``, where the half range is that of the base
        policy's ``action_low`` to ``action_high``: 0.05 means 2.5 % of the range, whatever the task.

    Raises:
        UserError: shapes or ``executed_steps`` that do not fit, or a policy without the gradient that the method needs.
        NonFiniteError: NaN or infinity in an observation, an executed action, or every decoded candidate.
    """
    positive_int("batch_size", batch_size)
    positive_int("seed", seed, at_least=0)
    if method.needs_gradient and not decoder.base_policy.differentiable:
        raise UserError(NO_GRADIENT)
    observations, chunk, executed = executed_actions(decoder, observations, action_chunk, executed_steps)
    device = decoder.base_policy.device
    shape, bound = (method.candidates, decoder.layout.dim), decoder.action_magnitude

    rows = max(1, batch_size // method.candidates)
    found = [InvertedNoise(torch.empty(0, shape[1], device=device), torch.empty(0, device=device))]
    for begin in range(0, len(chunk), rows):
        part = slice(begin, begin + rows)
        numbers = range(first_index + begin, first_index + begin + len(chunk[part]))
        candidates = torch.stack([_prior_noise(seed, number, shape) for number in numbers]).to(device)
        data = observations[part].to(device), chunk[part].to(device, torch.float32), executed[part].to(device)
        error_of = _squared_error(decoder, *data, batch_size)
        noise, squared = method.search(error_of, candidates.clamp(-bound, bound), bound)
        if not squared.isfinite().all():
            bad = numbers[int((~squared.isfinite()).int().argmax())]
            raise NonFiniteError("the decoded action", bad, "element", "are the base policy's weights trained?")
        found.append(InvertedNoise(noise, squared.sqrt()))
    return InvertedNoise(*map(torch.cat, zip(*found, strict=True)))


def executed_actions(
    decoder: NoiseDecoder, observations: TensorDictBase, action_chunk: Tensor, executed_steps: Tensor | None
) -> tuple[TensorDictBase, Tensor, Tensor]:
    """Checks one data set and blanks what was not executed. Raises as :func:`invert_noise`.

    Returns:
        The entries that the base policy reads ``[n]``, the chunk ``[n, act_horizon, action_dim]`` with zeros from
        action ``k`` on, and the mask of the executed actions ``[n, act_horizon]``.
    """
    policy, act_horizon = decoder.base_policy, decoder.act_horizon
    missing = [entry_name(key) for key in policy.in_keys if observations.get(key, None) is None]
    if missing:
        raise UserError(f"the base policy reads {', '.join(missing)}, which the observations have not")
    n = len(action_chunk)
    if observations.batch_size != (n,) or action_chunk.shape != (n, act_horizon, policy.action_dim):
        raise UserError(
            f"expected observations [n] and action chunks [n, {act_horizon}, {policy.action_dim}]; "
            f"got {list(observations.batch_size)} and {list(action_chunk.shape)}"
        )
    executed = torch.ones(n, act_horizon, dtype=torch.bool, device=action_chunk.device)
    if executed_steps is not None:
        if executed_steps.shape != (n, 1) or not ((executed_steps >= 1) & (executed_steps <= act_horizon)).all():
            raise UserError(
                f"{STEPS_KEY} must be [{n}, 1] with values in 1..{act_horizon} (act_horizon); got "
                f"{list(executed_steps.shape)}" + (f" in {executed_steps.min()}..{executed_steps.max()}" if n else "")
            )
        executed = torch.arange(act_horizon, device=executed.device) < executed_steps.to(executed.device)
    chunk = torch.where(executed.unsqueeze(-1), action_chunk, 0)
    observations = observations.select(*policy.in_keys)
    for key, value in [*observations.items(True, True), (CHUNK_KEY, chunk)]:
        bad = ~value.isfinite().flatten(1).all(1)  # (n,)
        if bad.any():
            raise NonFiniteError(entry_name(key), int(bad.int().argmax()), "element")
    return observations, chunk, executed


def _squared_error(
    decoder: NoiseDecoder, observations: TensorDictBase, chunk: Tensor, executed: Tensor, batch_size: int
) -> SquaredError:
    """``w [m, c, latent_dim]`` -> mean square over the executed entries, in half action ranges, ``[m, c]``."""
    half_range = (decoder.base_policy.action_high - decoder.base_policy.action_low) / 2  # (action_dim,)
    entries = executed.sum(-1, keepdim=True) * chunk.shape[-1]  # (m, 1)

    def of_some(w: Tensor) -> Tensor:
        seen = observations.unsqueeze(1).expand(*w.shape[:2])
        difference = (decoder.decode(seen, w) - chunk.unsqueeze(1)) / half_range  # (m, c, H_a, action_dim)
        return (difference.square() * executed[:, None, :, None]).sum((-1, -2)) / entries

    def squared_error(w: Tensor) -> Tensor:
        at_once = max(1, batch_size // w.shape[0])
        return torch.cat([of_some(some) for some in w.split(at_once, dim=1)], dim=1)

    return squared_error


def _prior_noise(seed: int, index: int, shape: tuple[int, ...]) -> Tensor:
    # NumPy mixes a pair of integers into one seed, and its stream is the same for every device of the policy.
    return torch.from_numpy(np.random.default_rng((seed, index)).standard_normal(shape, dtype=np.float32))


def _better(a: InvertedNoise, b: InvertedNoise) -> InvertedNoise:
    """The better of two per candidate; a NaN error is never the better one."""
    improved = b.error < a.error
    return InvertedNoise(torch.where(improved.unsqueeze(-1), b.noise, a.noise), torch.where(improved, b.error, a.error))


def _best_candidate(found: InvertedNoise) -> InvertedNoise:
    """``[m, c, latent_dim]`` and ``[m, c]`` -> the smallest error of each element."""
    error, best = found.error.where(~found.error.isnan(), torch.inf).min(1)
    return InvertedNoise(found.noise[torch.arange(len(best), device=best.device), best], error)
