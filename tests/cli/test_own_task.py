"""``task=own``: somebody's env by its import path, without options of a task that we ship."""

from __future__ import annotations

import json

import pytest

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError

POLICY = ["base_policy=load", "base_policy.load._target_=examples.own_policy.WalkPolicy"]
OWN = ["task=own", f"task.env._target_={__name__}.MyEnv", "task.act_horizon=4", *POLICY]


class MyEnv(PointReachEnv):
    """Somebody's env: it has an argument of its own, and none of the toy task's."""

    def __init__(self, size: int, terminate_on_success: bool = True) -> None:
        super().__init__(num_envs=size, max_episode_steps=20, terminate_on_success=terminate_on_success)


@pytest.mark.parametrize("plus", ["", "+"])
def test_the_env_has_the_users_arguments_and_no_others(plus):
    config = compose([*OWN, f"{plus}task.env.size=3"])
    assert config.task.env == {"_target_": f"{__name__}.MyEnv", "size": 3}
    assert config.run_name == "own-seed0" and config.task.demonstrations.generator is None


def test_diagnose_measures_it(tmp_path):
    few = ["diagnosis.resets=2", "diagnosis.repeats=2", "progress=false", f"output={tmp_path}", "name=a"]
    main(["diagnose", *OWN, "task.env.size=2", *few])
    report = json.loads((tmp_path / "a" / "diagnosis" / "steerability.json").read_text())
    assert report["spread"]["spread"] > 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=own", *POLICY], r"task\.env\._target_ needs a value"),
        (OWN, r"task\.env\.size is missing: MyEnv needs it"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        compose(words)
