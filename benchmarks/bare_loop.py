"""The same updates written by hand in plain PyTorch: what a user without this library would have to beat.

DSRL-NA is the single-file example (``examples/dsrl_na_single_file.py``): batched critics, fused Adam, a foreach Polyak
step, features of each observation computed once, no TensorDict and no diagnostics. DSRL-SAC is built from its parts.
The losses equal those of our update (``tests/benchmarks/test_bare_loop.py``).
"""

from __future__ import annotations

import copy

import torch
from tensordict import TensorDictBase
from torch import Tensor

from benchmarks.setting import MAGNITUDE, Setting
from dsrl_torchrl.agents.agent import AgentConfig
from dsrl_torchrl.policies import FlowPolicy
from examples.dsrl_na_single_file import DSRLNA, Args, step


class BareNA(DSRLNA):
    """DSRL-NA by hand, on data of its own.

    Args:
        setting: sizes.
        config: rates, our agent's.
        data: macro transitions ``[n]``, kept as plain tensors.
        base_policy: frozen; decodes, and gives the observation's statistics.
    """

    def __init__(self, setting: Setting, config: AgentConfig, data: TensorDictBase, base_policy: FlowPolicy) -> None:
        rates = config.model_dump(include=set(Args.__annotations__))
        args = Args(
            **rates, num_critics=setting.num_critics, num_cells=(setting.width,) * setting.depth,
            layer_norm=setting.layer_norm, fourier_bands=setting.fourier_bands, action_magnitude=MAGNITUDE,
        )  # fmt: skip

        def decode(s: Tensor, w: Tensor) -> Tensor:
            return base_policy(s, w.view(-1, setting.horizon, setting.action))

        scales = base_policy.observation_scale
        super().__init__(args, decode, setting.noise, setting.noise, scales.mean, scales.std)
        self.data = {
            "s": data["observation"],
            "w": data["action"],
            "chunk": data["next", "action_chunk"],
            "s_next": data["next", "observation"],
            "reward": data["next", "reward"].squeeze(-1),
            "k": data["next", "chunk_steps"].squeeze(-1),
            "terminated": data["next", "terminated"].squeeze(-1),
        }

    def run(self, updates: int) -> None:
        for _ in range(updates):
            index = torch.randint(len(self.data["s"]), (self.args.batch_size,), device=self.data["s"].device)
            self.update({name: value[index] for name, value in self.data.items()})


class BareSAC(BareNA):
    """DSRL-SAC by hand: ``Q^W`` by TD on the noise; ``Q^A`` lies idle."""

    def __init__(self, setting: Setting, config: AgentConfig, data: TensorDictBase, base_policy: FlowPolicy) -> None:
        super().__init__(setting, config, data, base_policy)
        self.q_target = copy.deepcopy(self.q_noise)

    def update(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, x_next = self.features(batch["s"]), self.features(batch["s_next"])
        with torch.no_grad():
            w, log_prob = self.actor(x_next)
            value = self.q_target(x_next, w).amin(0) - self.log_alpha.exp() * log_prob
            y = batch["reward"] + self.args.gamma ** batch["k"] * ~batch["terminated"] * value
        losses = {"q_noise": step(self.q_noise_optimiser, (self.q_noise(x, batch["w"]) - y).square().sum(0).mean())}
        actor_loss, alpha_loss = self.actor_losses(x)
        losses |= {"actor": step(self.actor_optimiser, actor_loss), "alpha": step(self.alpha_optimiser, alpha_loss)}
        with torch.no_grad():
            torch._foreach_lerp_([*self.q_target.parameters()], [*self.q_noise.parameters()], self.args.tau)
        return losses
