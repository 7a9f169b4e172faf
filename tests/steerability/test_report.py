from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tensordict.nn import TensorDictModule

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.rates import make_rate
from dsrl_torchrl.policies.probe import Steerability
from dsrl_torchrl.steerability.action_magnitude import BoundResponse, MagnitudeChoice
from dsrl_torchrl.steerability.best_of_n import Headroom, ReturnHeadroom, best_of_n
from dsrl_torchrl.steerability.chunk_jumps import ChunkJumps
from dsrl_torchrl.steerability.critic_gap import CriticGap
from dsrl_torchrl.steerability.layout_trials import LayoutTrial
from dsrl_torchrl.steerability.noise_aliasing import Aliasing
from dsrl_torchrl.steerability.noise_response import NoiseResponse
from dsrl_torchrl.steerability.report import SteerabilityReport, measure_steerability
from tests.steerability.bases import CoinEnv, Decoding, Server, camera_env, coin_env, diagonal


def headroom(*successes, repeats=5):
    """``successes[i]`` of the episodes from reset i."""
    return best_of_n(torch.tensor([[i < n for n in successes] for i in range(repeats)]))


def make_report(best: Headroom, spread: float = 0.15) -> SteerabilityReport:
    jumps = ChunkJumps(0.2, 0.15)
    return SteerabilityReport(
        spread=Steerability(spread, (spread, spread, 0.02)),
        response=NoiseResponse((0.5, 1.0, 2.0), (0.08, 0.15, 0.3), (0.01, 0.02, 0.1)),
        aliasing=Aliasing((0.4, 0.2, 0.1, 0.0), 2.4, 0.25, 0.0),
        magnitude=MagnitudeChoice(
            1.5,
            "action_magnitude 1.5: ...",
            tuple(BoundResponse(m, o, 0.02, m) for m, o in ((1.0, 0.03), (1.5, 0.3), (2.0, 0.6))),
            0.01,
        ),
        layouts=(
            LayoutTrial("full", 32, make_rate([True, False] * 10), spread, jumps),
            LayoutTrial("repeat", 4, make_rate([False] * 20), spread, jumps),
        ),
        headroom=best,
        action_magnitude=2.0,
        env_steps=1234,
    )


FINE = make_report(headroom(*[2] * 15, *[0] * 5))


@pytest.mark.parametrize(
    ("report", "can_help", "words"),
    [
        (FINE, True, "noise moves the actions by 0.15, the best of 5 episodes lifts success from 0.30 to 0.75"),
        (make_report(headroom(*[2] * 20), spread=0.03), False, "noise moves the actions by 0.030 only"),
        (make_report(headroom(1, *[0] * 19)), False, "succeeds in 0.05 of the resets; steering selects among"),
        (make_report(headroom(*[5] * 19, 4)), False, "succeeds in 0.99 of its episodes already"),
        (make_report(headroom(*[5] * 10, *[0] * 10)), False, "0.50 of the resets, one alone in 0.50: other noise"),
        # A perfect base needs no steering, whatever its spread.
        (make_report(headroom(*[5] * 20), spread=0.01), False, "already"),
    ],
)
def test_advice(report, can_help, words):
    advice = report.advice()
    assert report.can_help is can_help
    assert advice.startswith("DSRL can help: " if can_help else "DSRL is unlikely to help: ")
    assert words in advice
    assert advice.endswith("noise_layout=full action_magnitude=1.5")
    assert "\n" not in advice


@pytest.mark.parametrize(
    ("returns", "spread", "words"),
    [
        ((250.0, 310.0), 0.15, "DSRL may help: noise moves the actions by 0.15, the best of 5 episodes returns 310"),
        ((250.0, 250.0), 0.15, "unlikely to help: the best of 5 episodes returns 250, as one alone does"),
        ((250.0, 310.0), 0.03, "unlikely to help: noise moves the actions by 0.030 only"),
    ],
)
def test_advice_for_an_env_without_success_compares_returns(returns, spread, words):
    report = replace(make_report(headroom(*[0] * 20), spread), returns=ReturnHeadroom(*returns))
    advice = report.advice()
    assert words in advice and "succeed" not in advice and "\n" not in advice
    assert report.can_help is ("may help" in advice)


def test_returns_are_measured_where_no_success_is_known():
    """Half of the resets are a coin worth 1, and success is their only reward."""
    report = measure_steerability(coin_env(num_envs=20, act_horizon=2), resets=20, repeats=6, knows_success=False)
    assert report.returns.mean == pytest.approx(report.headroom.success_at_1, abs=1e-6)
    assert report.returns.best == pytest.approx(report.headroom.success_at_n.value, abs=1e-6)
    assert report.to_dict()["returns"]["best"] > 0.3


def test_advice_warns_of_an_over_estimating_critic():
    prior = CriticGap(mean=0.1, std=0.2, correlation=0.9, q_action_std=1.0)
    honest = replace(FINE, gap_prior=prior, gap_policy=replace(prior, mean=0.9))
    assert honest.advice() == FINE.advice()
    inflated = replace(FINE, gap_prior=prior, gap_policy=replace(prior, mean=2.1))
    assert "Q^W over-estimates the latent policy's noise by 2 more than the prior's" in inflated.advice()
    assert "\n" not in inflated.advice()


def test_a_report_of_a_known_base():
    """Half of the noise acts, half of the resets are coins and the others impossible."""
    report = measure_steerability(coin_env(num_envs=20, pred_horizon=4, act_horizon=2), resets=20, repeats=6)
    assert report.spread.spread == pytest.approx(0.2, rel=0.05)
    assert report.aliasing.aliased_fraction == 0.5
    assert report.headroom.success_at_1 == pytest.approx(0.25, abs=0.1)
    assert report.headroom.success_at_n.value == pytest.approx(0.5, abs=0.06)
    assert [trial.name for trial in report.layouts] == ["full", "act_horizon", "repeat"]
    assert report.env_steps == (6 + 1 + 1) * 20 * 3
    assert report.recommended_magnitude == 1.5
    assert report.bound_share is report.gap_prior is report.gap_policy is None
    assert report.can_help


def test_with_a_latent_policy_and_exact_critics():
    env = coin_env(num_envs=4, gain=0.2)
    at_the_bound = TensorDictModule(lambda o: torch.full((*o.shape[:-1], 2), 1.49), ["observation"], ["action"])

    def q_action(observations, chunk):
        return chunk.sum((-1, -2)).expand(2, -1)

    def q_noise(observations, noise):
        return q_action(observations, env.decoder.decode(observations, noise)) + noise.mean(-1).relu()

    report = measure_steerability(
        env, resets=4, repeats=2, latent_policy=at_the_bound, q_action=q_action, q_noise=q_noise
    )
    assert report.bound_share == 1.0
    assert report.gap_policy.mean == pytest.approx(1.49, abs=1e-5)
    assert 0 < report.gap_prior.mean < 0.5
    exact = measure_steerability(
        env, resets=4, repeats=2, q_action=q_action, q_noise=lambda s, w: q_action(s, env.decoder.decode(s, w))
    )
    assert exact.gap_prior.mean == pytest.approx(0, abs=1e-6) and exact.gap_policy is None


def test_on_the_toy_env_it_repeats_and_leaves_the_env_usable():
    policy = diagonal(*[0.3] * 8)
    env = LatentActionEnv(PointReachEnv(num_envs=5, max_episode_steps=12), policy, act_horizon=2, noise_layout="repeat")
    first = measure_steerability(env, resets=5, repeats=2, seed=3)
    assert first == measure_steerability(env, resets=5, repeats=2, seed=3)
    assert first.layouts[0].name == "repeat" and len(first.layouts) == 3
    assert env.rollout(2)["action"].shape == (5, 2, 2)


def test_a_policy_of_two_entries_with_more_noise_than_actions():
    """Of 5 x 3 noises the first of steps 1 and 2 act; a camera and a nested state go all the way through."""
    env = camera_env(num_envs=4)
    actor = TensorDictModule(lambda s: torch.full((*s.shape[:-1], 15), 1.49), [("agent", "state")], ["action"])

    def q_action(observations, chunk):
        assert observations["pixels"].dtype == torch.uint8
        return (chunk.sum((-1, -2)) + observations["agent", "state"].sum(-1)).expand(2, -1)

    report = measure_steerability(
        env,
        resets=8,
        repeats=3,
        latent_policy=actor,
        q_action=q_action,
        q_noise=lambda s, w: q_action(s, env.decoder.decode(s, w)),
    )
    assert report.spread.spread == pytest.approx(0.2, rel=0.1) and len(report.spread.per_action_dim) == 1
    assert report.response.spread[2] == pytest.approx(0.2, rel=0.1)
    assert [(trial.name, trial.dim) for trial in report.layouts] == [("full", 15), ("act_horizon", 6), ("repeat", 3)]
    assert report.aliasing.singular_values == pytest.approx([0.2] * 2 + [0] * 13)
    assert report.bound_share == 1.0
    assert report.gap_prior.mean == pytest.approx(0, abs=1e-6) and report.gap_policy.mean == pytest.approx(0, abs=1e-6)
    json.dumps(report.to_dict(), allow_nan=False)


def test_entries_that_only_the_latent_policy_reads_are_kept():
    env = camera_env(num_envs=2)
    env.decoder.base_policy.in_keys = ["pixels"]
    env.decoder.base_policy.forward = lambda pixels, noise: 0.2 * noise[..., :4, :1]
    actor = TensorDictModule(lambda s: torch.zeros(*s.shape[:-1], 15), [("agent", "state")], ["action"])
    assert measure_steerability(env, resets=2, repeats=1, latent_policy=actor).bound_share == 0.0


def test_a_policy_that_is_not_differentiable_leaves_aliasing_out():
    env = LatentActionEnv(CoinEnv(4), Server(lambda noise: 0.2 * noise, pred_horizon=2, action_dim=1))
    report = measure_steerability(env, resets=8, repeats=4)
    assert report.aliasing is None
    assert report.left_out == ("aliasing is not measured: Server is not differentiable in its noise",)
    assert report.can_help and report.recommended_magnitude == 1.5
    assert json.loads(json.dumps(report.to_dict()))["aliasing"] is None


def test_an_algorithm_without_an_action_critic_has_no_gap():
    env = coin_env(num_envs=4)
    report = measure_steerability(
        env, resets=4, repeats=1, q_action=lambda s, a: None, q_noise=lambda s, w: w.sum(-1)[None]
    )
    assert report.gap_prior is report.gap_policy is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_policy_on_the_gpu_and_its_simulator_on_the_cpu():
    policy = Decoding(lambda noise: 0.3 * noise).to("cuda")
    env = LatentActionEnv(PointReachEnv(num_envs=5, max_episode_steps=12), policy, act_horizon=2)
    actor = TensorDictModule(lambda o: o.sum(-1, keepdim=True).expand(-1, 8), ["observation"], ["action"])
    report = measure_steerability(
        env,
        resets=5,
        repeats=2,
        latent_policy=actor,
        q_action=lambda s, a: a.sum((-1, -2))[None],
        q_noise=lambda s, w: env.decoder.decode(s, w).sum((-1, -2))[None],
    )
    assert report.spread.spread == pytest.approx(0.3, rel=0.05) and report.aliasing.aliased_fraction == 0.5
    assert report.gap_prior.mean == pytest.approx(0, abs=1e-5)


def test_to_dict_is_json_with_the_conclusions():
    stored = json.loads(json.dumps(FINE.to_dict(), allow_nan=False))
    assert stored["recommended_magnitude"] == 1.5
    assert stored["recommended_layout"] == "full"
    assert stored["can_help"] is True
    assert stored["advice"] == FINE.advice()
    assert stored["headroom"]["success_at_k"][0] == pytest.approx(0.3)
    assert stored["magnitude"]["table"][1]["outside"] == 0.3


def test_one_critic_without_the_other():
    with pytest.raises(UserError, match="give both q_action and q_noise"):
        measure_steerability(coin_env(), q_action=lambda s, a: a)
