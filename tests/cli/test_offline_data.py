"""What the base policy's rollouts tell about the task before anything learns from them."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.cli.config import TaskOptions
from dsrl_torchrl.cli.steps.offline_data import failing_pays, with_chunks
from dsrl_torchrl.policies import FlowPolicy, IdentityPolicy

MANISKILL, TOY = "dsrl_torchrl.envs.maniskill.ManiSkillEnv", "dsrl_torchrl.envs.toy.PointReachEnv"


def make_task(target=MANISKILL, **env) -> TaskOptions:
    return TaskOptions(name="task", env={"_target_": target, **env})


def make_rollouts(terminated, success, done):
    columns = {"terminated": terminated, "success": success, "done": done}
    return TensorDict({"next": {k: torch.tensor(v).unsqueeze(-1) for k, v in columns.items()}}, [len(done)])


#: A step under way, a failure, a success, a success on the last step, the time limit.
FAILING = make_rollouts(
    [False, True, True, True, False], [False, False, True, True, False], [False, True, True, True, True]
)


@pytest.mark.parametrize("task", [make_task(), make_task(reward="step_penalty"), make_task(TOY)])
def test_failing_early_under_a_step_penalty_is_one_line(task):
    line = failing_pays(task, FAILING)
    assert line.startswith("warning: 1 of 4 episodes ended early without success")
    assert "task.env.terminate_on_success=false" in line and "\n" not in line


def test_nobody_failed():
    assert failing_pays(make_task(), FAILING[[0, 2, 3, 4]]) is None


def test_other_rewards_may_punish_a_failure():
    assert failing_pays(make_task(reward="sparse"), FAILING) is None
    assert failing_pays(make_task("tests.scripted_env.ScriptedEnv", lengths=[1], terminates=[True]), FAILING) is None


def test_an_env_that_does_not_tell_success():
    assert failing_pays(make_task(), FAILING.exclude(("next", "success"))) is None


def test_every_chunk_is_its_own_action():
    """Of demonstrations and of rollouts under any noise: what was commanded, in the learner's unit."""
    policy = IdentityPolicy(FlowPolicy(observation_dim=2, action_dim=2, pred_horizon=3).freeze(), 3)
    chunk = 2 * torch.rand(5, 3, 2) - 1
    noise = torch.randn(5, 6)
    for stored in ({}, {"action": noise}):
        data = TensorDict({**stored, "next": {"action_chunk": chunk}}, [5])
        labelled = with_chunks(data, policy)
        torch.testing.assert_close(policy(None, labelled["action"].unflatten(-1, (3, 2))), chunk)
        assert data.get("action", None) is stored.get("action")  # the shared rollouts keep their noise
