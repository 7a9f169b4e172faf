"""DPPO (Ren et al., ICLR 2025; irom-princeton/dppo): pre-trained and fine-tuned diffusion policies over states."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from tensordict.utils import NestedKey
from torch import Tensor, nn

from dsrl_torchrl.errors import UserError, positive_int
from dsrl_torchrl.policies.adapters.conditional_unet1d import ConditionalUnet1D, UnetSizes
from dsrl_torchrl.policies.adapters.ddim import DDIM, betas, deterministic_steps
from dsrl_torchrl.policies.adapters.dppo_mlp import DiffusionMLP, EncodedCondition, FineTuned, mlp_of
from dsrl_torchrl.policies.adapters.foreign_diffusion import ForeignDiffusionPolicy
from dsrl_torchrl.policies.adapters.foreign_files import (
    filled,
    one_line_errors,
    part,
    read_npz,
    read_torch_file,
    renamed,
    tensors_below,
)
from dsrl_torchrl.policies.adapters.history_encoder import Affine, State

OBSERVATION_EPS = 1e-6  # added to the range of observations by its env wrappers


@one_line_errors
def load_dppo(
    path: str | os.PathLike[str],
    normalization: str | os.PathLike[str] | None = None,
    in_key: NestedKey = "observation",
    action_dim: int | None = None,
    pred_horizon: int | None = None,
    obs_horizon: int = 1,
    denoising_steps: int = 20,
    sampler_steps: int | None = None,
    activation: Literal["Mish", "ReLU", "ELU", "GELU", "Tanh", "Softplus"] = "Mish",
    n_groups: int = 8,
    denoised_clip_value: float | None = 1.0,
    fine_tuned_below: int | None = None,
    weights: Literal["model", "ema"] = "model",
) -> ForeignDiffusionPolicy:
    """A checkpoint of DPPO, pre-trained or fine-tuned, MLP or U-Net, as a frozen base policy.

    Sampled by its DDIM (ε recomputed from the clipped ``x̂_0``, η = 0), which stands for its DDPM, too: a warning says
    so unless ``sampler_steps`` is given. The chunk is executed from its first action on. Much of what the network is
    stands in DPPO's YAML only: take the arguments from there. Policies that read images are refused.

    Args:
        path: ``checkpoint/state_<n>.pt``.
        normalization: its ``normalization.npz``: observations and actions of the env are then in the env's units.
            Without one the env has to give and take normalised values.
        in_key: the env's state entry, in the order of its ``low_dim_keys``.
        action_dim: size of one action; needed without ``normalization``.
        pred_horizon: its ``horizon_steps``; a U-Net needs it.
        obs_horizon: its ``cond_steps``.
        denoising_steps: of the diffusion it was trained with (20 on Gym and Robomimic states, 100 for furniture).
        sampler_steps: DDIM steps (its ``ddim_steps``).
        activation: its ``activation_type``: ``ReLU`` in its Gym configurations.
        n_groups: of a U-Net's group norms.
        denoised_clip_value: bound of ``x̂_0``.
        fine_tuned_below: diffusion steps below this one use the fine-tuned weights, if there are any:
            its ``ft_denoising_steps`` if those were DDPM steps; ``denoising_steps`` if all DDIM steps were fine-tuned.
        weights: of a pre-trained checkpoint: ``model``, which its evaluation takes, or ``ema``, with which its
            fine-tuning starts.

    Raises:
        UserError: a missing, damaged or foreign file, sizes that do not fit, or an argument that is missing.
    """
    path = Path(path).expanduser()
    content = read_torch_file(path)
    state = part(content, weights, path)
    scale = (
        None
        if normalization is None
        else read_npz(Path(normalization).expanduser(), ["obs_min", "obs_max", "action_min", "action_max"])
    )
    if any(name.startswith("actor_ft.") for name in state):
        if fine_tuned_below is None:
            raise UserError(f"{path} is fine-tuned: fine_tuned_below is needed, see its ft_denoising_steps")
        before, after = (_network(tensors_below(state, p), activation, n_groups, path) for p in ("actor.", "actor_ft."))
        network: nn.Module = FineTuned(before, after, fine_tuned_below)
    else:
        before = _network(tensors_below(state, "network."), activation, n_groups, path)
        network = before
    action_dim, pred_horizon, condition_dim = _sizes(before, scale, action_dim, pred_horizon, path)
    if condition_dim % positive_int("obs_horizon", obs_horizon):
        raise UserError(f"{path} reads {condition_dim} numbers, which is no multiple of obs_horizon={obs_horizon}")
    observation, action = Affine.identity(condition_dim // obs_horizon), Affine.identity(action_dim)
    if scale is not None:
        observation = Affine.from_range(scale["obs_min"], scale["obs_max"], OBSERVATION_EPS)
        action = Affine.from_range(scale["action_min"], scale["action_max"])
        if (size := observation.shift.numel()) != condition_dim // obs_horizon:
            raise UserError(f"{path} reads {condition_dim // obs_horizon} numbers a step, {normalization} has {size}")
    steps = deterministic_steps("DDPM", denoising_steps, denoising_steps, sampler_steps)
    sampler = DDIM(betas("dppo_cosine", denoising_steps), steps, clip=denoised_clip_value, recompute_epsilon=True)
    return ForeignDiffusionPolicy(
        {in_key: State(observation)},
        network,
        sampler,
        action,
        pred_horizon=pred_horizon,
        obs_horizon=obs_horizon,
        first_action=0,
    ).freeze()


def _network(tensors: dict[str, Tensor], activation: str, n_groups: int, path: Path) -> nn.Module:
    if any(name.startswith(("backbone.", "compress")) for name in tensors):
        raise UserError(f"{path} reads images: of DPPO's policies those over states are read here")
    condition = tensors_below(tensors, "cond_mlp.")
    with torch.device("meta"):
        condition_mlp = mlp_of(condition, activation, f"{path} (cond_mlp)") if condition else None
        if "mlp_mean.moduleList.0.linear_1.weight" in tensors or "mlp_mean.layers.0.weight" in tensors:
            step_dim = tensors["time_embedding.1.weight"].shape[1]
            mlp = mlp_of(tensors_below(tensors, "mlp_mean."), activation, str(path))
            network: nn.Module = DiffusionMLP(mlp, step_dim, condition_mlp)
            return filled(network, tensors, path)
        unet = {name: tensor for name, tensor in tensors.items() if not name.startswith("cond_mlp.")}
        # Around their group norms they rearrange, which takes two places in the sequence.
        unet = renamed(unet, (r"^time_mlp\.", "diffusion_step_encoder."), (r"\.block\.2\.", ".block.1."))
        if activation not in ("Mish", "ReLU"):
            raise UserError(f"the activation of DPPO's U-Net should be Mish or ReLU, got {activation}")
        network = ConditionalUnet1D(
            UnetSizes.of(unet, str(path)), groups=n_groups, final_groups=n_groups, activation=activation
        )
        network = filled(network, unet, path)
        return network if condition_mlp is None else EncodedCondition(filled(condition_mlp, condition, path), network)


def _sizes(
    network: nn.Module, scale: Mapping[str, Any] | None, action_dim: int | None, pred_horizon: int | None, path: Path
) -> tuple[int, int, int]:
    """``action_dim``, ``pred_horizon`` and the size of the condition."""
    known = action_dim if scale is None else scale["action_min"].numel()
    if isinstance(network, DiffusionMLP):
        if known is None:
            raise UserError(f"action_dim is needed: {path} and no normalization do not tell it")
        first, last = _ends(network.mlp_mean)
        if last % known or pred_horizon not in (None, last // known):
            raise UserError(f"{path} decodes {last} numbers, which are not {pred_horizon or 'some'} actions of {known}")
        rest = first - last - network.step_dim
        return known, last // known, rest if network.cond_mlp is None else _ends(network.cond_mlp)[0]
    if pred_horizon is None:
        raise UserError(f"pred_horizon is needed: {path} holds a U-Net, which decodes chunks of any length")
    unet = network.network if isinstance(network, EncodedCondition) else network
    assert isinstance(unet, ConditionalUnet1D)
    unet.check_horizon(pred_horizon)
    if known not in (None, unet.sizes.action_dim):
        raise UserError(f"{path} decodes actions of {unet.sizes.action_dim} numbers, {known} were expected")
    condition = _ends(network.cond_mlp)[0] if isinstance(network, EncodedCondition) else unet.sizes.condition_dim
    return unet.sizes.action_dim, pred_horizon, condition


def _ends(mlp: nn.Module) -> tuple[int, int]:
    linear = [module for module in mlp.modules() if isinstance(module, nn.Linear)]
    return linear[0].in_features, linear[-1].out_features
