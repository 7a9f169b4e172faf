"""What the flow, diffusion and shortcut policies share: a network over normalised chunks, and the way in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn
from typing_extensions import Self

from dsrl_torchrl.errors import UserError, positive_int
from dsrl_torchrl.networks.augmentation import random_shift
from dsrl_torchrl.networks.encoders import PixelEncoder
from dsrl_torchrl.policies.base_policy import BasePolicy
from dsrl_torchrl.policies.networks import make_network
from dsrl_torchrl.policies.normalisation import ObservationScale, action_range


class GenerativePolicy(BasePolicy):
    """A policy over one flat entry, and images, that turns noise into a chunk by one network's ``sampler_steps`` calls.

    Works in normalised space: the subclass's :meth:`sample` sees observations of unit variance and makes chunks in
    [-1, 1], so a decoded action never leaves the range of the demonstrations. Each image is encoded once per chunk
    (:class:`~dsrl_torchrl.networks.encoders.PixelEncoder`) and joins the flat entry.

    Args:
        observation_dim: size of the flat observation, ``obs_horizon`` times the size of one primitive step's.
        action_dim, pred_horizon, obs_horizon, control_mode: :class:`~dsrl_torchrl.policies.base_policy.BasePolicy`'s.
        sampler_steps: number of network calls per chunk. Fewer are cheaper and narrow the spread over noise.
        network: ``{"kind": "mlp" | "unet", ...}`` and that network's options
            (:mod:`~dsrl_torchrl.policies.networks`); a 3x256 MLP by default.
        in_key: the flat entry that it reads.
        image_keys: the images that it reads, after the flat entry.
        image_shapes: ``[C, H, W]`` of each, the frames of ``obs_horizon`` in C.
    """

    policy_type: ClassVar[str]
    condition_dim: ClassVar[int] = 0  # features that a subclass appends to its network's observation

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        pred_horizon: int,
        obs_horizon: int = 1,
        sampler_steps: int = 5,
        network: Mapping[str, Any] | None = None,
        control_mode: str = "",
        in_key: NestedKey = "observation",
        image_keys: Sequence[NestedKey] = (),
        image_shapes: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(
            action_dim,
            pred_horizon,
            in_keys=[in_key, *image_keys],
            obs_horizon=obs_horizon,
            control_mode=control_mode,
        )
        if len(image_keys) != len(image_shapes):
            raise UserError(f"{len(image_keys)} image_keys, but {len(image_shapes)} image_shapes")
        self.image_shapes = [tuple(shape) for shape in image_shapes]
        self.observation_dim = positive_int("observation_dim", observation_dim)
        if observation_dim % obs_horizon:
            raise UserError(
                f"observation_dim must be a multiple of obs_horizon (the history is flattened): "
                f"got {observation_dim} and {obs_horizon}"
            )
        self.observation_scale = ObservationScale(observation_dim)
        self.sampler_steps = positive_int("sampler_steps", sampler_steps)
        self.image_encoders = nn.ModuleList(PixelEncoder(shape) for shape in self.image_shapes)
        self.network = make_network(
            network or {"kind": "mlp"}, self.features_dim + self.condition_dim, action_dim, pred_horizon
        )

    @property
    def config(self) -> dict[str, Any]:
        """Every constructor argument, defaults included, as plain JSON values."""
        return {
            "observation_dim": self.observation_dim,
            "action_dim": self.action_dim,
            "pred_horizon": self.pred_horizon,
            "obs_horizon": self.obs_horizon,
            "sampler_steps": self.sampler_steps,
            "network": dict(self.network.options),
            "control_mode": self.control_mode,
            "in_key": _plain(self.in_keys[0]),
            "image_keys": [_plain(key) for key in self.in_keys[1:]],
            "image_shapes": [list(shape) for shape in self.image_shapes],
        }

    def fit_scales(self, observations: Tensor, actions: Tensor, valid: Tensor | None = None) -> Self:
        """Takes the scales of observations and actions from data.

        Args:
            observations: ``[*N, observation_dim]``.
            actions: ``[*N, pred_horizon, action_dim]`` in env units.
            valid: bool ``[*N, pred_horizon]``, False for padded actions, which are then left out.
        """
        low, high = action_range(actions, self.action_dim, valid)
        self.observation_scale.fit(observations)
        self.action_low.copy_(low)
        self.action_high.copy_(high)
        return self

    def observation_statistics(self, key: NestedKey) -> tuple[Tensor, Tensor] | None:
        if key != self.in_keys[0] or not self.observation_scale.fitted:
            return None
        return self.observation_scale.mean, self.observation_scale.std

    def cloning_loss(self) -> torch.nn.Module:
        """The behaviour-cloning loss that trains this policy."""
        raise NotImplementedError

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """What :meth:`features` gives ``[B, F]``, noise ``[B, H, A]`` -> normalised chunk ``[B, H, A]`` in [-1, 1]."""
        raise NotImplementedError

    def forward(self, observation: Tensor, *images_and_noise: Tensor) -> Tensor:
        """Decodes.

        Args:
            observation: ``[*B, observation_dim]``.
            images_and_noise: uint8 ``[*B, C, H, W]`` for each of ``image_keys``, then the noise
                ``[*B, pred_horizon, action_dim]``.

        Returns:
            ``[*B, pred_horizon, action_dim]``.
        """
        *images, noise = images_and_noise
        self.check_shapes(observation, images, noise)
        return self.from_features(self.features(observation, *images), noise)

    @property
    def features_dim(self) -> int:
        """Size of what :meth:`features` gives."""
        sizes: list[Any] = [encoder.out_features for encoder in self.image_encoders]
        return self.observation_dim + sum(sizes)

    def features(self, observation: Tensor, *images: Tensor) -> Tensor:
        """What the network reads: the flat entry in standard deviations and the images' features, ``[*B, F]``."""
        scaled = self.observation_scale(observation.to(self.action_low.dtype))  # simulators often hand out float64
        if self.training:
            images = tuple(_shifted(image) for image in images)
        return torch.cat([scaled, *(e(image) for e, image in zip(self.image_encoders, images, strict=True))], -1)

    def from_features(self, features: Tensor, noise: Tensor) -> Tensor:
        """``[*B, F]``, ``[*B, pred_horizon, action_dim]`` -> ``[*B, pred_horizon, action_dim]``."""
        chunk = self.sample(
            features.reshape(-1, features.shape[-1]),
            noise.to(self.action_low.dtype).reshape(-1, self.pred_horizon, self.action_dim),
        )
        return self.denormalise_action(chunk).reshape(noise.shape)

    def check_shapes(self, observation: Tensor, images: Sequence[Tensor], chunk: Tensor, name: str = "noise") -> None:
        """Raises a :class:`UserError` that prints the shapes unless they fit the policy and each other.

        ``chunk`` is noise or actions; ``name`` says which in the message.
        """
        batch = observation.shape[:-1]
        wanted = [(*batch, *shape) for shape in self.image_shapes]
        if [tuple(image.shape) for image in images] != wanted:
            raise UserError(
                f"{type(self).__name__} expected images {[list(shape) for shape in wanted]} "
                f"({', '.join(map(str, self.in_keys[1:])) or 'none'}), got {[list(image.shape) for image in images]}"
            )
        chunk_shape = (*batch, self.pred_horizon, self.action_dim)
        if observation.shape[-1:] != (self.observation_dim,) or chunk.shape != chunk_shape:
            raise UserError(
                f"{type(self).__name__} expected {self.in_keys[0]} [*B, {self.observation_dim}] and {name} "
                f"[*B, {self.pred_horizon}, {self.action_dim}] with the same leading dims; "
                f"got {self.in_keys[0]} {list(observation.shape)} and {name} {list(chunk.shape)}"
            )

    def squared_error(self, observation: Tensor, chunk: Tensor) -> Tensor:
        """The training objective before its reduction, at a random time and noise for every element.

        What :meth:`features` gives ``[B, F]`` and normalised expert chunk ``[B, H, A]`` -> ``[B, H, A]``. Draws from
        the global generator: first the noise, then the time.
        """
        raise NotImplementedError


def _shifted(image: Tensor) -> Tensor:
    """By up to a 32nd of the picture, less than Diffusion Policy's crops: the robot's pose does not move along."""
    flat = image.flatten(0, -4) if image.ndim > 3 else image.unsqueeze(0)
    return random_shift(flat, max(1, min(image.shape[-2:]) // 32)).reshape(image.shape)


def _plain(key: NestedKey) -> str | list[str]:
    return list(key) if isinstance(key, tuple) else key


def time_like(x: Tensor, value: float) -> Tensor:
    """``[B]`` filled with one diffusion or flow time, for ``x`` ``[B, H, A]``."""
    return torch.full((x.shape[0],), value, dtype=x.dtype, device=x.device)
