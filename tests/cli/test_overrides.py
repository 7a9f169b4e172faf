"""Every override is right, or one line and exit code 1 before any work."""

from __future__ import annotations

import copy
import os
import random

import pytest

from dsrl_torchrl.cli.compose import compose, make_config
from dsrl_torchrl.cli.help import STEPS
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.errors import UserError

from .settings import VALUES, fits, inclusive_bounds, settings
from .wrong_overrides import CHOICES, all_wrong

KINDS = (
    "choice", "container", "empty", "misspelt", "missing", "not finite", "null", "number", "section", "text", "word",
)  # fmt: skip
#: What else has to be set for a value that is right.
WITH = {
    "task.pred_horizon": {"task.act_horizon": 1},
    "task.act_horizon": {"task.pred_horizon": 1_000},
    "task.demonstrations.generator": {"task.demonstrations.path": "my.h5"},
    "base_policy.policy": {"base_policy.load": {"_target_": "dsrl_torchrl.policies.load_policy", "folder": "x"}},
    "algorithm.batch_size": {"stage2.offline_fraction": 0, "stage2.replay_size": 1_000_000_000},
    "networks.in_keys": {"stage1.use_demonstrations": False},
    "stage2.total_env_steps": {"stage2.warmup_env_steps": 0},
    "stage2.from_stage1": {"stage2.total_env_steps": 60_000},
    "latent.knots": {"latent.noise_layout": "interpolated", "latent.action": "noise"},
    "latent.action_magnitude": {"latent.action": "noise"},
    "latent.centre_env_steps": {"latent.action": "noise"},
    "latent.residual_scale": {
        "latent.action": "residual",
        "latent.action_magnitude": 1.0,
        "stage2.from_stage1": [],
        "stage2.total_env_steps": 60_000,
        "stage2.offline_fraction": 0,
    },
    "collector.ray_workers": {"latent.action": "noise"},
    "stage2.replay_size": {"algorithm.batch_size": 1, "stage2.offline_fraction": 0},
}
#: Of these, the end of the range needs more of another than there may be.
ALONE = dict.fromkeys(
    ("stage2.warmup_env_steps", "algorithm.critic_only_updates", "stage1.algorithm.critic_only_updates"), (0, 1)
) | {"latent.knots": (2, 3), "algorithm.target_critics": (1, 2)}


@pytest.fixture(scope="module")
def wrong():
    """Wrong command lines, by what is wrong about them."""
    return all_wrong()


@pytest.fixture
def no_work(tmp_path, monkeypatch):
    """An empty folder, in which no step may begin."""
    monkeypatch.setattr("dsrl_torchrl.cli.run.METHODS", dict.fromkeys(STEPS, lambda run: pytest.fail("a step began")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_refused(capsys, *words):
    shown = [word[:60] for word in words]
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
        pytest.fail(f"accepted: {shown}")
    out, error = capsys.readouterr()
    assert stopped.value.code == 1 and not out, shown
    assert error.startswith("dsrl: error: ") and error.endswith("\n") and error.count("\n") == 1, (shown, error)
    assert len(error) < 700 and "https://" not in error and ("++" not in error or "++" in words), (
        shown,
        error,
    )
    assert not os.listdir(), shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_override_of_each_kind_is_one_line_before_any_work(wrong, no_work, capsys, kind):
    assert set(KINDS) == set(wrong)
    for step, words in zip(STEPS, random.Random(0).sample(wrong[kind], 5), strict=False):
        check_refused(capsys, step, "task=toy", f"output={no_work}", *words)


def put(values, name, value):
    *path, last = name.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value


def test_every_right_value_of_every_option_is_accepted():
    """The other side of the same rule: what it calls right is right, the ends of a range included."""
    tried, refused = set(), []
    for words in CHOICES:
        known = compose(["task=toy", *words]).to_dict()
        for setting in settings(*words):
            right = [value for _, value in VALUES if fits(setting, value)] + inclusive_bounds(setting)
            if setting.name == "collector.ray_workers" and "algorithm=best_of_n" in words:
                right = [None]  # whose policy can't act there
            if setting.name == "networks.actor_encoder" and "algorithm=best_of_n" in words:
                right = ["shared"]  # it has no actor
            for value in ALONE.get(setting.name, right):
                if (setting.name, repr(value)) in tried:
                    continue
                tried.add((setting.name, repr(value)))
                values = copy.deepcopy(known)
                for name, other in (WITH.get(setting.name, {}) | {setting.name: value}).items():
                    put(values, name, other)
                try:
                    make_config(values)
                except UserError as error:
                    refused.append(f"{setting.name}={value!r:.40}: {error}")
    assert not refused
    assert len(tried) > 400
