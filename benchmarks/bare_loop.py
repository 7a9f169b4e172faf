"""The same updates written by hand in plain PyTorch: what a user without this library would have to beat.

Batched critics, fused Adam, a foreach Polyak step, features of each observation computed once, no TensorDict and no
diagnostics. The losses equal those of our update (``tests/benchmarks/test_bare_loop.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torch.nn import functional as F

from benchmarks.setting import Setting
from dsrl_torchrl.training.stage2_config import Stage2Config

MAGNITUDE = 1.5
CHUNK_GAIN = 5.0
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass
class Layer:
    """A linear layer of N networks, and its LayerNorm where there is one; N is left out for the actor."""

    weight: Tensor  # (N, out, in)
    bias: Tensor  # (N, 1, out)
    norm_weight: Tensor | None = None  # (N, 1, out)
    norm_bias: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [t for t in (self.weight, self.bias, self.norm_weight, self.norm_bias) if t is not None]

    def copy(self) -> Layer:
        return Layer(*[t.detach().clone() for t in self.tensors()])


def make_layers(sizes: Sequence[int], members: Sequence[int], layer_norm: bool) -> list[Layer]:
    """Layers between ``sizes``, with torch's own initialisation of a linear layer."""
    layers = []
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound = 1 / math.sqrt(fan_in)
        row = [1] * len(members)
        layer = Layer(
            torch.empty(*members, fan_out, fan_in).uniform_(-bound, bound),
            torch.empty(*members, *row, fan_out).uniform_(-bound, bound),
        )
        if layer_norm and i + 2 < len(sizes):
            layer.norm_weight, layer.norm_bias = torch.ones_like(layer.bias), torch.zeros_like(layer.bias)
        for tensor in layer.tensors():
            tensor.requires_grad_(True)
        layers.append(layer)
    return layers


def tensors(layers: Sequence[Layer]) -> list[Tensor]:
    return [tensor for layer in layers for tensor in layer.tensors()]


def detached(layers: Sequence[Layer]) -> list[Layer]:
    return [Layer(*[tensor.detach() for tensor in layer.tensors()]) for layer in layers]


def ensemble(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """``[B, in]`` -> ``[N, B]``."""
    h = x.expand(len(layers[0].weight), -1, -1)
    for layer in layers[:-1]:
        h = torch.baddbmm(layer.bias, h, layer.weight.mT)
        if layer.norm_weight is not None and layer.norm_bias is not None:
            h = torch.addcmul(layer.norm_bias, F.layer_norm(h, h.shape[-1:]), layer.norm_weight)
        h = torch.relu(h)
    return torch.baddbmm(layers[-1].bias, h, layers[-1].weight.mT).squeeze(-1)


class BareLoop:
    """What DSRL-SAC and DSRL-NA share: actor, temperature, features, sampling.

    Args:
        setting: sizes.
        config: rates.
        data: macro transitions ``[n]``, kept as plain tensors.
        mean, std: of the observation.
    """

    def __init__(self, setting: Setting, config: Stage2Config, data: TensorDictBase, mean: Tensor, std: Tensor) -> None:
        self.setting, self.config, self.mean, self.std = setting, config, mean, std
        self.data = {
            "s": data["observation"],
            "w": data["action"],
            "s_next": data["next", "observation"],
            "reward": data["next", "reward"].squeeze(-1),
            "discount": config.gamma ** data["next", "macro_steps"].squeeze(-1)
            * (~data["next", "terminated"].squeeze(-1)).float(),
        }
        cells = [setting.width] * setting.depth
        self.actor = make_layers([setting.features, *cells, 2 * setting.noise], [], layer_norm=False)
        self.q_noise = make_layers(
            [setting.features + setting.noise, *cells, 1], [setting.num_critics], setting.layer_norm
        )
        self.log_alpha = torch.tensor(math.log(config.alpha_init), requires_grad=True)
        self.target_entropy = setting.noise * (config.target_entropy_per_dim + math.log(MAGNITUDE))
        self.std_bias = math.log(math.expm1(0.5 - 0.01))  # softplus(0 + bias) + 0.01 = 0.5, the first std
        self.actor_optimiser = torch.optim.Adam(tensors(self.actor), lr=config.actor_lr, fused=True)
        self.q_noise_optimiser = torch.optim.Adam(tensors(self.q_noise), lr=config.critic_lr, fused=True)
        self.alpha_optimiser = torch.optim.Adam([self.log_alpha], lr=config.alpha_lr, fused=True)

    def run(self, updates: int) -> None:
        for _ in range(updates):
            self.update(self.sample())

    def sample(self) -> dict[str, Tensor]:
        index = torch.randint(len(self.data["s"]), (self.setting.batch_size,))
        return {name: value[index] for name, value in self.data.items()}

    def update(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One update; the losses by name."""
        raise NotImplementedError

    def features(self, s: Tensor) -> Tensor:
        z = ((s - self.mean) / self.std).clamp(-10.0, 10.0)
        waves = [wave(math.pi * band * z) for band in self.setting.fourier_bands for wave in (torch.sin, torch.cos)]
        return torch.cat([z, *waves], -1) if waves else z

    def policy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``w = m tanh(u)``, ``u ~ N(loc, scale)``, and ``log π(w | s)``."""
        for layer in self.actor[:-1]:
            x = torch.relu(F.linear(x, layer.weight, layer.bias))
        loc, raw = F.linear(x, self.actor[-1].weight, self.actor[-1].bias).chunk(2, -1)
        loc = 5 * torch.tanh(loc / 5)
        scale = F.softplus(raw + self.std_bias) + 0.01
        noise = torch.randn_like(loc)
        u = loc + scale * noise
        # log |dw/du| = log m + log(1 - tanh²u), in its form that cannot overflow
        squash = math.log(MAGNITUDE) + 2 * (math.log(2) - u - F.softplus(-2 * u))
        log_prob = (-0.5 * noise.square() - scale.log() - HALF_LOG_TWO_PI - squash).sum(-1)
        return MAGNITUDE * torch.tanh(u), log_prob

    def q_noise_input(self, x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([x, w / MAGNITUDE], -1)

    def actor_step(self, x: Tensor) -> dict[str, Tensor]:
        alpha = self.log_alpha.detach().exp()
        w, log_prob = self.policy(x)
        q = ensemble(detached(self.q_noise), self.q_noise_input(x, w)).amin(0)
        loss = (alpha * log_prob - q).mean()
        step(self.actor_optimiser, loss)
        loss_alpha = -(self.log_alpha * (log_prob.detach() + self.target_entropy)).mean()
        step(self.alpha_optimiser, loss_alpha)
        return {"actor": loss, "alpha": loss_alpha}

    def polyak(self, target: Sequence[Layer], source: Sequence[Layer]) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(tensors(target), tensors(source), self.config.tau)


class BareSAC(BareLoop):
    """DSRL-SAC by hand."""

    def __init__(self, setting: Setting, config: Stage2Config, data: TensorDictBase, mean: Tensor, std: Tensor) -> None:
        super().__init__(setting, config, data, mean, std)
        self.target = [layer.copy() for layer in self.q_noise]

    def update(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, x_next = self.features(batch["s"]), self.features(batch["s_next"])
        with torch.no_grad():
            w, log_prob = self.policy(x_next)
            value = ensemble(self.target, self.q_noise_input(x_next, w)).amin(0) - self.log_alpha.exp() * log_prob
            y = batch["reward"] + batch["discount"] * value
        q = ensemble(self.q_noise, self.q_noise_input(x, batch["w"]))
        loss = (q - y).square().sum(0).mean()
        step(self.q_noise_optimiser, loss)
        losses = self.actor_step(x)
        self.polyak(self.target, self.q_noise)
        return {"critic": loss, **losses}


class BareNA(BareLoop):
    """DSRL-NA by hand. ``data`` has the alias pairs of :mod:`dsrl_torchrl.data.decoded_pairs`, or none.

    Args:
        setting, config, data, mean, std: see :class:`BareLoop`.
        base_policy: frozen, ``(observation [B, obs], noise [B, H, A]) -> chunk``, actions in [-1, 1].
    """

    def __init__(
        self,
        setting: Setting,
        config: Stage2Config,
        data: TensorDictBase,
        mean: Tensor,
        std: Tensor,
        base_policy: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__(setting, config, data, mean, std)
        self.data["chunk"] = data["next", "executed_chunk"].flatten(-2)
        self.pairs = None
        if setting.alias_samples:
            self.pairs = data["alias_noise"], data["alias_chunk"].flatten(-2)
        self.base_policy = base_policy
        sizes = [setting.features + setting.noise, *[setting.width] * setting.depth, 1]
        self.q_action = make_layers(sizes, [setting.num_critics], setting.layer_norm)
        self.target = [layer.copy() for layer in self.q_action]
        self.q_action_optimiser = torch.optim.Adam(tensors(self.q_action), lr=config.critic_lr, fused=True)

    def sample(self) -> dict[str, Tensor]:
        index = torch.randint(len(self.data["s"]), (self.setting.batch_size,))
        batch = {name: value[index] for name, value in self.data.items()}
        if self.pairs is not None:
            choice = torch.randint(self.pairs[0].shape[1], (self.setting.batch_size,))
            batch |= {"alias_noise": self.pairs[0][index, choice], "alias_chunk": self.pairs[1][index, choice]}
        return batch

    def decode(self, s: Tensor, w: Tensor) -> Tensor:
        return self.base_policy(s, w.view(-1, self.setting.horizon, self.setting.action)).flatten(-2)

    def q_action_input(self, x: Tensor, chunk: Tensor) -> Tensor:
        return torch.cat([x, CHUNK_GAIN * chunk], -1)

    def update(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        s, s_next = batch["s"], batch["s_next"]
        x, x_next = self.features(s), self.features(s_next)
        with torch.no_grad():
            w, log_prob = self.policy(x_next)
            q_next = ensemble(self.target, self.q_action_input(x_next, self.decode(s_next, w))).amin(0)
            y = batch["reward"] + batch["discount"] * (q_next - self.log_alpha.exp() * log_prob)
        q = ensemble(self.q_action, self.q_action_input(x, batch["chunk"]))
        loss = (q - y).square().sum(0).mean()
        step(self.q_action_optimiser, loss)

        with torch.no_grad():
            if "alias_noise" in batch:
                w, chunk = batch["alias_noise"], batch["alias_chunk"]
            else:
                w = torch.randn(len(s), self.setting.noise)
                chunk = self.decode(s, w)
            y = ensemble(self.q_action, self.q_action_input(x, chunk))
        q = ensemble(self.q_noise, self.q_noise_input(x, w))
        loss_alias = (q - y).square().sum(0).mean()
        step(self.q_noise_optimiser, loss_alias)

        losses = self.actor_step(x)
        self.polyak(self.target, self.q_action)
        return {"critic": loss, "alias": loss_alias, **losses}


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
