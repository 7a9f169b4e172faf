"""Small float64 networks and macro transitions, and SPEC's equations evaluated by hand on them."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict

from dsrl_torchrl.networks.action_critic import make_action_critic
from dsrl_torchrl.networks.latent_actor import make_latent_actor
from dsrl_torchrl.networks.latent_critic import make_latent_critic
from dsrl_torchrl.networks.encoders import ObservationFeatures

OBS, H_A, ACTION, N, B = 5, 2, 3, 4, 7
DIM = H_A * ACTION
MAGNITUDE, GAMMA, ALPHA, GAIN = 1.5, 0.9, 0.2, 4.0
LOW, HIGH = torch.tensor([-1.0, -2.0, 0.0]), torch.tensor([1.0, 2.0, 0.5])


def make_actor():
    actor = make_latent_actor(**_sizes(), latent_dim=DIM, action_magnitude=MAGNITUDE).double()
    for p in actor.parameters():
        p.data.add_(0.1 * torch.randn_like(p))  # an actor that differs between states
    return actor


def make_q_noise():
    return make_latent_critic(**_sizes(), latent_dim=DIM, action_magnitude=MAGNITUDE).double()


def make_q_action():
    return make_action_critic(**_sizes(), act_horizon=H_A, action_low=LOW, action_high=HIGH, gain=GAIN).double()


def _sizes():
    generator = torch.Generator().manual_seed(3)
    mean, std = torch.randn(OBS, generator=generator), torch.rand(OBS, generator=generator) + 0.5
    return {"features": ObservationFeatures(mean, std, bands=(0.5,)), "num_cells": (16, 16)}


class Decoder(torch.nn.Module):
    """A frozen policy: ``tanh(A w + B s)``, in the shape of a chunk."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.a = torch.nn.Parameter(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.randn(DIM, OBS, generator=generator, dtype=torch.float64))

    def forward(self, observation, noise):
        return torch.tanh(noise @ self.a.T + observation @ self.b.T).unflatten(-1, (H_A, ACTION))


def make_batch():
    torch.manual_seed(1)
    terminated = torch.tensor([0, 1, 0, 0, 1, 0, 0], dtype=torch.bool).unsqueeze(-1)
    truncated = torch.tensor([0, 0, 1, 0, 1, 0, 0], dtype=torch.bool).unsqueeze(-1)
    return TensorDict(
        {
            "observation": torch.randn(B, OBS),
            "macro_steps": torch.full((B, 1), 99),  # the previous step's: must not be read
            "executed_chunk": torch.full((B, H_A, ACTION), 99.0),  # likewise
            "next": {
                "observation": torch.randn(B, OBS),
                "reward": torch.randn(B, 1),
                "macro_steps": torch.tensor([2, 2, 1, 1, 2, 2, 1]).unsqueeze(-1),
                "executed_chunk": torch.rand(B, H_A, ACTION),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
        },
        [B],
    ).apply(lambda x: x.double() if x.is_floating_point() else x)


def mlp(params, x, layers, norm):
    """The network by hand: Linear (-> LayerNorm) -> Tanh ... -> Linear."""
    for i, layer in enumerate(layers):
        x = x @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
        if i < len(layers) - 1 or norm is None:
            if norm:
                mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
                x = (x - mean) / torch.sqrt(var + 1e-5)
                x = x * params[f"{norm[i]}.weight"] + params[f"{norm[i]}.bias"]
            x = torch.tanh(x)
    return x


def observe(params, prefix, observation):
    z = ((observation - params[f"{prefix}.mean"]) / params[f"{prefix}.std"]).clamp(-10, 10)
    return torch.cat([z, torch.sin(math.pi / 2 * z), torch.cos(math.pi / 2 * z)], -1)


def q_values(critic_params, observation, actions):
    """``[N, B]``, member by member; ``actions`` are noise or chunks, already scaled and flat."""
    values = []
    for i in range(N):
        p = {k: v[i] for k, v in critic_params.items()}
        x = torch.cat([observe(p, "module.features", observation), actions], -1)
        values.append(mlp(p, x, ["module.mlp.0", "module.mlp.3", "module.mlp.6"], ["module.mlp.1", "module.mlp.4"]))
    return torch.stack(values).squeeze(-1)


def q_noise_by_hand(params, observation, w):
    return q_values(flat(params), observation, w / MAGNITUDE)


def q_action_by_hand(params, observation, chunk):
    low, high = LOW.double(), HIGH.double()
    return q_values(flat(params), observation, GAIN * (2 * (chunk - low) / (high - low) - 1).flatten(-2))


def flat(params):
    return {".".join(k) if isinstance(k, tuple) else k: v.detach().clone() for k, v in params.items(True, True)}


def gaussian(actor_params, observation):
    """Mean and standard deviation before the squashing."""
    p = flat(actor_params)
    x = mlp(p, observe(p, "module.0.module.0", observation), ["module.0.module.1.0", "module.0.module.1.2"], None)
    loc, raw = (x @ p["module.0.module.2.weight"].T + p["module.0.module.2.bias"]).chunk(2, -1)
    bias = math.log(math.expm1(0.5 - 0.01))  # tensordict's biased softplus: 0.5 at raw 0, 0.01 at least
    return 5 * torch.tanh(loc / 5), torch.nn.functional.softplus(raw + bias) + 0.01


def log_density(loc, scale, u):
    """Log-density of ``w = m tanh(u)``, ``u ~ N(loc, scale)``, by change of variables."""
    normal = -0.5 * ((u - loc) / scale) ** 2 - torch.log(scale) - 0.5 * math.log(2 * math.pi)
    return (normal - math.log(MAGNITUDE) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)


def policy(actor_params, observation, seed):
    """``w ~ π(· | s)`` drawn from the same generator as the loss, and ``log π(w | s)``."""
    loc, scale = gaussian(actor_params, observation)
    torch.manual_seed(seed)
    u = loc + scale * torch.randn(loc.shape, dtype=loc.dtype)
    return MAGNITUDE * torch.tanh(u), log_density(loc, scale, u)
