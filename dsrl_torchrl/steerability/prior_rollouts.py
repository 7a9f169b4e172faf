"""Episodes of the base policy with its prior noise, several from each reset: one pass feeds the whole diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, pad_sequence
from tensordict.utils import NestedKey
from torch import Tensor
from tqdm import tqdm

from dsrl_torchrl import seeds
from dsrl_torchrl.collect.episodes import run_episodes
from dsrl_torchrl.errors import positive_int
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY, SUCCESS_ONCE_KEY, require_success
from dsrl_torchrl.latent_env.prior_noise import PriorNoise, whole_base


@dataclass(frozen=True)
class PriorRollouts:
    """``repeats`` (N) episodes from each of ``resets`` (R) starts, of at most T macro steps. On the CPU.

    Attributes:
        observations: ``[N, R, T]``, what the policy saw before each macro step; zeros after the end.
        chunk: ``[N, R, T, act_horizon, action_dim]``, commanded actions in env units; zeros after the end.
        steps: ``[N, R, T]`` int64, the executed actions of each chunk; 0 after the end.
        success: ``[N, R]`` bool, whether any step of the episode succeeded.
        returns: ``[N, R]``, sums of the macro steps' rewards, which the env discounts within its chunks.
    """

    observations: TensorDictBase
    chunk: Tensor
    steps: Tensor
    success: Tensor
    returns: Tensor

    @property
    def env_steps(self) -> int:
        """Primitive steps of all episodes."""
        return int(self.steps.sum())

    def sample_observations(self, count: int, seed: int = 0) -> TensorDictBase:
        """At most ``count`` different observations that the policy met, ``[n]``, in random order."""
        met = self.observations[self.steps > 0]
        order = torch.randperm(len(met), generator=torch.Generator().manual_seed(seed))
        return met[order[:count]]


@torch.no_grad()
def collect_prior_rollouts(
    env: LatentActionEnv,
    *,
    resets: int = 20,
    repeats: int = 5,
    seed: int = 0,
    observation_keys: Sequence[NestedKey] | None = None,
    progress: str | None = None,
) -> PriorRollouts:
    """Runs the base policy with plain ``N(0, I)`` noise in the env's layout.

    An env that ends its episodes on success is cheaper and as good: only whether success was reached is asked.

    Args:
        env: with a ``success`` entry, batch ``[*B]``; the episodes take its sub-envs in turn.
        resets: number of starts, always the first of :data:`dsrl_torchrl.seeds.DIAGNOSIS`.
        repeats: episodes from each start, with independent noise.
        seed: of the noise.
        observation_keys: the entries to keep, default those of the base policy.
        progress: label of a progress bar, ``None`` for no bar.

    Raises:
        UserError: the env does not tell success, or a count is not a positive integer.
        NonFiniteError: NaN or infinity in an observation, action or reward.
    """
    starts = seeds.first(seeds.DIAGNOSIS, positive_int("resets", resets))
    positive_int("repeats", repeats)
    require_success(env, "the diagnosis")
    keys = env.decoder.base_policy.in_keys if observation_keys is None else list(observation_keys)
    size = env.batch_size.numel()
    episodes: list[TensorDictBase] = []
    bar = tqdm(total=resets * repeats, unit="episode", desc=progress, mininterval=1.0, disable=progress is None)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        # Repeat by repeat, so that the k-th group of every repeat resets to the same list of seeds: ManiSkill's GPU
        # simulation draws all starts of a reset from the list as a whole.
        for _ in range(repeats):
            for begin in range(0, resets, size):
                group = starts[begin : begin + size]
                episodes += _run_group(env, group, keys).unbind(0)
                bar.update(len(group))
    bar.close()
    kept = pad_sequence(episodes).unflatten(0, (repeats, resets))  # (N, R, T)
    success, returns = kept["success"].any(-1), kept["reward"].sum(-1)
    return PriorRollouts(kept["observations"], kept["chunk"], kept["steps"], success, returns)


def _run_group(env: LatentActionEnv, starts: list[int], keys: Sequence[NestedKey]) -> TensorDictBase:
    """One episode from each start, ``[n, T]`` on the CPU; zeros after its end."""
    size, rows = env.batch_size.numel(), []
    for td, running in run_episodes(env, PriorNoise(env.latent_dim, device=env.decoder.device), starts):
        following = td["next"]
        row = TensorDict(
            {
                "observations": td.select(*keys),
                "chunk": following[CHUNK_KEY],
                "steps": following[STEPS_KEY].squeeze(-1),
                "success": following[SUCCESS_ONCE_KEY].squeeze(-1),
                "reward": following["reward"].squeeze(-1),
            },
            td.batch_size,
        )
        row = row.reshape(size).cpu()
        rows.append(row.where(running, torch.zeros_like(row))[: len(starts)])
    return torch.stack(rows, 1)


def with_layout(env: LatentActionEnv, noise_layout: str) -> LatentActionEnv:
    """The same env and base policy in another noise layout; it shares the simulation, so close only one of them."""
    decoder, whole = env.decoder, whole_base(env.decoder)
    return LatentActionEnv(
        env.base_env,
        whole,
        act_horizon=decoder.act_horizon,
        noise_layout=noise_layout,
        action_magnitude=decoder.action_magnitude,
        base_features=whole is not decoder.base_policy,
    )
