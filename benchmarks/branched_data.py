"""Branches: several prior noises from the same states, each followed by a policy's mode, with all that was seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.steerability.branched_episodes import follow_mode, reach_states
from dsrl_torchrl.tensor_files import load_tensors, save_tensors


@dataclass(frozen=True)
class Branches:
    """K noises from each of S states.

    Attributes:
        transitions: macro transitions ``[n]`` of all episodes: the way to the states, the noises, what followed.
        first: of the noises alone ``[S, K]``, among them.
        returns: their true discounted returns ``[S, K]``.
        success: of their episodes ``[S, K]``.
        env_steps: primitive steps of ``transitions``.
    """

    transitions: TensorDictBase
    first: TensorDictBase
    returns: Tensor
    success: Tensor
    env_steps: int

    def save(self, path: Path) -> None:
        """Writes them as safetensors."""
        parts = {"transitions": self.transitions, "first": self.first}
        tensors = {f"{part}/{'.'.join(k)}": v for part, td in parts.items() for k, v in _leaves(td)}
        counted = {"returns": self.returns, "success": self.success, "env_steps": torch.tensor(self.env_steps)}
        save_tensors(tensors | counted, path)

    @classmethod
    def load(cls, path: Path) -> Branches:
        """Reads what :meth:`save` wrote."""
        stored = load_tensors(path)
        returns, success, env_steps = (stored.pop(name) for name in ("returns", "success", "env_steps"))
        parts: dict[str, TensorDict] = {"transitions": TensorDict({}), "first": TensorDict({})}
        for name, value in stored.items():
            part, _, key = name.partition("/")
            parts[part].set(tuple(key.split(".")), value)
        parts["transitions"].batch_size = parts["transitions"]["action"].shape[:1]
        parts["first"].batch_size = returns.shape
        return cls(parts["transitions"], parts["first"], returns, success, int(env_steps))


def collect_branches(
    env: LatentActionEnv, policy: TensorDictModuleBase, starts: range, noises: int, seed: int, env_steps: int = 0
) -> Branches:
    """Branches from a state after each reset of ``starts``; from as many of them as it takes for ``env_steps``, if > 0.

    With the same starts, noises and seed these are the states and noises of
    :func:`~dsrl_torchrl.steerability.critic_ranking.critic_ranking`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not env_steps:
            return _collect(env, policy, starts, noises)
        size, parts = env.batch_size.numel(), []
        while sum(part.env_steps for part in parts) < env_steps:
            begin = len(parts) * size
            parts.append(_collect(env, policy, starts[begin : begin + size], noises))
    transitions, first = (torch.cat([getattr(part, name) for part in parts]) for name in ("transitions", "first"))
    returns, success = (torch.cat([getattr(part, name) for part in parts]) for name in ("returns", "success"))
    return Branches(transitions, first, returns, success, sum(part.env_steps for part in parts))


def _collect(env: LatentActionEnv, policy: TensorDictModuleBase, starts: range, noises: int) -> Branches:
    keys = env.decoder.base_policy.in_keys
    seen: list[TensorDictBase] = []
    beginnings: list[tuple[Tensor, TensorDictBase]] = []

    def record(td: TensorDictBase, episode: Tensor, taken: int) -> None:
        seen.append(to_macro_transitions(td, keys).clone())

    def record_branch(td: TensorDictBase, episode: Tensor, taken: int) -> None:
        record(td, episode, taken)
        if not taken:
            beginnings.append((episode, seen[-1]))

    states, way = reach_states(env, starts, record)
    rows = [row for row in range(len(starts)) for _ in range(noises)]
    noise = torch.randn(len(rows), env.latent_dim, device=env.decoder.device)
    returns, success, _, steps = follow_mode(env, policy, states, rows, noise, record=record_branch)
    assert torch.equal(torch.cat([episode for episode, _ in beginnings]), torch.arange(len(rows)))
    first = torch.cat([td for _, td in beginnings])
    shape = (len(starts), noises)
    return Branches(
        torch.cat(seen),
        first.unflatten(0, shape),
        returns.unflatten(0, shape),
        success.unflatten(0, shape),
        way + steps,
    )


def _leaves(td: TensorDictBase):
    for key, value in td.items(True, True):
        yield (key,) if isinstance(key, str) else key, value
