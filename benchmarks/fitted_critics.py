"""``Q^A`` of one fixed policy, by TD on chunks that are decoded once; and a model of where a chunk leads."""

from __future__ import annotations

from time import process_time
from typing import NoReturn

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP
from torchrl.objectives import ValueEstimators

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY
from dsrl_torchrl.networks.config import NetworkConfig, make_critics
from dsrl_torchrl.networks.encoders import FEATURES_KEY
from dsrl_torchrl.objectives.polyak import PolyakUpdate
from dsrl_torchrl.objectives.q_action import QActionLoss

MEMBERS = 3  # of the model
LEAST_STD = 0.01  # of the largest: an entry that hardly varies must not count like the others
WITHIN_WEIGHT = 5.0  # of the differences within a state, in the regression
STATES_AT_ONCE = 32  # of the regression, in an update
#: What TD reads here.
_READS = [FEATURES_KEY] + [
    ("next", key)
    for key in (FEATURES_KEY, CHUNK_KEY, STEPS_KEY, "reward", "done", "terminated", "chunk", "noise_log_prob")
]
ROWS_AT_ONCE = 4096


@torch.no_grad()
def with_next_chunks(agent: Agent, transitions: TensorDictBase, *, sample: bool = False) -> TensorDictBase:
    """What TD reads of macro transitions ``[*B]``: features of s and s', and the policy's chunk at s', once for all.

    Args:
        agent: its ``kept_policy`` is the fixed one.
        transitions: with the observations that the policy and the decoder read.
        sample: a sample of the policy instead of its mode.
    """
    prepared = []
    for part in transitions.reshape(-1).split(ROWS_AT_ONCE):
        part = agent.encode_next(agent.encoder(part.copy()))
        following = part.get("next")
        with set_exploration_type(ExplorationType.RANDOM if sample else ExplorationType.DETERMINISTIC):
            noise = agent.kept_policy(following.copy())["action"]
        part.set(("next", "chunk"), agent.decoder.decode(following, noise))
        prepared.append(part.set(("next", "noise_log_prob"), torch.zeros(len(part))))
    return torch.cat(prepared).reshape(transitions.batch_size)


class FittedCritic:
    """An ensemble of the library's networks, fitted by the library's TD loss without entropy.

    Args:
        agent: its discount, batch size, learning rate and Polyak rate are taken.
        env: the latent env, for the sizes.
        networks: of the ensemble.
        weight_decay: AdamW's.
        seed: of weights and batches.

    Attributes:
        seconds: CPU seconds of the updates.
    """

    def __init__(
        self, agent: Agent, env: LatentActionEnv, networks: NetworkConfig, *, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        config = agent.config
        self.batch_size, self.seconds = config.batch_size, 0.0
        self.loss = QActionLoss(
            make_critics(env, networks, agent.encoder.out_features)["q_action"],
            _never,
            _never,
            num_critics=networks.num_critics,
            backup="mean",
            temperature=0.0,
            next_keys=agent.in_keys,
        ).make_value_estimator(ValueEstimators.TD0, gamma=config.gamma)
        trained = [p for p in self.loss.q_action_params.values(True, True) if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr=config.critic_lr, weight_decay=weight_decay, fused=True)
        self.targets = PolyakUpdate(self.loss, tau=config.tau)

    def fit(self, data: TensorDictBase, updates: int, branches: tuple[TensorDictBase, Tensor] | None = None) -> None:
        """TD on ``data`` ``[n]`` of :func:`with_next_chunks`.

        Args:
            data: s, chunk, outcome and the policy's chunk at s'.
            updates: gradient updates.
            branches: prepared first transitions and returns, both ``[S, K]``, that are regressed on at the same time.
        """
        begin = process_time()
        data = data.select(*_READS)
        for _ in range(updates):
            loss = self.loss(data[torch.randint(len(data), (self.batch_size,))])["loss_q_action"]
            if branches is not None:
                first, returns = branches
                some = torch.randint(len(returns), (STATES_AT_ONCE,))
                values = self.loss.values(first[some], first["next", CHUNK_KEY][some])
                loss = loss + centred_error(values, returns[some].float(), WITHIN_WEIGHT).mean((1, 2)).sum()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.targets.step()
        self.seconds += process_time() - begin

    @torch.no_grad()
    def values(self, transitions: TensorDictBase) -> Tensor:
        """``Q(s, a)``, the ensemble's mean, ``[*B]``."""
        return self.loss.values(transitions, transitions["next", CHUNK_KEY]).mean(0)

    @torch.no_grad()
    def next_values(self, transitions: TensorDictBase) -> Tensor:
        """``V(s')`` of the policy, the ensemble's mean at its chunk, ``[*B]``."""
        return self.loss.values(transitions["next"], transitions["next", "chunk"]).mean(0)


def lookahead(transitions: TensorDictBase, next_value: Tensor, gamma: float) -> Tensor:
    """``R + γ^k (1 - terminated) V(s')``, ``[*B]``."""
    outcome = transitions["next"]
    reward, steps, terminated = (outcome[name].squeeze(-1) for name in ("reward", STEPS_KEY, "terminated"))
    return reward + gamma**steps * ~terminated * next_value


def centred_error(values: Tensor, returns: Tensor, weight: float = 1.0) -> Tensor:
    """``weight ((Q - Q_mean) - (G - G_mean))² + (Q_mean - G_mean)²``: ``[N, S, K]``, ``[S, K]`` -> ``[N, S, K]``.

    The means are over the noises of a state. With a weight of 1 its mean over them is that of ``(Q - G)²``, in which
    the differences within a state, all that ranks, drown where states differ more.
    """
    mean, true_mean = values.mean(-1, keepdim=True), returns.mean(-1, keepdim=True)
    within = (values - mean) - (returns - true_mean)
    return weight * within.square() + (mean - true_mean).square()


class NextStateModel(nn.Module):
    """Where a chunk leads: an ensemble's mean of s' - s, in units of the std of s, by regression.

    Args:
        data: macro transitions ``[n]`` with features.
        key: the observation entry, of states ``[n, d]``.
        updates: gradient updates of each member.
        seed: of weights and batches.

    Attributes:
        unit: ``[d]``, what counts as much in every entry.
        seconds: CPU seconds of the updates.
    """

    def __init__(self, data: TensorDictBase, key: str, *, updates: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        begin = process_time()
        self.key, self.chunk_std = key, data["next", CHUNK_KEY].std(0).clamp(min=0.01)
        std = data[key].std(0)
        self.unit = std.clamp(min=LEAST_STD * float(std.max()))
        inputs, outputs = self._inputs(data), (data["next", key] - data[key]) / self.unit
        self.members = nn.ModuleList(
            MLP(inputs.shape[-1], outputs.shape[-1], num_cells=[256, 256], activation_class=nn.ReLU)
            for _ in range(MEMBERS)
        )
        optimiser = torch.optim.Adam(self.parameters(), lr=1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
        for _ in range(updates):
            rows = torch.randint(len(data), (256,))
            x, y = inputs[rows], outputs[rows]
            loss = torch.stack([(member(x) - y).square().mean() for member in self.members]).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        self.seconds = process_time() - begin

    @torch.no_grad()
    def forward(self, transitions: TensorDictBase) -> TensorDictBase:
        """The transitions ``[*B]`` with the predicted s' for the true one."""
        x = self._inputs(transitions)
        step = torch.stack([member(x) for member in self.members]).mean(0) * self.unit
        return transitions.clone().set(("next", self.key), transitions[self.key] + step)

    def _inputs(self, transitions: TensorDictBase) -> Tensor:
        return torch.cat([transitions[FEATURES_KEY], (transitions["next", CHUNK_KEY] / self.chunk_std).flatten(-2)], -1)


def within_r2(predicted: Tensor, true: Tensor, unit: Tensor) -> float:
    """Share of the variance within a state that is explained, ``[S, K, d]`` both, all entries in ``unit`` ``[d]``."""
    within, true_within = ((x / unit) - (x / unit).mean(1, keepdim=True) for x in (predicted, true))
    return 1 - float((within - true_within).square().mean() / true_within.square().mean())


def _never(*_: object) -> NoReturn:
    raise AssertionError("the policy's chunks are in the data")
