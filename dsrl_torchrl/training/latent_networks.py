"""The learned networks for a latent env: made, saved, loaded."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from tensordict import TensorDictParams
from torchrl.modules import ProbabilisticActor, ValueOperator

from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.networks.action_critic import make_action_critic
from dsrl_torchrl.networks.latent_actor import make_latent_actor
from dsrl_torchrl.networks.latent_critic import make_latent_critic
from dsrl_torchrl.networks.encoders.state import ObservationFeatures
from dsrl_torchrl.policies.storage import write_atomically
from dsrl_torchrl.training.network_config import ACTIVATIONS, NetworkConfig


def make_actor(env: LatentActionEnv, config: NetworkConfig) -> ProbabilisticActor:
    """The latent policy ``π^W`` for ``env``, with the base policy's observation statistics."""
    return make_latent_actor(
        features=_features(env, config),
        latent_dim=env.noise_layout.dim,
        action_magnitude=env.decoder.action_magnitude,
        num_cells=config.num_cells,
        activation=ACTIVATIONS[config.activation],
        initial_std=config.initial_std,
    )


def make_noise_value_network(env: LatentActionEnv, config: NetworkConfig) -> ValueOperator:
    """One member of ``Q^W``."""
    return make_latent_critic(
        features=_features(env, config),
        latent_dim=env.noise_layout.dim,
        action_magnitude=env.decoder.action_magnitude,
        num_cells=config.num_cells,
        activation=ACTIVATIONS[config.activation],
        layer_norm=config.layer_norm,
    )


def make_action_value_network(env: LatentActionEnv, config: NetworkConfig) -> ValueOperator:
    """One member of ``Q^A``."""
    scales = env.decoder.base_policy.normalisation
    return make_action_critic(
        features=_features(env, config),
        act_horizon=env.noise_layout.act_horizon,
        action_low=scales.action_low,
        action_high=scales.action_high,
        gain=config.chunk_gain,
        num_cells=config.num_cells,
        activation=ACTIVATIONS[config.activation],
        layer_norm=config.layer_norm,
    )


def _features(env: LatentActionEnv, config: NetworkConfig) -> ObservationFeatures:
    scales = env.decoder.base_policy.normalisation
    return ObservationFeatures(scales.observation_mean, scales.observation_std, config.fourier_bands)


def save_actor(actor: ProbabilisticActor, folder: Path) -> None:
    """Writes the latent policy's weights to ``folder/actor.safetensors``, atomically."""
    _write(dict(actor.state_dict()), folder / "actor.safetensors")


def load_actor(env: LatentActionEnv, config: NetworkConfig, folder: Path) -> ProbabilisticActor:
    """Reads what :func:`save_actor` wrote, for the same env and configuration.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, or of another size.
    """
    path = folder / "actor.safetensors"
    actor = make_actor(env, config)
    try:
        actor.load_state_dict(_read(path))
    except RuntimeError as error:
        raise _unfit(path, str(error).splitlines()[0]) from None
    return actor.eval()


def save_critics(params: TensorDictParams, folder: Path, name: str) -> None:
    """Writes an ensemble's parameters ``[N, ...]`` to ``folder/<name>.safetensors``, atomically."""
    _write(_flat(params), folder / f"{name}.safetensors")


def load_critics(params: TensorDictParams, folder: Path, name: str) -> None:
    """Reads what :func:`save_critics` wrote into parameters of the same sizes, in place.

    Raises:
        CheckpointError: as :func:`load_actor`.
    """
    path = folder / f"{name}.safetensors"
    stored, wanted = _read(path), _flat(params)
    for key in sorted(stored.keys() | wanted.keys()):
        want = list(wanted[key].shape) if key in wanted else "absent"
        got = list(stored[key].shape) if key in stored else "absent"
        if want != got:
            raise _unfit(path, f"tensor {key!r} should be {want}, but is {got}")
        wanted[key].copy_(stored[key])


def _flat(params: TensorDictParams) -> dict[str, torch.Tensor]:
    flat = params.data.flatten_keys(".")
    return {str(key): value for key, value in flat.items()}


def _write(state: dict[str, torch.Tensor], path: Path) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, safetensors.torch.save(contiguous))


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise _unfit(path, str(error).splitlines()[0]) from None


def _unfit(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} does not fit this run: {reason}")
