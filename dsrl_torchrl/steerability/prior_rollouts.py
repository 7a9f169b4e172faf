"""Episodes of the base policy with its prior noise, several from each reset: one pass feeds the whole diagnosis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dsrl_torchrl.data.macro_transitions import check_finite
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.evaluate import HELD_OUT_SEED, reset_to_seeds
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import EXECUTED_CHUNK_KEY, MACRO_STEPS_KEY, SUCCESS_ONCE_KEY
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.policies.arguments import positive_int

#: Reset seeds of the diagnosis start here, up to HELD_OUT_SEED. Decisions are taken from it (magnitude, layout, whether
#: to train at all), so they must not be held-out resets. Training draws its resets from all seeds below HELD_OUT_SEED.
DIAGNOSIS_SEED = 950_000_000


@dataclass(frozen=True)
class PriorRollouts:
    """``repeats`` (N) episodes from each of ``resets`` (R) starts, of at most T macro steps.

    Attributes:
        observation: ``[N, R, T, obs]``, what the policy saw before each macro step; zeros after the end.
        chunk: ``[N, R, T, act_horizon, action_dim]``, commanded actions in env units; zeros after the end.
        steps: ``[N, R, T]`` int64, the executed actions of each chunk; 0 after the end.
        success: ``[N, R]`` bool, whether any step of the episode succeeded.
    """

    observation: Tensor
    chunk: Tensor
    steps: Tensor
    success: Tensor

    @property
    def env_steps(self) -> int:
        """Primitive steps of all episodes."""
        return int(self.steps.sum())

    def sample_observations(self, count: int, seed: int = 0) -> Tensor:
        """At most ``count`` different observations that the policy met, ``[n, obs]``, in random order."""
        met = self.observation[self.steps > 0]
        order = torch.randperm(len(met), generator=torch.Generator().manual_seed(seed))
        return met[order[:count]]


def diagnosis_seeds(resets: int) -> list[int]:
    """Always the first ``resets`` of the same list, none of them held out."""
    positive_int("resets", resets)
    if resets > HELD_OUT_SEED - DIAGNOSIS_SEED:
        raise UserError(f"resets must be at most {HELD_OUT_SEED - DIAGNOSIS_SEED}, got {resets}")
    return [DIAGNOSIS_SEED + i for i in range(resets)]


@torch.no_grad()
def collect_prior_rollouts(
    env: LatentActionEnv, *, resets: int = 20, repeats: int = 5, seed: int = 0, progress: str | None = None
) -> PriorRollouts:
    """Runs the base policy with plain ``N(0, I)`` noise in the env's layout.

    An env that ends its episodes on success is cheaper and as good: only whether success was reached is asked.

    Args:
        env: with a ``success`` entry, batch ``[*B]``; the episodes take its sub-envs in turn.
        resets: number of starts, :func:`diagnosis_seeds`.
        repeats: episodes from each start, with independent noise.
        seed: of the noise.
        progress: label of a progress bar, ``None`` for no bar.

    Raises:
        UserError: the env does not tell success, or a count is not a positive integer.
        NonFiniteError: NaN or infinity in an observation, action or reward.
    """
    seeds = diagnosis_seeds(resets)
    positive_int("repeats", repeats)
    if SUCCESS_ONCE_KEY not in env.observation_spec.keys():
        raise UserError("the diagnosis needs an env with a `success` entry: it compares success rates")
    size = env.batch_size.numel()
    episodes: list[tuple[Tensor, ...]] = []
    bar = tqdm(total=resets * repeats, unit="episode", desc=progress, mininterval=1.0, disable=progress is None)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Repeat by repeat, so that the k-th group of every repeat resets to the same list of seeds: ManiSkill's GPU
        # simulation draws all starts of a reset from the list as a whole.
        for _ in range(repeats):
            for start in range(0, resets, size):
                group = seeds[start : start + size]
                columns = _run_group(env, group + [group[-1]] * (size - len(group)))
                episodes.extend(zip(*(column[: len(group)] for column in columns), strict=True))
                bar.update(len(group))
    bar.close()
    observation, chunk, steps, success = zip(*episodes, strict=True)
    padded = [torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in (observation, chunk, steps)]
    return PriorRollouts(*(column.unflatten(0, (repeats, resets)) for column in (*padded, torch.stack(success))))


def _run_group(env: LatentActionEnv, seeds: list[int]) -> tuple[Tensor, ...]:
    """One episode per sub-env: observation ``[B, T, obs]``, chunk, steps ``[B, T]`` and success ``[B]``, on the CPU."""
    policy = PriorNoise(env.noise_layout.dim)
    size = len(seeds)
    td = reset_to_seeds(env, seeds)
    running = torch.ones(size, dtype=torch.bool)
    success = torch.zeros(size, dtype=torch.bool)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    while running.any():
        td = env.step(policy(td))
        check_finite(td, sum(int(steps.max()) for *_, steps in rows))
        following = td["next"]
        observation = td["observation"].cpu().reshape(size, -1)
        chunk = following[EXECUTED_CHUNK_KEY].cpu()
        chunk = chunk.reshape(size, *chunk.shape[-2:])
        steps = following[MACRO_STEPS_KEY].cpu().reshape(size)
        rows.append((observation * running[:, None], chunk * running[:, None, None], steps * running))
        success |= running & following[SUCCESS_ONCE_KEY].cpu().reshape(size)
        running &= ~following["done"].cpu().reshape(size)
        td = env.step_mdp(td)
    observations, chunks, executed = zip(*rows, strict=True)
    return torch.stack(observations, 1), torch.stack(chunks, 1), torch.stack(executed, 1), success


def with_layout(env: LatentActionEnv, noise_layout: str) -> LatentActionEnv:
    """The same env and base policy in another noise layout; it shares the simulation, so close only one of them."""
    decoder = env.decoder
    return LatentActionEnv(
        env.base_env,
        decoder.base_policy,
        act_horizon=decoder.layout.act_horizon,
        noise_layout=noise_layout,
        action_magnitude=decoder.action_magnitude,
    )
