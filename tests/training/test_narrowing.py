"""The default's policy, which narrows late in stage 2."""

from __future__ import annotations

from tests.training.toy import DSRLAWMLE, make_agent, run_online


def test_it_has_narrowed_to_the_final_spread_when_the_run_ends(tmp_path):
    agent = make_agent(DSRLAWMLE, final_spread=0.25)
    run_online(agent, tmp_path, total_env_steps=200, warmup_env_steps=40, macro_steps_per_round=8)
    assert agent.actor.spread == agent.kept_policy.actor.spread == 0.25
