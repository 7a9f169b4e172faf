"""Honest evaluation: the same held-out resets for every policy, both success measures, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from tqdm import tqdm

from dsrl_torchrl.collect.episodes import run_episodes
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.rates import Rate, make_rate
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY, SUCCESS_KEY, SUCCESS_ONCE_KEY, require_success


@dataclass(frozen=True)
class Evaluation:
    """What one policy did on the held-out resets. Lengths and returns are per episode, in primitive env steps."""

    success_once: Rate
    success_at_end: Rate
    return_mean: float
    length_mean: float

    def to_dict(self) -> dict:
        return asdict(self)


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
        policy: writes ``action``; on the env's device.
        seeds: one reset per seed; the sub-envs take them in turn.
        deterministic: use the policy's mode instead of a sample.
        noise_seed: seeds the policy's sampling, so that an evaluation can be repeated.
        progress: label of a progress bar, ``None`` for no bar.

    Raises:
        UserError: the env does not tell success, or there is no seed.
        NonFiniteError: NaN or infinity in an episode.
    """
    if not seeds:
        raise UserError("an evaluation needs at least one reset seed, got none")
    require_success(env, "an evaluation")
    size = env.batch_size.numel()
    outcomes: list[tuple[Tensor, ...]] = []
    exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    bar = tqdm(total=len(seeds), unit="episode", desc=progress, mininterval=1.0, disable=progress is None)
    # Every card by its number: without numbers torch warns where there are several.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), set_exploration_type(exploration):
        torch.manual_seed(noise_seed)
        for start in range(0, len(seeds), size):
            group = seeds[start : start + size]
            outcomes.append(_outcomes(env, policy, group))
            bar.update(len(group))
    bar.close()
    once, at_end, returns, lengths = (torch.cat(column) for column in zip(*outcomes, strict=True))
    return Evaluation(
        make_rate(once.tolist()), make_rate(at_end.tolist()), returns.mean().item(), lengths.mean().item()
    )


def _outcomes(env: EnvBase, policy: TensorDictModuleBase, seeds: Sequence[int]) -> tuple[Tensor, ...]:
    """``(success_once, success_at_end, return, length)`` of one episode per seed, each ``[len(seeds)]``."""
    size = env.batch_size.numel()
    once, at_end = torch.zeros(2, size, dtype=torch.bool)
    returns, lengths = torch.zeros(2, size, dtype=torch.float64)
    for td, running in run_episodes(env, policy, seeds):
        after = td["next"].select("reward", STEPS_KEY, SUCCESS_KEY, SUCCESS_ONCE_KEY).reshape(size).cpu()
        returns += torch.where(running, after["reward"].reshape(size), 0)
        lengths += (running & ~once) * after[STEPS_KEY].reshape(size)
        once |= running & after[SUCCESS_ONCE_KEY].reshape(size)
        at_end = torch.where(running, after[SUCCESS_KEY].reshape(size), at_end)
    return tuple(column[: len(seeds)] for column in (once, at_end, returns, lengths))
