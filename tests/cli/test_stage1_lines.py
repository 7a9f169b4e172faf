"""The check of stage 1: the policy and the base policy on the same resets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from dsrl_torchrl import seeds
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.steps import stage1
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.evaluation.rates import make_rate
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.training.offline import OfflineResult
from tests.training.toy import DSRLAWMLE, make_agent, make_env

RESULT = OfflineResult(updates=100, wall_seconds=10.0, q_prior=-20.0, q_policy=-18.0, q_gain=2.0, q_gain_stderr=0.1)


def checked(successes: int) -> dict:
    return {"success_once": asdict(make_rate([i < successes for i in range(40)]))}


@pytest.mark.parametrize("learned, base, worse", [(20, 18, False), (14, 22, False), (5, 25, True)])
def test_the_check_of_stage_1_is_beside_the_base_policy(learned, base, worse):
    """Its warning needs intervals that are apart: 40 episodes are few."""
    said: list[str] = []
    facts = asdict(RESULT) | {"transitions": 500, "check": checked(learned), "check_base": checked(base)}
    stage1.say_stage1(facts, Path("runs/a/stage1"), said.append)
    rates = [make_rate([i < successes for i in range(40)]) for successes in (learned, base)]
    assert said[2] == f"check: success {rates[0]}, the base policy {rates[1]}, of 40 other resets"
    assert ("worse than the base" in said[-1]) == worse and len(said) == 3 + worse


def test_base_policy_and_result_are_checked_on_the_same_resets(tmp_path, monkeypatch):
    asked = []

    def evaluated(env, policy, starts, **options):
        asked.append((policy, starts))
        return evaluate(env, policy, starts, **options)

    monkeypatch.setattr(stage1, "train_offline", lambda *_, **__: RESULT)
    monkeypatch.setattr(stage1, "plot_stage1", lambda *_: None)
    monkeypatch.setattr(stage1, "evaluate", evaluated)
    config = compose(["experiment=smoke", "task=toy", "stage1.check_episodes=8", "progress=false"])
    env = make_env()
    agent = make_agent(DSRLAWMLE, env=env)
    facts, _ = stage1.train_stage1(agent, env, [], config, tmp_path, key="-", say=print)
    (learned, starts), (base, same) = asked
    assert learned is agent.kept_policy and isinstance(base, PriorNoise) and base.scale == 1
    assert starts == same == seeds.first(seeds.CHECKS, 8)
    assert facts["check"]["success_once"]["n"] == facts["check_base"]["success_once"]["n"] == 8
    # Neither a discounted return nor a success at an end that success brings about: those of the evaluations are other.
    assert facts["check"].keys() == facts["check_base"].keys() == {"success_once", "length_mean"}
