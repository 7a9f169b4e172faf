"""The latent policy ``π^W(w | s)``: a squashed diagonal Gaussian over noise (Eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule, TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import ProbabilisticActor, TanhNormal

from dsrl_torchrl.networks.encoders import FEATURES_KEY, ObservationEncoder
from dsrl_torchrl.networks.mlp import make_mlp


class LatentActor(ProbabilisticActor):
    """``features`` ``[*B, in_features]`` -> ``action`` ``[*B, latent_dim]`` in ``±action_magnitude``.

    Args:
        in_features: size of the features.
        latent_dim: size of the noise.
        action_magnitude: bound of the noise, in standard deviations of the prior.
        num_cells: hidden widths. The official runs use three layers of 128 (Gym, LIBERO) to 2048 (Robomimic).
        activation: the official runs use Tanh.
        initial_std: standard deviation before the squashing, in units of ``action_magnitude``, at initialisation.
        layer_norm: after every hidden layer, as in RLinf's.
        log_std_range: bounds of the logarithm that the network gives of that standard deviation; RLinf and dsrl_pi0
            clip it to [-20, 2]. ``None``: a biased softplus.
        in_key: of the features.
    """

    def __init__(
        self,
        in_features: int,
        latent_dim: int,
        action_magnitude: float,
        *,
        num_cells: Sequence[int],
        activation: type[nn.Module],
        initial_std: float,
        layer_norm: bool = False,
        log_std_range: tuple[float, float] | None = None,
        in_key: NestedKey = FEATURES_KEY,
    ) -> None:
        head = nn.Linear(num_cells[-1], 2 * latent_dim)
        # The first policy is the same for every state: mean at zero noise, std as asked.
        nn.init.uniform_(head.weight, -1e-3, 1e-3)
        nn.init.zeros_(head.bias)
        extractor: nn.Module = NormalParamExtractor(scale_mapping=f"biased_softplus_{initial_std}", scale_lb=1e-4)
        if log_std_range is not None:
            nn.init.constant_(head.bias[latent_dim:], math.log(initial_std))
            extractor = ClippedLogStd(*log_std_range)
        network = nn.Sequential(
            make_mlp(in_features, num_cells, activation, layer_norm),
            head,
            extractor,
            Spread(),
        )
        # tanh_loc keeps the mean within ±5 before the squashing, from where it can still come back.
        bounds = {"low": -action_magnitude, "high": action_magnitude, "tanh_loc": True}
        super().__init__(
            TensorDictModule(network, in_keys=[in_key], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            out_keys=["action"],
            distribution_class=TanhNormal,
            distribution_kwargs=bounds,
            spec=Bounded(-action_magnitude, action_magnitude, shape=(latent_dim,)),
            return_log_prob=False,
        )
        self.action_magnitude, self.features_key = action_magnitude, in_key

    @property
    def spread(self) -> Tensor:
        """See :class:`Spread`."""
        return self.module[0].module[-1].share

    def get_dist(self, tensordict: TensorDictBase, *args, **kwargs) -> TanhNormal:
        """``π^W(· | s)`` as it was learned, whatever its ``spread``.

        On tensors: writing loc and scale to a tensordict costs as much as a small network itself.
        """
        return self._dist(*self.module[0].module(tensordict.get(self.features_key)))

    def build_dist_from_params(self, td_params: TensorDictBase) -> TanhNormal:
        """From ``loc`` and ``scale``, as losses make it that evaluate the network by themselves (REDQLoss)."""
        return self._dist(td_params.get("loc"), td_params.get("scale"))

    def _dist(self, loc: Tensor, scale: Tensor) -> TanhNormal:
        scale = scale / self.spread
        # Not as numbers, which TanhNormal copies from the host: no CUDA graph can hold that.
        high = loc.new_full((), self.action_magnitude)
        return TanhNormal(loc, scale, low=-high, high=high, tanh_loc=True)

    def draw(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor]:
        """``w ~ π^W(· | s)`` ``[*B, latent_dim]``, reparameterised, and ``log π(w | s)`` ``[*B]``.

        The density is that of the very Gaussian value that was drawn: inverting the tanh of a saturated noise gives
        entropies of 1e5 and, through them, diverging critics.
        """
        loc, scale = self.module[0].module(tensordict.get(self.features_key))
        # As get_dist's, in half of its time: bounds other than ±1 cost as much again, in tanh_loc, too; and the safe
        # tanh is for the inverse, which nothing needs here.
        loc, high = 5 * torch.tanh(loc / 5), loc.new_ones(())
        unit, log_prob = TanhNormal(loc, scale, low=-high, high=high, safe_tanh=False).rsample_and_log_prob()
        return self.action_magnitude * unit, log_prob - unit.shape[-1] * math.log(self.action_magnitude)


class Spread(nn.Module):
    """Mean and std, each ``[*B, D]``: the std times ``share``, a buffer that no gradient moves.

    An actor that imitates the better noises keeps the prior's spread in every direction that the critic does not tell
    apart. It explores with that; what it has learned shows when it acts closer to its mode.
    """

    share: Tensor  # ()

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.ones(()))

    def forward(self, distribution: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """See the class."""
        loc, scale = distribution
        return loc, scale * self.share


class ClippedLogStd(nn.Module):
    """``[*B, 2 D]`` -> mean and ``exp(log std)``, each ``[*B, D]``, the logarithm clipped to ``[low, high]``."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        loc, log_std = x.chunk(2, dim=-1)
        return loc, log_std.clamp(self.low, self.high).exp()


class LatentPolicy(TensorDictModuleBase):
    """Encoder, then actor: reads observation entries and writes ``action`` alone.

    Args:
        encoder: entries to ``features``.
        actor: ``features`` to ``action``.
    """

    def __init__(self, encoder: ObservationEncoder, actor: TensorDictModuleBase) -> None:
        super().__init__()
        self.in_keys = encoder.in_keys
        self.out_keys = ["action"]
        self.encoder, self.actor = encoder, actor

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        encoded = self.encoder(tensordict.select(*self.in_keys))
        return tensordict.set("action", self.actor(encoded).get("action"))


class ScoredPolicy(LatentPolicy):
    """A latent policy that also writes the log-density of what it draws, ``[*B]``: on-policy losses need it.

    It is evaluated at the noise, as the losses evaluate it later, so that an unchanged policy has ratios of 1 even
    where the inverse of a saturated tanh isn't exact.
    """

    actor: LatentActor

    def __init__(self, encoder: ObservationEncoder, actor: LatentActor, log_prob_key: NestedKey) -> None:
        super().__init__(encoder, actor)
        self.log_prob_key = log_prob_key
        self.out_keys = ["action", log_prob_key]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        encoded = self.encoder(tensordict.select(*self.in_keys))
        noise = self.actor(encoded).get("action")
        return tensordict.set("action", noise).set(self.log_prob_key, self.actor.get_dist(encoded).log_prob(noise))
