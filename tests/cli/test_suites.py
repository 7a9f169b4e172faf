"""``suite=S task=T``: what it becomes, and what is wrong about it in one line."""

from __future__ import annotations

import pytest

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.overrides import expand_suite, read_words
from dsrl_torchrl.errors import UserError


def test_a_suites_task_is_its_envs_name():
    config = compose(["suite=metaworld", "task=push-v3", "task.env.num_envs=2"])
    assert config.task.env["env_id"] == config.task.name == config.task.generator_spec["env_id"] == "push-v3"
    assert config.task.env["num_envs"] == 2 and config.run_name == "push-v3-seed0"
    assert config.to_dict() == compose(["env_id=push-v3", "task.env.num_envs=2", "suite=metaworld"]).to_dict()


def test_a_suite_without_success_is_diagnosed_by_its_returns():
    loaded = ["base_policy=load", "base_policy.load._target_=builtins.dict"]
    assert not compose(["suite=locomotion", "task=Hopper-v4", *loaded]).task.knows_success
    assert compose(["suite=gym", "task=FetchReach-v4", *loaded]).task.knows_success
    assert compose(["task=toy"]).task.knows_success


def test_other_spellings_stay():
    words = ["task=toy", "seed=1", "task.env.max_episode_steps=9"]
    assert expand_suite(words) == words
    assert compose(["task=push_cube"]).task.name == "push_cube"


def test_what_a_sweep_hands_on_is_read_again_as_the_same():
    once = read_words(["suite=metaworld", "task=push-v3"])
    assert read_words([word.lstrip("+") for word in once]) == once


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suite=metaworl", "task=push-v3"], "suite needs a choice, suite=<name>.*did you mean metaworld"),
        (["suite=metaworld"], "suite=metaworld needs a task: suite=metaworld task=<name>"),
        (["task=push-v3"], "task needs a choice.*or suite=<name> task=<its own name>: .*metaworld"),
        (["env_id=push-v3"], "env_id=push-v3 needs its suite"),
        (["suite=", "task=x"], "suite needs a choice"),
        (["suite=metaworld", "task=push-v3", "task.env.env=1"], "did you mean task.env.env_id"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        compose(words)
