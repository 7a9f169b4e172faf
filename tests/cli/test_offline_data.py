"""What the base policy's rollouts tell about the task before anything learns from them."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.cli.config import TaskOptions
from dsrl_torchrl.cli.steps.offline_data import check_demonstrated_reward, failing_pays, short_sighted, with_chunks
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.errors import UserError
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


def test_a_bonus_for_every_solved_step_is_none_that_demonstrations_carry():
    check_demonstrated_reward(make_task(success_bonus=2.0))
    check_demonstrated_reward(make_task(terminate_on_success=False))
    with pytest.raises(UserError, match=r"for task.env.success_bonus=1 alone, not for 2: set it, or stage1"):
        check_demonstrated_reward(make_task(success_bonus=2.0, terminate_on_success=False))


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


def make_episodes(*episodes: tuple[int, bool]) -> EpisodeTracker:
    """One env, one episode a macro step."""
    tracker, (lengths, successes) = EpisodeTracker(window=None), zip(*episodes, strict=True)
    column = {"chunk_steps": lengths, "success_once": successes, "done": [True] * len(lengths)}
    batch = {key: torch.tensor(values).reshape(1, -1, 1) for key, values in column.items()}
    tracker.update(TensorDict({"next": {**batch, "reward": torch.zeros(1, len(lengths), 1)}}, [1, len(lengths)]))
    return tracker


def test_a_discount_that_hides_successes_is_one_line():
    """Successes take (160 + 180) / 2 = 170 steps: 0.98^170 = 3.2 %, 1 - 1/170 = 0.9941 leaves 37 %."""
    line = short_sighted(make_episodes((250, False), (160, True), (180, True), (250, False)), 0.98)
    assert line.startswith("warning: successful episodes take 170 env steps") and "\n" not in line
    assert "algorithm.gamma=0.98 leaves 3.2% of" in line and line.endswith("algorithm.gamma=0.9941 leaves 37%")


def test_a_discount_that_shows_them():
    episodes = make_episodes((50, True), (100, False))
    assert short_sighted(episodes, 0.98) is None  # 36 %
    assert short_sighted(make_episodes((1, True)), 0.01) is None  # there is nothing better to name
    assert short_sighted(make_episodes((250, False)), 0.5) is None  # nobody succeeded: nothing to say
