"""Honest evaluation: the same held-out resets for every policy, both success measures, intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from dsrl_torchrl.data.macro_transitions import check_finite

#: Evaluation reset seeds start here; training and demonstrations stay below.
HELD_OUT_SEED = 1_000_000_000


@dataclass(frozen=True)
class Rate:
    """A success rate with its Wilson 95 % interval over ``n`` episodes."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Evaluation:
    """What one policy did on the held-out resets. Lengths and returns are per episode, in primitive env steps."""

    success_once: Rate
    success_at_end: Rate
    return_mean: float
    length_mean: float

    def to_dict(self) -> dict:
        return asdict(self)


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a binomial rate (Wilson 1927), 95 % by default."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def make_rate(outcomes: Sequence[bool]) -> Rate:
    """The rate of ``True`` with its interval."""
    successes, n = sum(map(bool, outcomes)), len(outcomes)
    return Rate(successes / max(n, 1), *wilson_interval(successes, n), n)


def held_out_seeds(episodes: int) -> list[int]:
    """The fixed evaluation seeds: always the first ``episodes`` of the same list."""
    return [HELD_OUT_SEED + i for i in range(episodes)]


def reset_to_seeds(env: EnvBase, seeds: Sequence[int]):
    """Resets every sub-env of ``env`` to its own seed; ``len(seeds)`` equals the number of sub-envs."""
    base = env
    while isinstance(base, TransformedEnv):
        base = base.base_env
    workers = getattr(base, "num_workers", None)
    if workers is None:
        return env.reset(seed=list(seeds))
    per_worker = len(seeds) // workers
    return env.reset(
        list_of_kwargs=[{"seed": list(seeds[i * per_worker : (i + 1) * per_worker])} for i in range(workers)]
    )


@torch.no_grad()
def evaluate(
    env: EnvBase,
    policy: TensorDictModuleBase,
    seeds: Sequence[int],
    *,
    deterministic: bool = False,
    noise_seed: int = 0,
    progress: str | None = None,
) -> Evaluation:
    """Runs ``policy`` once from each reset seed.

    ``env`` is a macro env that ends its episodes at the time limit only (``terminate_on_success=False``), so that
    ``success_once`` (some primitive step succeeded) and ``success_at_end`` (the last step is a success) come from the
    same run. The return is the sum over the whole episode (undiscounted if the env's ``gamma`` is 1); the length counts
    the env steps up to the end of the macro step with the first success, or to the time limit.

    Args:
        env: macro env with ``success`` and ``success_once``, batch ``[*B]``.
        policy: writes ``action``.
        seeds: one reset per seed; the sub-envs take them in turn.
        deterministic: use the policy's mode instead of a sample.
        noise_seed: seeds the policy's sampling, so that an evaluation can be repeated.
        progress: label of a progress bar, ``None`` for no bar.
    """
    size = env.batch_size.numel()
    once: list[bool] = []
    at_end: list[bool] = []
    returns: list[float] = []
    lengths: list[float] = []
    exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    bar = tqdm(total=len(seeds), unit="episode", desc=progress, mininterval=1.0, disable=progress is None)
    with torch.random.fork_rng(), set_exploration_type(exploration):
        torch.manual_seed(noise_seed)
        for start in range(0, len(seeds), size):
            group = list(seeds[start : start + size])
            outcome = _run_episodes(env, policy, group + [group[-1]] * (size - len(group)))
            columns: tuple[list, ...] = (once, at_end, returns, lengths)
            for values, result in zip(columns, outcome, strict=True):
                values.extend(result[: len(group)].tolist())
            bar.update(len(group))
    bar.close()
    return Evaluation(
        make_rate(once), make_rate(at_end), sum(returns) / max(len(returns), 1), sum(lengths) / max(len(lengths), 1)
    )


def _run_episodes(env: EnvBase, policy: TensorDictModuleBase, seeds: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """One episode per sub-env; ``(once, at_end, return, length)``, each ``[len(seeds)]``."""
    td = reset_to_seeds(env, seeds)
    shape = (len(seeds),)
    running = torch.ones(shape, dtype=torch.bool)
    once = torch.zeros(shape, dtype=torch.bool)
    at_end = torch.zeros(shape, dtype=torch.bool)
    returns, lengths = torch.zeros(shape), torch.zeros(shape)
    while running.any():
        td = env.step(policy(td))
        following = td["next"]
        check_finite(td, int(lengths.max()))
        returns += running * following["reward"].reshape(shape).cpu()
        lengths += (running & ~once) * following["macro_steps"].reshape(shape).cpu()
        once |= running & following["success_once"].reshape(shape).cpu()
        at_end = torch.where(running, following["success"].reshape(shape).cpu(), at_end)
        running &= ~following["done"].reshape(shape).cpu()
        td = env.step_mdp(td)
    return once, at_end, returns, lengths
