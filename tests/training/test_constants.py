"""The default's search among constant offsets from its mode: in a run, killed and resumed, and what it finds."""

from __future__ import annotations

import pytest
import torch

from tests.training.toy import DSRLAWMLE, Killed, assert_same_state, make_agent, run_online

OPTIONS = {"total_env_steps": 2_000, "warmup_env_steps": 200, "checkpoint_env_steps": 200}


def make():
    return make_agent(DSRLAWMLE, constants=4)


def test_kill_and_resume_amid_the_search_equals_the_uninterrupted_run(tmp_path):
    whole, killed, resumed = make(), make(), make()
    run_online(whole, tmp_path / "whole", **OPTIONS)
    with pytest.raises(Killed):
        run_online(killed, tmp_path / "killed", kill_at=1_900, **OPTIONS)
    run_online(resumed, tmp_path / "killed", resume=True, **OPTIONS)
    assert_same_state(resumed, whole)
    assert whole.search.episodes.sum() >= 8
    kept = whole.kept_policy.actor
    assert torch.equal(kept.offset, whole.offsets[whole.search.leader]) and kept.spread == pytest.approx(0.1)


def test_a_finished_run_goes_on_learning(tmp_path):
    agent, longer = make(), make()
    run_online(agent, tmp_path, **OPTIONS)
    run_online(longer, tmp_path, resume=True, **OPTIONS | {"total_env_steps": 2_600})
    assert not all(map(torch.equal, agent.actor.parameters(), longer.actor.parameters()))
    assert longer.searching  # again, in the last fifth of what it is now
