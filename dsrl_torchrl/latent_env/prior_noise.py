"""The base policy seen as a latent policy: noise from its own prior, or the chunks that it decodes to."""

from __future__ import annotations

from typing import ClassVar

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase

from dsrl_torchrl.latent_env.base_chunk import ResidualPolicy
from dsrl_torchrl.latent_env.base_features import FeaturePolicy
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.policies.base_policy import BasePolicy
from dsrl_torchrl.policies.centred import CentredPolicy
from dsrl_torchrl.policies.identity import IdentityPolicy


class PriorNoise(TensorDictModuleBase):
    """``w = scale * N(0, I)``, whatever the observation: the base policy (scale 1) or its zero-noise mode (scale 0).

    Plain and unbounded, as the base policy's own user would draw it.

    Args:
        latent_dim: size of the noise: :attr:`NoiseDecoder.latent_dim` for the noise layout that training uses, the
            layout's ``full_dim`` for the base policy's own, with a noise for every step.
        scale: 1 for the prior, 0 for zero noise.
        device: of the noise: the latent env's.
    """

    in_keys: ClassVar[list] = []
    out_keys: ClassVar = ["action"]

    def __init__(self, latent_dim: int, scale: float = 1.0, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.scale = scale
        self.device = torch.device(device)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        noise = torch.randn(*tensordict.batch_size, self.latent_dim, device=self.device)
        return tensordict.set("action", self.scale * noise)


class UncentredNoise(PriorNoise):
    """The base policy under a :class:`~dsrl_torchrl.policies.centred.CentredPolicy`, by the prior of its own user.

    Args:
        decoder: of the latent env.
        latent_dim, scale: as :class:`PriorNoise`'s; of a subspace's coordinates the rest is drawn, too.
    """

    def __init__(self, decoder: NoiseDecoder, latent_dim: int, scale: float = 1.0) -> None:
        super().__init__(latent_dim, scale, decoder.device)
        policy = whole_base(decoder)
        assert isinstance(policy, CentredPolicy)
        # Not registered: they are the env's.
        self.__dict__.update(policy=policy, layout=decoder.layout, subspace=decoder.subspace)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        noise = super().forward(tensordict)["action"]
        if self.subspace is not None and noise.shape[-1] == self.subspace.dim:
            noise = self.subspace.complete(noise)
        return tensordict.set("action", self.policy.coordinates(self.layout.to_chunk_noise(noise)).flatten(-2))


class PriorChunks(TensorDictModuleBase):
    """The base policy in an env of raw action chunks: what it decodes from its own noise.

    Args:
        policy: of that env; its :attr:`~dsrl_torchrl.policies.identity.IdentityPolicy.base` acts.
        scale: of the noise, as :class:`PriorNoise`'s.
    """

    out_keys: ClassVar = ["action"]

    def __init__(self, policy: IdentityPolicy, scale: float = 1.0) -> None:
        super().__init__()
        self.policy, self.scale, self.in_keys = policy, scale, policy.base.in_keys

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        base, first = self.policy.base, self.policy.base.first_action
        noise = torch.randn(*tensordict.batch_size, base.noise_horizon, base.noise_dim, device=base.device)
        chunk = base.decode(tensordict, self.scale * noise)[..., first : first + self.policy.pred_horizon, :]
        return tensordict.set("action", self.policy.encode_chunk(chunk))


def whole_base(decoder: NoiseDecoder) -> BasePolicy:
    """What is steered, with its encoder."""
    policy = decoder.base_policy
    return policy.policy if isinstance(policy, FeaturePolicy) else policy


def make_prior(decoder: NoiseDecoder, scale: float = 1.0) -> TensorDictModuleBase:
    """The base policy as it acts by itself, whatever the learner's action is; on the decoder's device.

    Args:
        decoder: of the latent env.
        scale: of the base policy's noise: 1 for its prior, 0 for zero noise. Under a residual it draws its own.
    """
    policy = whole_base(decoder)
    if isinstance(policy, ResidualPolicy):
        return PriorNoise(decoder.latent_dim, 0.0, decoder.device)
    if isinstance(policy, IdentityPolicy):
        return PriorChunks(policy, scale)
    return PriorNoise(decoder.latent_dim, scale, decoder.device)


def make_own_prior(decoder: NoiseDecoder, scale: float = 1.0, *, full: bool = False) -> TensorDictModuleBase:
    """As :func:`make_prior`, but around zero noise: as the base policy's own user runs it, whatever its centre here.

    Args:
        decoder: of the latent env.
        scale: of the base policy's noise.
        full: a noise of its own for every step, whatever the noise layout.
    """
    if isinstance(whole_base(decoder), CentredPolicy):
        return UncentredNoise(decoder, decoder.layout.full_dim if full else decoder.latent_dim, scale)
    if full:
        return PriorNoise(decoder.layout.full_dim, scale, decoder.device)
    return make_prior(decoder, scale)
