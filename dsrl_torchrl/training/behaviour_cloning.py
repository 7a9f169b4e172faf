"""Behaviour cloning of a base policy: one loop, EMA weights, a frozen policy at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from tensordict import TensorDictBase
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from dsrl_torchrl.errors import NonFiniteError, UserError, positive_int
from dsrl_torchrl.policies.cloning_loss import BehaviourCloningLoss
from dsrl_torchrl.policies.generative import GenerativePolicy
from dsrl_torchrl.policies.normalisation import clip_outliers

ActionScaling = Literal["minmax", "quantile"]

LOG_EVERY = 100  # steps between two looks at the loss: each one waits for the device


def train_base_policy(
    policy: GenerativePolicy,
    loss_module: BehaviourCloningLoss,
    dataset: TensorDictBase,
    *,
    steps: int,
    batch_size: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 1e-6,
    ema_decay: float = 0.999,
    action_scaling: ActionScaling = "minmax",
    seed: int = 0,
    log: Callable[[int, dict[str, float]], None] | None = None,
    progress: bool = False,
) -> GenerativePolicy:
    """Clones the expert chunks into ``policy`` and returns it frozen, with the EMA of its weights.

    AdamW with a short linear warm-up and a cosine learning rate (Diffusion Policy's recipe). A policy without
    scales takes them from the dataset; one that has them keeps them.

    Args:
        policy: trained in place.
        loss_module: made with this very policy.
        dataset: ``[N]``, with ``observation`` ``[N, observation_dim]``, the policy's images ``[N, C, H, W]``,
            ``action`` ``[N, pred_horizon, action_dim]`` and optionally ``valid`` ``[N, pred_horizon]``, or what the
            loss's ``set_keys`` calls them. Batches are moved to the policy's device.
        steps: gradient steps.
        batch_size: samples per step, drawn with replacement.
        lr: peak learning rate.
        weight_decay: AdamW's.
        ema_decay: of the weights that decode. Ramped up over the first steps, so that short runs forget their
            initial weights.
        action_scaling: of a policy without scales: ``minmax`` takes the whole range of the actions as [-1, 1],
            ``quantile`` clips them to their 1 % and 99 % quantiles first
            (:func:`~dsrl_torchrl.policies.normalisation.clip_outliers`). The policy keeps the range, on disk, too.
        seed: of the batches and the loss's noise; the caller's random state is left alone.
        log: called as ``log(step, metrics)`` every 100 steps and at the end.
        progress: whether to show a progress bar.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
        UserError: the dataset holds NaN, is empty, or the arguments do not fit together.
    """
    positive_int("steps", steps)
    positive_int("batch_size", batch_size)
    if not 0 <= ema_decay < 1:
        raise UserError(f"ema_decay must be in [0, 1), got {ema_decay}")
    if action_scaling not in get_args(ActionScaling):
        raise UserError(f"action_scaling must be one of {', '.join(get_args(ActionScaling))}, got {action_scaling!r}")
    if loss_module.policy is not policy:
        raise UserError("loss_module must be made with the policy that is trained: it holds another one")
    keys = loss_module.tensor_keys
    dataset = dataset.select(*loss_module.in_keys, keys.valid, strict=False)
    if not policy.observation_scale.fitted:
        if action_scaling == "quantile":
            clipped = clip_outliers(dataset.get(keys.action), dataset.get(keys.valid, None))
            dataset.set(keys.action, clipped)
        policy.fit_scales(dataset.get(keys.observation), dataset.get(keys.action), dataset.get(keys.valid, None))

    device = policy.device
    parameters = list(policy.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    ema = AveragedModel(policy)
    losses = torch.zeros(steps, device=device)  # read every LOG_EVERY steps, so that the device never waits for us
    seen = 0
    policy.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for step in tqdm(range(steps), desc="base policy", disable=not progress, mininterval=1.0):
            optimiser.param_groups[0]["lr"] = step_lr = lr * _schedule(step, steps)
            batch = dataset[torch.randint(len(dataset), (batch_size,), device=dataset.device)]
            loss = loss_module(batch.to(device)).get(loss_module.loss_key)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            ema.multi_avg_fn = get_ema_multi_avg_fn(min(ema_decay, (1 + step) / (10 + step)))
            ema.update_parameters(policy)
            losses[step] = loss.detach()
            if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
                recent = losses[seen : step + 1].cpu()
                _check_finite(loss_module.loss_key, recent, first_step=seen)
                seen = step + 1
                if log is not None:
                    log(seen, {f"base/{loss_module.loss_key}": float(recent.mean()), "base/lr": step_lr})
    policy.load_state_dict(ema.module.state_dict())
    return policy.freeze()


def _schedule(step: int, steps: int) -> float:
    """Fraction of the peak learning rate: linear over the first 2 % of the steps (at most 500), then cosine to 0."""
    warmup = min(500, max(1, steps // 50))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _check_finite(name: str, losses: torch.Tensor, first_step: int) -> None:
    bad = ~losses.isfinite()
    if bad.any():
        raise NonFiniteError(name, first_step + int(bad.nonzero()[0]), "base policy step", "lower the learning rate")
