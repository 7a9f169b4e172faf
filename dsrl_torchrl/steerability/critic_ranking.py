"""Do the critics rank the noises of one state as their true returns do: nothing steers better than its judge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from tqdm import tqdm

from dsrl_torchrl import seeds
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import require_success
from dsrl_torchrl.steerability.branched_episodes import follow_mode, reach_states
from dsrl_torchrl.steerability.critic_gap import EnsembleCritic

#: Returns that differ less, in stds of all returns, do not differ: such a state has no ranking.
SAME_RETURN = 1e-3
#: Draws of the states with replacement.
RESAMPLES = 1_000


@dataclass(frozen=True)
class Estimate:
    """A mean over states with its bootstrap 95 % interval over them."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranking:
    """One critic, the mean of its ensemble, against the true returns.

    Attributes:
        pearson: correlation over the noises of one state, averaged over states whose noises differ; 0 for a critic that
            does not tell them apart.
        spearman: the same of ranks; equal values share theirs.
        gain: true return of the critic's choice among a state's noises, above their mean.
        share: ``gain`` in units of what the best choice gains.
        std: of the critic over the noises of one state.
        across_states: Pearson's over states, each by its noises' mean: good states from bad ones.
    """

    pearson: Estimate
    spearman: Estimate
    gain: Estimate
    share: Estimate
    std: float
    across_states: float


@dataclass(frozen=True)
class CriticRanking:
    """The critics' rankings, and the truth that they are measured by: discounted returns.

    Attributes:
        q_action: Q^A; ``None`` for an algorithm without one, and where no state has a ranking.
        q_noise: Q^W, or whatever else the algorithm ranks noises by; likewise.
        return_std: of the true returns over the noises of one state.
        best_gain: what choosing the best noise of each state would gain.
        success: share of the episodes that reached it.
        states, noises: S and K.
        ranked_states: states whose noises' returns differ.
        repeat_error: the largest difference between two returns of the same noise from the same state; 0 where the env
            restores exactly and the policy has a mode.
        env_steps: primitive steps that the measurement took.
    """

    q_action: Ranking | None
    q_noise: Ranking | None
    return_std: float
    best_gain: Estimate
    success: float
    states: int
    noises: int
    ranked_states: int
    repeat_error: float
    env_steps: int

    def line(self) -> str:
        """The reading, in one line."""
        if not self.ranked_states:
            return f"critics: no ranking, all {self.noises} noises of a state lead to the same return"
        named = {"Q^A": self.q_action, "Q^W": self.q_noise}
        parts = [
            f"{name} ranks a state's noises at correlation {critic.pearson.value:.2f} "
            f"[{critic.pearson.low:.2f}, {critic.pearson.high:.2f}] and gains {critic.share.value:.0%}"
            for name, critic in named.items()
            if critic is not None
        ]
        return (
            f"critics: {', '.join(parts)} of what the best of {self.noises} noises would "
            f"({self.best_gain.value:.2g} of return; noises differ at {self.ranked_states} of {self.states} states)"
        )


@torch.no_grad()
def critic_ranking(
    env: LatentActionEnv,
    policy: TensorDictModuleBase,
    *,
    q_action: EnsembleCritic,
    q_noise: EnsembleCritic,
    states: int = 30,
    noises: int = 8,
    seed: int = 0,
    progress: str | None = None,
) -> CriticRanking:
    """Executes ``noises`` (K) prior noises from each of ``states`` (S) states, each followed by the policy's mode.

    So a return is a function of its state and noise, the true value ``Q(s, w)`` of the policy's mode. The states are
    those after 0 to 5 macro steps of prior noise. An episode that reaches its time limit is no end for the learner,
    which bootstraps there; what follows then is taken to be the last macro step for ever, ``R / (1 - γ^k)``: under a
    step penalty of -1 that is ``-1 / (1 - γ)``, failing for ever.

    Args:
        env: the latent env that was trained in, with the agent's γ, which must be below 1, in this process: its
            sub-envs, as many as it has, run the noises side by side.
        policy: a latent policy; writes ``action``.
        q_action: Q^A, an ensemble ``(observations [n], chunk [n, act_horizon, action_dim]) -> [n_critics, n]``; may
            give ``None``.
        q_noise: Q^W, an ensemble ``(observations [n], w [n, dim]) -> [n_critics, n]``; may give ``None``.
        states: S, from the first resets of :data:`dsrl_torchrl.seeds.DIAGNOSIS`.
        noises: K, at least 2.
        seed: of all noises.
        progress: label of a progress bar, ``None`` for no bar.

    Raises:
        UserError: an env that cannot restore a state or does not tell success, a discount of 1, fewer than 2 noises.
        NonFiniteError: NaN or infinity in an episode.
    """
    gamma = env.gamma
    if gamma is None or gamma >= 1:
        raise UserError(f"the true returns need an env with a discount below 1 in this process, got gamma={gamma}")
    if noises < 2:
        raise UserError(f"a ranking is one of at least 2 noises, got {noises}")
    require_success(env, "the ranking's advice")
    count = states * noises
    rows = [row for row in range(states) for _ in range(noises)]
    bar = tqdm(total=count + states, unit="episode", desc=progress, mininterval=1.0, disable=progress is None)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), bar:
        torch.manual_seed(seed)
        reached, env_steps = reach_states(env, seeds.first(seeds.DIAGNOSIS, states))
        noise = torch.randn(count, env.latent_dim, device=env.decoder.device)
        # The first noise of every state once more, in another place among other neighbours: does it repeat?
        order, executed = [*rows, *range(states)], torch.cat([noise, noise[::noises]])
        returns, success, chunk, steps = follow_mode(env, policy, reached, order, executed, done=bar.update)
    truth = returns[:count].unflatten(0, (states, noises))
    observations = reached[rows].root

    def ranking(value: Tensor | None) -> Ranking | None:
        if value is None or not _differing(truth).any():
            return None
        return rank_against(truth, value.mean(0).cpu().unflatten(0, (states, noises)))

    return CriticRanking(
        q_action=ranking(q_action(observations, chunk[:count])),
        q_noise=ranking(q_noise(observations, noise)),
        return_std=float(truth.std(1).mean()),
        best_gain=_bootstrap(_gain(truth, truth)),
        success=float(success[:count].double().mean()),
        states=states,
        noises=noises,
        ranked_states=int(_differing(truth).sum()),
        repeat_error=float((returns[count:] - truth[:, 0]).abs().max()),
        env_steps=env_steps + steps,
    )


def rank_against(truth: Tensor, value: Tensor) -> Ranking:
    """A critic's values ``[S, K]`` against true returns ``[S, K]`` of the same noises."""
    truth, value = truth.double(), value.double()
    differing = _differing(truth)
    gain, best = _gain(truth, value), _gain(truth, truth)
    across = _correlation(truth.mean(1)[None], value.mean(1)[None])
    return Ranking(
        pearson=_bootstrap(_correlation(truth, value)[differing]),
        spearman=_bootstrap(_correlation(_ranks(truth), _ranks(value))[differing]),
        gain=_bootstrap(gain),
        share=_bootstrap(gain, best),
        std=float(value.std(1).mean()),
        across_states=float(across),
    )


def _differing(truth: Tensor) -> Tensor:
    return truth.std(1) > SAME_RETURN * truth.std().clamp(min=1e-9)


def _gain(truth: Tensor, value: Tensor) -> Tensor:
    """``[S]``: the return of the noise that ``value`` ranks highest above the mean of all."""
    return truth.gather(1, value.argmax(1, keepdim=True)).squeeze(1) - truth.mean(1)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's of each row of ``[S, K]``; 0 where one of the two is constant."""
    x, y = (each - each.mean(1, keepdim=True) for each in (x, y))
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1)).clamp(min=1e-12)


def _ranks(x: Tensor) -> Tensor:
    """Of each row of ``[S, K]``; equal values have the mean of their ranks."""
    below = (x[:, None, :] < x[:, :, None]).sum(2)
    return below + (x[:, None, :] == x[:, :, None]).sum(2) / 2


def _bootstrap(value: Tensor, unit: Tensor | None = None) -> Estimate:
    """The mean of ``value`` ``[S]``, or its ratio to that of ``unit``."""
    draws = torch.randint(len(value), (RESAMPLES, len(value)), generator=torch.Generator().manual_seed(0))

    def mean(index: Tensor) -> Tensor:
        mean = value[index].mean(-1)
        return mean if unit is None else mean / unit[index].mean(-1).clamp(min=1e-12)

    low, high = torch.quantile(mean(draws), value.new_tensor([0.025, 0.975])).tolist()
    return Estimate(float(mean(torch.arange(len(value)))), low, high)
