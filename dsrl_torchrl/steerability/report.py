"""Can DSRL help this base policy here, and with which noise: everything measured before training, and the advice."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tensordict.nn import TensorDictModuleBase

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.policies.probe import LOW_SPREAD, Steerability, steerability
from dsrl_torchrl.steerability.action_magnitude import MagnitudeChoice, choose_action_magnitude
from dsrl_torchrl.steerability.best_of_n import Headroom, ReturnHeadroom, best_of_n, best_return
from dsrl_torchrl.steerability.critic_gap import CriticGap, EnsembleCritic, critic_gap, sample_latent_policy
from dsrl_torchrl.steerability.critic_ranking import CriticRanking
from dsrl_torchrl.steerability.layout_trials import LayoutTrial, different_layouts, layout_trial, recommend_layout
from dsrl_torchrl.steerability.noise_aliasing import Aliasing, aliasing
from dsrl_torchrl.steerability.noise_response import NoiseResponse, bound_share, noise_response, prior_noises
from dsrl_torchrl.steerability.prior_rollouts import collect_prior_rollouts, with_layout

OBSERVATIONS = 256
NOISES_PER_OBSERVATION = 8

#: A base that succeeds this often leaves steering only speed to gain.
ALREADY_GOOD = 0.95
#: Best-of-N success below which there is next to no reward to learn from.
HOPELESS = 0.1
#: Gain of best-of-N over one episode below which the choice of noise does not decide success.
MIN_HEADROOM = 0.1


@dataclass(frozen=True)
class SteerabilityReport:
    """All measurements; :meth:`advice` is their one-line reading.

    Attributes:
        spread: of the whole decoded chunk over ``N(0, I)``, overall and by action dim.
        response: spread and clipping of the executed actions over the noise scale, in the env's layout.
        aliasing: in the env's layout; ``None`` for a base policy that is not differentiable in its noise.
        magnitude: the recommended noise bound and its table, in the recommended layout.
        layouts: the env's layout first.
        headroom: best of N episodes, in the env's layout.
        action_magnitude: the env's noise bound.
        env_steps: primitive steps that the rollouts took.
        left_out: what could not be measured and why, one line each.
        bound_share: share of the latent policy's noises beyond 0.95 of the bound; ``None`` without a latent policy.
        gap_prior: Q^W against Q^A on prior noise; ``None`` without critics.
        gap_policy: the same on the latent policy's noise; ``None`` without critics or latent policy.
        critic_ranking: how the critics rank a state's noises, against true returns; ``None`` where not measured.
        returns: what stands in the place of ``headroom`` for an env that knows no success; ``None`` for all others.
    """

    spread: Steerability
    response: NoiseResponse
    aliasing: Aliasing | None
    magnitude: MagnitudeChoice
    layouts: tuple[LayoutTrial, ...]
    headroom: Headroom
    action_magnitude: float
    env_steps: int
    left_out: tuple[str, ...] = ()
    bound_share: float | None = None
    gap_prior: CriticGap | None = None
    gap_policy: CriticGap | None = None
    critic_ranking: CriticRanking | None = None
    returns: ReturnHeadroom | None = None

    @property
    def recommended_magnitude(self) -> float:
        """See :func:`~dsrl_torchrl.steerability.action_magnitude.choose_action_magnitude`."""
        return self.magnitude.value

    @property
    def recommended_layout(self) -> str:
        """See :func:`~dsrl_torchrl.steerability.layout_trials.recommend_layout`."""
        return recommend_layout(self.layouts)

    @property
    def can_help(self) -> bool:
        """Whether DSRL has something to gain here, and the means to gain it."""
        return self._obstacle() is None

    def advice(self) -> str:
        """One line: whether DSRL can help here, why, and with which noise."""
        settings = f"noise_layout={self.recommended_layout} action_magnitude={self.recommended_magnitude:g}"
        obstacle = self._obstacle()
        if obstacle is not None:
            return f"DSRL is unlikely to help: {obstacle}; to steer all the same: {settings}"
        best, returns = self.headroom, self.returns
        moves = f"noise moves the actions by {self.spread.spread:.2f}, the best of {best.repeats} episodes"
        if returns is None:
            gain = f"{moves} lifts success from {best.success_at_1:.2f} to {best.success_at_n.value:.2f}"
            line = f"DSRL can help: {gain}; use {settings}"
        else:
            gain = f"{moves} returns {returns.best:.4g} where one returns {returns.mean:.4g}"
            line = f"DSRL may help: {gain} (the env tells no success); use {settings}"
        over_estimation = self._over_estimation()
        return f"{line}; beware: {over_estimation}" if over_estimation else line

    def _obstacle(self) -> str | None:
        at_1, at_n, n = self.headroom.success_at_1, self.headroom.success_at_n.value, self.headroom.repeats
        if self.returns is None and at_1 >= ALREADY_GOOD:
            return f"the base policy succeeds in {at_1:.2f} of its episodes already, only speed is left to gain"
        if self.spread.too_small:
            return (
                f"noise moves the actions by {self.spread.spread:.3f} only (range [-1, 1], {LOW_SPREAD} needed); train "
                "the base on demonstrations with action_noise or with more than one way of doing the task"
            )
        if self.returns is not None:
            if self.returns.best > self.returns.mean:
                return None
            return f"the best of {n} episodes returns {self.returns.best:.4g}, as one alone does: noise changes nothing"
        if at_n < HOPELESS:
            return (
                f"the best of {n} episodes succeeds in {at_n:.2f} of the resets; steering selects among what the base "
                "can do, so train a better base first (more demonstrations, or cleaner ones)"
            )
        if at_n - at_1 < MIN_HEADROOM:
            return (
                f"the best of {n} episodes succeeds in {at_n:.2f} of the resets, one alone in {at_1:.2f}: other noise "
                "does not solve what fails, so train a better base first"
            )
        return None

    def _over_estimation(self) -> str | None:
        if self.gap_prior is None or self.gap_policy is None:
            return None
        excess = self.gap_policy.mean - self.gap_prior.mean
        # Beyond what tells good states and noises from bad ones, the actor climbs an error.
        if excess <= self.gap_prior.q_action_std:
            return None
        return (
            f"Q^W over-estimates the latent policy's noise by {excess:.2g} more than the prior's (Q^A varies by "
            f"{self.gap_prior.q_action_std:.2g})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the measurements, and what follows from them."""
        return asdict(self) | {
            "recommended_magnitude": self.recommended_magnitude,
            "recommended_layout": self.recommended_layout,
            "can_help": self.can_help,
            "advice": self.advice(),
        }


def measure_steerability(
    env: LatentActionEnv,
    *,
    resets: int = 20,
    repeats: int = 5,
    seed: int = 0,
    latent_policy: TensorDictModuleBase | None = None,
    q_action: EnsembleCritic | None = None,
    q_noise: EnsembleCritic | None = None,
    knows_success: bool = True,
    progress: bool = False,
) -> SteerabilityReport:
    """Measures a base policy in its env: ``resets * repeats`` episodes, and ``resets`` more for every other layout.

    Args:
        env: the latent env that training would use, with a ``success`` entry; the report is about its layout. A
            ``ParallelEnv`` inside is fine.
        resets: starts, the first of :data:`dsrl_torchrl.seeds.DIAGNOSIS`.
        repeats: episodes from each start, the N of best-of-N.
        seed: of all noises.
        latent_policy: a trained actor, writes ``action``; its entries are those that the critics read, too.
        q_action: Q^A, an ensemble ``(observations [n], chunk [n, act_horizon, action_dim]) -> [n_critics, n]``.
        q_noise: Q^W, an ensemble ``(observations [n], w [n, dim]) -> [n_critics, n]``.
        knows_success: whether ``success`` is ever True: if not, the advice compares returns.
        progress: show progress bars.

    Raises:
        UserError: one critic without the other, an env without ``success``, or a count below 1.
    """
    if (q_action is None) != (q_noise is None):
        raise UserError("the gap is between two critics: give both q_action and q_noise, or neither")
    decoder, keys = env.decoder, list(env.decoder.base_policy.in_keys)
    keys += [key for key in getattr(latent_policy, "in_keys", ()) if key not in keys]
    names = different_layouts(decoder.layout)
    envs = [env, *(with_layout(env, name) for name in names[1:])]
    rollouts = [
        collect_prior_rollouts(
            driven,
            resets=resets,
            repeats=repeats if driven is env else 1,
            seed=seed,
            observation_keys=keys,
            progress=f"prior noise, {name}" if progress else None,
        )
        for driven, name in zip(envs, names, strict=True)
    ]
    observations = rollouts[0].sample_observations(OBSERVATIONS, seed).to(decoder.device)

    noises = {"prior": prior_noises(decoder, NOISES_PER_OBSERVATION, len(observations), seed=seed)}
    if latent_policy is not None:
        noises["policy"] = sample_latent_policy(latent_policy, observations, NOISES_PER_OBSERVATION, seed=seed)
    gaps: dict[str, CriticGap | None] = {}
    if q_action is not None and q_noise is not None:
        gaps = {name: critic_gap(decoder, q_action, q_noise, observations, noise) for name, noise in noises.items()}
    layouts = tuple(
        layout_trial(driven, rollout, observations, seed) for driven, rollout in zip(envs, rollouts, strict=True)
    )
    recommended = envs[names.index(recommend_layout(layouts))].decoder
    policy = decoder.base_policy
    without_gradient = f"aliasing is not measured: {type(policy).__name__} is not differentiable in its noise"
    return SteerabilityReport(
        spread=steerability(policy, observations, seed=seed),
        response=noise_response(decoder, observations, seed=seed),
        aliasing=aliasing(decoder, observations, seed=seed) if policy.differentiable else None,
        magnitude=choose_action_magnitude(recommended, observations, seed=seed),
        layouts=layouts,
        headroom=best_of_n(rollouts[0].success),
        action_magnitude=decoder.action_magnitude,
        env_steps=sum(rollout.env_steps for rollout in rollouts),
        left_out=() if policy.differentiable else (without_gradient,),
        bound_share=bound_share(noises["policy"], decoder.action_magnitude) if "policy" in noises else None,
        gap_prior=gaps.get("prior"),
        gap_policy=gaps.get("policy"),
        returns=None if knows_success else best_return(rollouts[0].returns),
    )
