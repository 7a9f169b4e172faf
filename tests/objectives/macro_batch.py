"""Small float64 networks and macro transitions, and the equations of docs/method.md evaluated by hand on them."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import nn

from dsrl_torchrl.networks.critics import make_q_action as q_action_network
from dsrl_torchrl.networks.critics import make_q_noise as q_noise_network
from dsrl_torchrl.networks.latent_actor import LatentActor

OBS, FEATURES, H_A, ACTION, N, B = 5, 4, 2, 3, 4, 7
DIM = H_A * ACTION
MAGNITUDE, ALPHA, GAIN = 1.5, 0.2, 4.0
GAMMA = 0.875  # exact in float32, in which TorchRL keeps it
LOW, HIGH = torch.tensor([-1.0, -2.0, 0.0]), torch.tensor([1.0, 2.0, 0.5])
SIZES = {"num_cells": (16, 16), "activation": nn.Tanh}


def make_actor():
    actor = LatentActor(FEATURES, DIM, MAGNITUDE, **SIZES, initial_std=0.5).double()
    for p in actor.parameters():
        p.data.add_(0.1 * torch.randn_like(p))  # an actor that differs between states
    return actor


def draws_of(actor):
    """``π^W`` as a loss gets it."""
    return lambda observations: actor.get_dist(observations).rsample_and_log_prob()


def make_q_noise():
    return q_noise_network(FEATURES, DIM, MAGNITUDE, **SIZES, layer_norm=True).double()


def make_q_action():
    return q_action_network(FEATURES, H_A, LOW, HIGH, GAIN, **SIZES, layer_norm=True).double()


class Decoder(nn.Module):
    """A frozen policy: ``tanh(A w + B s)``, in the shape of a chunk."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(4)
        self.a = nn.Parameter(torch.randn(DIM, DIM, generator=generator, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(DIM, OBS, generator=generator, dtype=torch.float64))

    def forward(self, observations, noise):
        return torch.tanh(noise @ self.a.T + observations["observation"] @ self.b.T).unflatten(-1, (H_A, ACTION))


def make_batch():
    """What an agent hands to its losses: transitions whose observations have been encoded."""
    torch.manual_seed(1)
    terminated = torch.tensor([0, 1, 0, 0, 1, 0, 0], dtype=torch.bool).unsqueeze(-1)
    truncated = torch.tensor([0, 0, 1, 0, 1, 0, 0], dtype=torch.bool).unsqueeze(-1)
    return TensorDict(
        {
            "observation": torch.randn(B, OBS),
            "features": torch.randn(B, FEATURES),
            "chunk_steps": torch.full((B, 1), 99),  # the previous step's: must not be read
            "action_chunk": torch.full((B, H_A, ACTION), 99.0),  # likewise
            "next": {
                "observation": torch.randn(B, OBS),
                "features": torch.randn(B, FEATURES),
                "reward": torch.randn(B, 1),
                "chunk_steps": torch.tensor([2, 2, 1, 1, 2, 2, 1]).unsqueeze(-1),
                "action_chunk": torch.rand(B, H_A, ACTION),
                "terminated": terminated,
                "truncated": truncated,
                "done": terminated | truncated,
            },
        },
        [B],
    ).apply(lambda x: x.double() if x.is_floating_point() else x)


def move(params, amount=0.1):
    """Shifts what is learned, so that e.g. targets differ from their critics."""
    for key, p in params.items(True, True):
        if "mlp" in key:
            p.data.add_(amount * torch.randn_like(p))


def trained(params):
    return [p for p in params.values(True, True) if p.requires_grad]


def macro_target(following, value):
    """Eq. 4, by hand: ``R + γ^k (1 - terminated) V(s')``; a truncation bootstraps."""
    alive = (~following["terminated"].squeeze(-1)).double()
    k = following["chunk_steps"].squeeze(-1)
    return following["reward"].squeeze(-1) + GAMMA**k * alive * value


def keep(values, backup):
    return values.min(0)[0] if backup == "min" else values.mean(0)


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


def q_values(critic_params, features, actions):
    """``[N, B]``, member by member; ``actions`` are noise or chunks, already scaled and flat."""
    values = []
    for i in range(N):
        p = {k: v[i] for k, v in critic_params.items()}
        x = torch.cat([features, actions], -1)
        values.append(mlp(p, x, ["module.mlp.0", "module.mlp.3", "module.mlp.6"], ["module.mlp.1", "module.mlp.4"]))
    return torch.stack(values).squeeze(-1)


def q_noise_by_hand(params, observations, w):
    return q_values(flat(params), observations["features"], w / MAGNITUDE)


def q_action_by_hand(params, observations, chunk):
    low, high = LOW.double(), HIGH.double()
    return q_values(flat(params), observations["features"], GAIN * (2 * (chunk - low) / (high - low) - 1).flatten(-2))


def flat(params):
    return {".".join(k) if isinstance(k, tuple) else k: v.detach().clone() for k, v in params.items(True, True)}


def gaussian(actor, observations):
    """Mean and standard deviation before the squashing."""
    p = {name: value.detach() for name, value in actor.named_parameters()}
    x = mlp(p, observations["features"], ["module.0.module.0.0", "module.0.module.0.2"], None)
    loc, raw = (x @ p["module.0.module.1.weight"].T + p["module.0.module.1.bias"]).chunk(2, -1)
    bias = math.log(math.expm1(0.5 - 0.01))  # tensordict's biased softplus: 0.5 at raw 0, 0.01 at least
    return 5 * torch.tanh(loc / 5), torch.nn.functional.softplus(raw + bias) + 0.01


def log_density(loc, scale, u):
    """Log-density of ``w = m tanh(u)``, ``u ~ N(loc, scale)``, by change of variables."""
    normal = -0.5 * ((u - loc) / scale) ** 2 - torch.log(scale) - 0.5 * math.log(2 * math.pi)
    return (normal - math.log(MAGNITUDE) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)


def policy(actor, observations, seed):
    """``w ~ π(· | s)`` drawn from the same generator as the loss, and ``log π(w | s)``."""
    loc, scale = gaussian(actor, observations)
    torch.manual_seed(seed)
    u = loc + scale * torch.randn(loc.shape, dtype=loc.dtype)
    return MAGNITUDE * torch.tanh(u), log_density(loc, scale, u)
