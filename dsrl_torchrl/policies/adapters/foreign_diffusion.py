"""A diffusion policy that another project trained: entries -> condition, noise -> chunk by DDIM, all in env units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.ddim import DDIM
from dsrl_torchrl.policies.adapters.history_encoder import Affine, HistoryEncoder, Image, State
from dsrl_torchrl.policies.base_policy import BasePolicy
from dsrl_torchrl.policies.normalisation import MIN_ACTION_HALF_RANGE

#: Half an action's range where it is there only against a division by zero: 5e-9 in LeRobot's checkpoints, 0 in DPPO's.
NEVER_MOVED = 1e-6


class ForeignDiffusionPolicy(BasePolicy):
    """What the loaders of :mod:`dsrl_torchrl.policies.adapters` return, frozen.

    Args:
        features: how the network reads each entry, by the entry's name, in its order.
        network: ``(x [B, H, A], timestep, condition [B, n * features]) -> [B, H, A]``.
        sampler: see :class:`~dsrl_torchrl.policies.adapters.ddim.DDIM`.
        action_scale: of ``[A]``: env units to the network's.
        pred_horizon, obs_horizon, first_action, control_mode: :class:`~dsrl_torchrl.policies.BasePolicy`'s.
    """

    def __init__(
        self,
        features: Mapping[NestedKey, State | Image],
        network: nn.Module,
        sampler: DDIM,
        action_scale: Affine,
        *,
        pred_horizon: int,
        obs_horizon: int,
        first_action: int,
        control_mode: str = "",
    ) -> None:
        super().__init__(
            action_scale.shift.numel(),
            pred_horizon,
            in_keys=list(features),
            obs_horizon=obs_horizon,
            first_action=first_action,
            control_mode=control_mode,
        )
        self.encoder = HistoryEncoder(self.in_keys, list(features.values()), obs_horizon)
        self.network, self.sampler, self.action_scale = network, sampler, action_scale
        scales = {str(name): feature.scale for name, feature in features.items()} | {"the action": action_scale}
        for name, scale in scales.items():
            sound = all(value.isfinite().all() for value in (scale.shift, scale.width, scale.bias))
            if not sound or (scale is not action_scale and not scale.width.all()):
                raise UserError(f"the checkpoint's normalisation of {name} holds NaN, infinity or a width of zero")
        one = torch.ones(self.action_dim)
        low, high = action_scale.inverse(-one), action_scale.inverse(one)
        # A dimension that never moved in the data has hardly a range: its rounding errors would count as moves.
        still = MIN_ACTION_HALF_RANGE * ((high - low) / 2 < NEVER_MOVED)
        self.action_low, self.action_high = low - still, high + still

    @property
    def dtype(self) -> None:  # type: ignore[override]
        """Entries and noise come as they are: only the networks work in their own precision."""
        return None

    @property
    def config(self) -> dict[str, Any]:
        """What changes the chunks and is not in the state dict."""
        return {"sampler": self.sampler.config, "network": str(self.network), "encoder": str(self.encoder)}

    def observation_statistics(self, key: NestedKey) -> tuple[Tensor, Tensor] | None:
        feature = dict(zip(self.in_keys, self.encoder.features, strict=True)).get(key)
        if feature is None or feature.statistics is None:
            return None
        mean, std = (value.to(self.device).repeat(self.obs_horizon) for value in feature.statistics)
        return mean, std

    def forward(self, *entries_and_noise: Tensor) -> Tensor:
        """Entries ``[*B, n * d]`` or ``[*B, n * C, H, W]``, noise ``[*B, pred_horizon, A]`` -> noise's shape."""
        *entries, noise = entries_and_noise
        return self.from_features(self.features(*entries), noise)

    @property
    def features_dim(self) -> int:
        """Size of the network's condition: what its own encoders make of all steps of the history."""
        return self.encoder.features_dim

    def features(self, *entries: Tensor) -> Tensor:
        return self.encoder(entries)

    def from_features(self, features: Tensor, noise: Tensor) -> Tensor:
        if noise.shape != (*features.shape[:-1], self.pred_horizon, self.action_dim):
            raise UserError(
                f"the policy expects noise {[*features.shape[:-1], self.pred_horizon, self.action_dim]} beside these "
                f"observations, got {list(noise.shape)}"
            )
        dtype = next(self.network.parameters()).dtype
        condition = features.to(dtype).reshape(-1, self.features_dim)
        x = noise.to(self.action_scale.shift.dtype).reshape(-1, self.pred_horizon, self.action_dim)
        chunk = self.sampler(lambda x, t: self.network(x.to(dtype), t, condition).to(x.dtype), x)
        return self.action_scale.inverse(chunk).reshape(noise.shape)


def named_entries(entries: Mapping[str, Any] | None, wanted: Sequence[str], where: str) -> dict[str, NestedKey]:
    """Our entry for each of the checkpoint's inputs, in the checkpoint's order.

    Args:
        entries: the user's mapping, their name -> ours; a list is a nested key.
        wanted: the checkpoint's inputs.
        where: the checkpoint.

    Raises:
        UserError: an input without an entry, or an entry for an input that is not there.
    """
    entries = dict(entries or {})
    unknown = sorted(set(entries) - set(wanted))
    missing = [name for name in wanted if name not in entries]
    if unknown or missing:
        problem = f"{unknown[0]} is none of them" if unknown else f"none is given for {missing[0]}"
        raise UserError(
            f"entries should name an entry of the env for each input of {where} ({', '.join(wanted)}): {problem}"
        )
    found: dict[str, NestedKey] = {}
    for name in wanted:
        entry = tuple(entries[name]) if isinstance(entries[name], list) else entries[name]
        if not all(isinstance(step, str) for step in (entry if isinstance(entry, tuple) and entry else (entry,))):
            raise UserError(f"entries should give the name of an entry of the env for {name}, got {entry!r}")
        if entry in found.values():
            raise UserError(f"entries should name an entry of its own for each input of {where}: {entry} stands twice")
        found[name] = entry
    return found
