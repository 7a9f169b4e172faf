"""``dsrl base``: the frozen base policy, cloned here or loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict.utils import NestedKey

from dsrl_torchrl.cli.config import BasePolicyOptions, LatentOptions, TaskOptions
from dsrl_torchrl.cli.targets import Target, make
from dsrl_torchrl.data.chunks import cut_chunks
from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_layout import NoiseLayout
from dsrl_torchrl.policies import BasePolicy, BehaviourCloningLoss, GenerativePolicy, Steerability, probe, steerability
from dsrl_torchrl.policies.base_policy import require_differentiable
from dsrl_torchrl.training.behaviour_cloning import train_base_policy

#: Chunks of the demonstrations that steerability is measured on.
OBSERVATIONS = 512


def clone_policy(
    options: BasePolicyOptions,
    task: TaskOptions,
    episodes: list[Episode],
    *,
    seed: int,
    device: str,
    progress: bool,
    log: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[GenerativePolicy, Steerability, int]:
    """Behaviour cloning; returns the frozen policy, its steerability and the number of chunks it learned from.

    ``log`` is :func:`~dsrl_torchrl.training.behaviour_cloning.train_base_policy`'s.
    """
    data = cut_chunks(episodes, obs_horizon=task.obs_horizon, pred_horizon=task.pred_horizon)
    assert options.policy is not None
    shapes = {key: tuple(value.shape[1:]) for key, value in data.items(True, True)}
    for key in policy_keys(options.policy):
        if key not in shapes:
            raise UserError(
                f"base_policy.policy reads {entry_name(key)}, the demonstrations have "
                f"{', '.join(map(entry_name, episodes[0].observations.keys(True, True)))}: "
                "set task.demonstrations.entries"
            )
    policy = make_cloned(options.policy, task, shapes, data["action"].shape[-1], seed)
    policy = policy.to(device)
    loss = policy.cloning_loss()
    assert isinstance(loss, BehaviourCloningLoss)
    policy = train_base_policy(
        policy,
        loss,
        data if policy.image_shapes else data.to(device),  # images are moved batch by batch
        **dict(options.training),
        seed=seed,
        log=log,
        progress=progress,
    )
    observations = data.select(*policy.in_keys)[:OBSERVATIONS].to(device)
    probe(policy, observations)
    return policy, steerability(policy, observations), len(data)


def make_cloned(
    spec: Target, task: TaskOptions, shapes: Mapping[NestedKey, tuple[int, ...]], action_dim: int, seed: int
) -> GenerativePolicy:
    """The policy that is to be cloned, with random weights, for entries of these shapes, history included."""
    in_key, *image_keys = policy_keys(spec)
    for key, ndim, what in ((in_key, 1, "a vector"), *((key, 3, "an image [C, H, W]") for key in image_keys)):
        if len(shapes[key]) != ndim:
            name = "in_key" if ndim == 1 else "image_keys"
            raise UserError(f"base_policy.policy.{name}: {entry_name(key)} should be {what}, it is {list(shapes[key])}")
    sizes: dict[str, Any] = {"image_shapes": [shapes[key] for key in image_keys]} if image_keys else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = make(
            spec,
            observation_dim=shapes[in_key][0],
            action_dim=action_dim,
            pred_horizon=task.pred_horizon,
            obs_horizon=task.obs_horizon,
            control_mode=task.control_mode,
            **sizes,
        )
    if not isinstance(policy, GenerativePolicy):
        raise UserError(
            f"base_policy.policy makes a {type(policy).__name__}, but only a GenerativePolicy is cloned here; "
            "base_policy=load loads yours"
        )
    return policy


def load_base(spec: Target, device: str) -> BasePolicy:
    """The policy that ``base_policy.load`` makes, frozen, on ``device``.

    Raises:
        UserError: it is no :class:`~dsrl_torchrl.policies.BasePolicy`, or what its loader raises.
    """
    policy = make(spec)
    if not isinstance(policy, BasePolicy):
        raise UserError(
            f"base_policy.load: {spec['_target_']} should return a BasePolicy, it returned a {type(policy).__name__}"
        )
    return policy.to(device).freeze()


def check_fits(policy: BasePolicy, task: TaskOptions, latent: LatentOptions) -> None:
    """Raises :class:`UserError` for another control mode, horizons that the task does not have, or a noise layout."""
    if policy.control_mode and task.control_mode and policy.control_mode != task.control_mode:
        raise UserError(
            f"the base policy was trained for control mode {policy.control_mode}, the task uses {task.control_mode}"
        )
    actions = policy.pred_horizon - policy.first_action
    if policy.obs_horizon != task.obs_horizon or actions < task.act_horizon:
        raise UserError(
            f"the base policy has obs_horizon {policy.obs_horizon} and pred_horizon {policy.pred_horizon} (from action "
            f"{policy.first_action} on), the task asks for obs_horizon {task.obs_horizon} and act_horizon "
            f"{task.act_horizon}"
        )
    layout = NoiseLayout(
        latent.noise_layout,
        policy.noise_horizon,
        policy.noise_dim,
        task.act_horizon,
        policy.first_action,
        knots=latent.knots,
    )
    if latent.subspace_dim is not None and latent.subspace_dim >= layout.dim:
        raise UserError(
            f"latent.subspace_dim should be below the {layout.dim} dimensions of this policy's noise in the layout "
            f"{layout.name}, got {latent.subspace_dim}; null steers them all"
        )
    if latent.subspace_dim is not None:
        require_differentiable(policy, "latent.subspace_dim")


def steerability_lines(measured: Steerability) -> list[str]:
    """What the user is told of a fresh base policy."""
    lines = [f"steerability: the decoded action spreads {measured.spread:.3f} over noise (range [-1, 1])"]
    if measured.too_small:
        lines.append(
            "warning: that leaves little to steer; train on demonstrations with action_noise, or with more than one "
            "way of doing the task"
        )
    return lines


def policy_keys(spec: Target) -> list[NestedKey]:
    """The entries that the policy to be cloned reads: the flat one, then images."""
    keys = [spec.get("in_key", "observation"), *(spec.get("image_keys") or ())]
    return [key if isinstance(key, str) else tuple(key) for key in keys]
