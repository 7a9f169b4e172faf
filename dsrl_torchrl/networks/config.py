"""Sizes and kinds of the learned networks, and the networks themselves for a latent env."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, PlainValidator, model_validator
from tensordict import TensorDictBase
from tensordict.utils import NestedKey
from torch import nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.networks.critics import MLPCritic, make_q_action, make_q_noise
from dsrl_torchrl.networks.encoders import (
    FEATURES_KEY,
    LinearStateEncoder,
    ObservationEncoder,
    PixelEncoder,
    StateEncoder,
)
from dsrl_torchrl.networks.latent_actor import LatentActor
from dsrl_torchrl.options import Options, option, shown
from dsrl_torchrl.policies.base_policy import BasePolicy
from dsrl_torchrl.policies.normalisation import observation_statistics

Share = Annotated[float, Field(ge=0, le=1)]
Hue = Annotated[float, Field(ge=0, le=0.5)]
#: Axes of so many entries hold the colours of an image; a float map of one is a depth map.
COLOURS = (3, 4)
#: Sides from which an entry of three axes is a picture, whatever its layout and its dtype.
PICTURE_SIDE = 16
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}


def _entries(value: Any) -> Any:
    """Entries by name, as a tuple; YAML has lists, also for nested ones."""
    if value is None:
        return None
    keys = tuple(tuple(key) if isinstance(key, list) else key for key in value) if isinstance(value, Sequence) else ()
    names = all(isinstance(key, NestedKey) and key for key in keys) and not isinstance(value, str)
    if not (keys and names and len(set(keys)) == len(keys)):
        raise ValueError(f"should name entries of the env, each once, like [observation]; got {shown(value)}")
    return keys


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class NetworkConfig(Options):
    """Latent policy and critics, the same in both stages."""

    in_keys: Annotated[Any, PlainValidator(_entries)] = option(
        None, "entries that latent policy and critics read; null: those of the base policy"
    )
    num_critics: int = option(5, "members of each ensemble: two hardly agree on which noise is better", ge=1, le=1_000)
    num_cells: Annotated[tuple[Annotated[int, Field(ge=1, le=100_000)], ...], BeforeValidator(_tuple)] = option(
        (128, 128, 128), "hidden widths", min_length=1, max_length=100
    )
    activation: Literal["relu", "tanh", "silu"] = option("relu", "of the hidden layers")
    layer_norm: bool = option(True, "in the critics")
    actor_layer_norm: bool = option(False, "in the latent policy")
    chunk_gain: float = option(5.0, "of Q^A's chunk input: about the inverse of the base policy's steerability", gt=0)
    critic_head_std: float | None = option(None, "of the critics' last layer at first; null: PyTorch's", gt=0)
    initial_std: float = option(0.5, "of the latent policy before the squashing", gt=0)
    log_std_range: Annotated[tuple[float, float] | None, BeforeValidator(_tuple)] = option(
        None, "the latent policy gives the logarithm of its std, clipped to this; null: a softplus"
    )
    actor_encoder: Literal["shared", "own"] = option(
        "shared", "the latent policy reads the critics' trained features; own: encoders that its own loss trains"
    )
    random_shift: int = option(0, "of images, in training updates alone, by up to so many pixels; DrQ: 4", ge=0, le=64)
    color_jitter: Annotated[tuple[Share, Share, Share, Hue] | None, BeforeValidator(_tuple)] = option(
        None, "of images, in training updates alone: brightness, contrast, saturation, hue"
    )
    encoders: dict[str, Callable[..., Any]] = option(
        {"state": StateEncoder, "pixels": PixelEncoder}, "encoder of a vector (state) and of a uint8 image (pixels)"
    )

    @model_validator(mode="after")
    def _ordered(self) -> NetworkConfig:
        if self.log_std_range is not None and self.log_std_range[0] >= self.log_std_range[1]:
            raise ValueError(
                f"log_std_range should be the lower bound and a higher one, got {list(self.log_std_range)}"
            )
        return self

    @property
    def sizes(self) -> dict[str, Any]:
        """Of the MLPs."""
        return {"num_cells": self.num_cells, "activation": ACTIVATIONS[self.activation]}


def network_keys(base_policy: BasePolicy, config: NetworkConfig) -> list[NestedKey]:
    """The entries that latent policy and critics read."""
    return list(base_policy.in_keys if config.in_keys is None else config.in_keys)


def observation_keys(base_policy: BasePolicy, config: NetworkConfig) -> list[NestedKey]:
    """The entries that rollouts and replay have to keep: the base policy's, to decode, and the networks'."""
    return list(dict.fromkeys([*base_policy.in_keys, *network_keys(base_policy, config)]))


def check_entries(env: LatentActionEnv, config: NetworkConfig) -> None:
    """Raises :class:`UserError` for an entry that the networks are to read and the env does not give."""
    has = env.observation_spec.keys(True, True)
    for key in network_keys(env.decoder.base_policy, config):
        if key not in has:
            raise UserError(f"networks.in_keys names {key!r}, but the env gives {', '.join(map(str, has))}")


def make_encoder(
    env: LatentActionEnv, config: NetworkConfig, data: TensorDictBase | None = None, out_key: NestedKey = FEATURES_KEY
) -> ObservationEncoder:
    """The encoder of every entry that the networks read, on the latent env's device.

    State entries are standardised by the base policy's statistics, by those of ``data`` where it has none, and
    otherwise left as they are.

    Args:
        env: the latent env.
        config: kinds of encoders.
        data: macro transitions ``[n]``.
        out_key: where it writes the features.

    Raises:
        UserError: an entry that the env does not give, statistics of another size, or images that are not uint8
            ``[C, H, W]``, too small for their encoder, or have no colours to jitter.
    """
    check_entries(env, config)
    spec, policy = env.observation_spec, env.decoder.base_policy
    encoders: dict[NestedKey, nn.Module] = {}
    for key in network_keys(policy, config):
        shape = tuple(spec[key].shape[env.batch_dims :])
        frames = policy.obs_horizon if key in policy.in_keys else 1
        if spec[key].dtype == torch.uint8 and len(shape) == 3:
            _refuse_channels_last(key, shape, frames)
            if config.color_jitter is not None and shape[0] % 3:
                raise UserError(f"networks.color_jitter is for RGB images, but {key!r} has {shape[0]} channels")
            encoders[key] = config.encoders["pixels"](shape)
            continue
        statistics = policy.observation_statistics(key)
        if statistics is None and data is not None:
            statistics = observation_statistics(data.get(key).flatten(1).float())
        if statistics is not None:
            _check_statistics(policy, key, shape, statistics)
        encoders[key] = config.encoders["state"](shape, statistics)
        ours = isinstance(encoders[key], (StateEncoder, LinearStateEncoder))  # one of the user's own may read pictures
        if ours and spec[key].dtype.is_floating_point:
            _refuse_picture(key, shape, frames)
    return ObservationEncoder(encoders, out_key).to(env.decoder.device)


def _refuse_channels_last(key: NestedKey, shape: tuple[int, ...], frames: int) -> None:
    """Raises :class:`UserError` for gymnasium's layout, whose rows the convolutions would take for colours."""
    channels = (1, *COLOURS)
    if shape[-1] in channels and min(shape[:-1]) >= PICTURE_SIDE and shape[0] // frames not in channels:
        raise UserError(
            f"images should be uint8 [C, H, W], but {key!r} is {list(shape)}: put channels first below the latent env, "
            f"by TorchRL's PermuteTransform((-1, -3, -2), in_keys=[{key!r}])"
        )


def _refuse_picture(key: NestedKey, shape: tuple[int, ...], frames: int) -> None:
    """Raises :class:`UserError` for a picture of floats, whose every pixel would be a number of the state."""
    if len(shape) != 3:
        return
    first = shape[0] // frames in COLOURS and min(shape[1:]) >= PICTURE_SIDE
    last = shape[-1] in COLOURS and min(shape[:-1]) >= PICTURE_SIDE
    if first or last:
        raise UserError(
            f"images should be uint8 [C, H, W], but {key!r} is {list(shape)} of floats: give the networks the picture "
            "as it was before ToTensorImage, or networks.in_keys without it"
        )


def _check_statistics(
    policy: BasePolicy, key: NestedKey, shape: tuple[int, ...], statistics: tuple[torch.Tensor, torch.Tensor]
) -> None:
    for name, value in zip(("mean", "std"), statistics, strict=True):
        if value.numel() != math.prod(shape):
            raise UserError(
                f"{type(policy).__name__}.observation_statistics({key!r}) should give {math.prod(shape)} numbers, as "
                f"the env's entry has, its {name} has {value.numel()}"
            )
        if not bool(torch.isfinite(value).all()) or (name == "std" and not bool((value > 0).all())):
            raise UserError(
                f"{type(policy).__name__}.observation_statistics({key!r}): its {name} should be finite"
                + (" and positive (1 for an entry that does not move)" if name == "std" else "")
            )


def make_actor(
    env: LatentActionEnv, config: NetworkConfig, in_features: int, in_key: NestedKey = FEATURES_KEY
) -> LatentActor:
    """The latent policy ``π^W``, which reads ``in_key``."""
    decoder = env.decoder
    actor = LatentActor(
        in_features,
        decoder.latent_dim,
        decoder.action_magnitude,
        **config.sizes,
        initial_std=config.initial_std,
        layer_norm=config.actor_layer_norm,
        log_std_range=config.log_std_range,
        in_key=in_key,
    )
    return actor.to(decoder.device)


def make_critics(env: LatentActionEnv, config: NetworkConfig, in_features: int) -> Mapping[str, MLPCritic]:
    """One member of ``Q^W`` (``q_noise``) and one of ``Q^A`` (``q_action``)."""
    decoder = env.decoder
    policy = decoder.base_policy
    sizes = {**config.sizes, "layer_norm": config.layer_norm, "head_std": config.critic_head_std}
    q_noise = make_q_noise(in_features, decoder.latent_dim, decoder.action_magnitude, **sizes)
    q_action = make_q_action(
        in_features, decoder.act_horizon, policy.action_low.cpu(), policy.action_high.cpu(), config.chunk_gain, **sizes
    )
    return {"q_noise": q_noise.to(decoder.device), "q_action": q_action.to(decoder.device)}
