"""TorchRL's own losses on linear networks, macro transitions for them, and their bootstrap values by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import (
    A2CLoss,
    ClipPPOLoss,
    CQLLoss,
    CrossQLoss,
    DDPGLoss,
    IQLLoss,
    KLPENPPOLoss,
    LossModule,
    REDQLoss,
    SACLoss,
    TD3Loss,
)

GAMMA, LMBDA = 0.875, 0.75  # exact in float32, in which TorchRL keeps them
B, T, OBS, ACTION = 6, 5, 3, 2
QUIET = {"alpha_init": 1e-9, "fixed_alpha": True, "loss_function": "l2"}  # no entropy to know


class Q(nn.Module):
    """``layer([s, a])``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.layer(torch.cat([observation, action], -1))


@dataclass
class Networks:
    """Linear ones, for the env they are to act in."""

    observation: int = OBS
    action: int = ACTION
    bound: float = 1.0
    dtype: torch.dtype = torch.float64

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        return nn.Linear(inputs, outputs, dtype=self.dtype)

    def q(self) -> ValueOperator:
        return ValueOperator(Q(self.linear(self.observation + self.action, 1)), in_keys=["observation", "action"])

    def v(self) -> ValueOperator:
        return ValueOperator(self.linear(self.observation, 1), in_keys=["observation"])

    def actor(self) -> ProbabilisticActor:
        network = nn.Sequential(self.linear(self.observation, 2 * self.action), NormalParamExtractor())
        return ProbabilisticActor(
            TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            distribution_kwargs={"low": -self.bound, "high": self.bound},
            default_interaction_type="random",
            return_log_prob=True,
        )

    def deterministic_actor(self) -> TensorDictModule:
        network = nn.Sequential(self.linear(self.observation, self.action), nn.Tanh())
        return TensorDictModule(network, in_keys=["observation"], out_keys=["action"])

    def soft(self, loss: type[LossModule], **kwargs) -> LossModule:
        return loss(self.actor(), self.q(), action_spec=None, target_entropy=-1.0, **QUIET, **kwargs)


def make_sac(n: Networks) -> LossModule:
    return n.soft(SACLoss)


def make_redq(n: Networks) -> LossModule:
    """Of as many members as it draws for the target: which ones is then no chance."""
    return n.soft(REDQLoss, num_qvalue_nets=3, sub_sample_len=3, min_alpha=1e-10)


def make_crossq(n: Networks) -> LossModule:
    return n.soft(CrossQLoss)


def make_cql(n: Networks) -> LossModule:
    return n.soft(CQLLoss)


def make_td3(n: Networks) -> LossModule:
    return TD3Loss(n.deterministic_actor(), n.q(), bounds=(-n.bound, n.bound), policy_noise=0.0)


def make_ddpg(n: Networks) -> LossModule:
    return DDPGLoss(n.deterministic_actor(), n.q(), delay_actor=True, delay_value=True)


def make_iql(n: Networks) -> LossModule:
    return IQLLoss(n.actor(), n.q(), n.v())


def make_ppo(n: Networks) -> LossModule:
    return ClipPPOLoss(n.actor(), n.v(), entropy_bonus=False, loss_critic_type="l2")


def make_klpen(n: Networks) -> LossModule:
    return KLPENPPOLoss(n.actor(), n.v(), entropy_bonus=False, loss_critic_type="l2")


def make_a2c(n: Networks) -> LossModule:
    return A2CLoss(n.actor(), n.v(), entropy_bonus=False, loss_critic_type="l2")


def evaluate(params: TensorDict, observation: Tensor, action: Tensor | None = None) -> Tensor:
    """The least of the ensemble's linear values, ``[*B]``."""
    layer = params["module", "layer"] if action is not None else params["module"]
    x = observation if action is None else torch.cat([observation, action], -1)
    values = x @ layer["weight"].reshape(-1, x.shape[-1]).T + layer["bias"].reshape(-1)
    return values.min(-1)[0].detach()


def blind_value(params: str) -> Callable[[LossModule, TensorDict], Tensor]:
    """The critics are made blind to the action: no need to know what was drawn."""

    def value(loss: LossModule, following: TensorDict) -> Tensor:
        for name in ("qvalue_network_params", "target_qvalue_network_params"):
            getattr(loss, name)["module", "layer", "weight"].data[..., OBS:] = 0
        return evaluate(getattr(loss, params), following["observation"], torch.zeros(B, ACTION, dtype=torch.float64))

    return value


def value_of_target_actor(params: str) -> Callable[[LossModule, TensorDict], Tensor]:
    def value(loss: LossModule, following: TensorDict) -> Tensor:
        layer = loss.target_actor_network_params["module", "0"]
        action = torch.tanh(following["observation"] @ layer["weight"].T + layer["bias"])
        return evaluate(getattr(loss, params), following["observation"], action)

    return value


def iql_value(loss: LossModule, following: TensorDict) -> Tensor:
    return evaluate(loss.target_value_network_params, following["observation"])


#: Losses with TD(0) targets, and V(s') by hand, ``(loss, batch["next"]) -> [B]``.
OFF_POLICY: dict[str, tuple] = {
    "sac": (make_sac, blind_value("target_qvalue_network_params")),
    "td3": (make_td3, value_of_target_actor("target_qvalue_network_params")),
    "ddpg": (make_ddpg, value_of_target_actor("target_value_network_params")),
    "redq": (make_redq, blind_value("target_qvalue_network_params")),
    "crossq": (make_crossq, blind_value("qvalue_network_params")),  # it has no target networks
    "iql": (make_iql, iql_value),
    "cql": (make_cql, blind_value("target_qvalue_network_params")),
}
ON_POLICY: dict[str, Callable[[Networks], LossModule]] = {"ppo": make_ppo, "ppo_klpen": make_klpen, "a2c": make_a2c}


def macro_transitions(*batch: int) -> TensorDict:
    """Of mixed k, some terminated, some truncated; each ``s'`` by itself, as at a truncation."""
    generator = torch.Generator().manual_seed(1)

    def draw(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (*batch, 1), generator=generator)

    def normal(size: int) -> Tensor:
        return torch.randn(*batch, size, generator=generator, dtype=torch.float64)

    terminated, truncated = draw(0, 4) == 0, draw(0, 4) == 0
    following = {"observation": normal(OBS), "reward": normal(1), "chunk_steps": draw(1, 5)}
    following |= {"terminated": terminated, "truncated": truncated, "done": terminated | truncated}
    root = {"observation": normal(OBS), "action": normal(ACTION).tanh()}
    zeros = torch.zeros(*batch, ACTION, dtype=torch.float64)  # what a policy has said of its action
    root |= {"loc": zeros, "scale": zeros + 1, "action_log_prob": zeros.sum(-1)}
    root["chunk_steps"] = torch.full((*batch, 1), 99)  # the previous macro step's: must not be read
    transitions = TensorDict({**root, "next": following}, batch)
    kinds = {(bool(t), bool(d)) for t, d in zip(terminated.flatten(), truncated.flatten(), strict=True)}
    assert len(kinds) >= 3 and len(following["chunk_steps"].unique()) >= 3
    return transitions


def target_of(loss: LossModule, batch: TensorDict) -> Tensor:
    """The TD target ``[*B]`` of the loss's whole forward pass."""
    targets, estimator = [], loss.value_estimator
    estimate = type(estimator).value_estimate

    def listen(*args, **kwargs):
        targets.append(estimate(estimator, *args, **kwargs))
        return targets[-1]

    estimator.value_estimate = listen
    try:
        loss(batch.clone())
    finally:
        del estimator.value_estimate
    (target,) = targets
    return target.squeeze(-1).detach()
