"""The single file: its macro step by hand, its update against the library's, and the script as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.bare_loop import BareNA
from dsrl_torchrl.policies import FlowPolicy, save_policy
from examples.dsrl_na_single_file import Actor, Args, Critics, ToyEnv, evaluate, macro_step, toy_policy
from tests.examples.same_updates import PLAIN, SHIPPED, assert_same_updates

SCRIPT = Path(__file__).parents[2] / "examples" / "dsrl_na_single_file.py"


class Counter:
    """Env ``i`` ends after ``ends[i]`` steps, env 0 by success and the others by the time limit."""

    def __init__(self, ends):
        self.ends, self.steps = torch.tensor(ends), torch.zeros(len(ends), dtype=torch.int64)

    def step(self, action):
        self.steps = self.steps + 1
        over = self.steps >= self.ends
        first = torch.arange(len(over)) == 0
        observation = self.steps.float().unsqueeze(-1) + action
        return observation, None, over & first, over & ~first, {"success": over & first}


def test_every_env_of_a_macro_step_ends_on_its_own():
    out = macro_step(Counter([2, 3, 9]), torch.zeros(3, 1), torch.zeros(3, 4, 1), gamma=0.5)
    assert out["k"].tolist() == [2, 3, 4]
    # -1 a step and 0 for the step that succeeds.
    assert out["reward"].tolist() == [-1.0, -1.75, -1.875]
    assert out["s_next"].squeeze(-1).tolist() == [2.0, 3.0, 4.0]
    assert out["terminated"].tolist() == [True, False, False]
    assert out["done"].tolist() == [True, True, False]
    assert out["success"].tolist() == [True, False, False]


def test_the_first_policy_is_the_same_everywhere():
    actor = Actor(3, 2, Args(action_magnitude=2.0))
    w, _ = actor(torch.randn(2_000, 3))
    assert w.abs().max() <= 2.0
    # 2 tanh(u), u ~ N(0, 0.5)
    assert (w / 2).atanh().std(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    assert actor(torch.randn(5, 3), spread=0.0)[0].abs().max() < 0.1


def test_log_prob_is_the_density_of_the_noise():
    actor = Actor(3, 1, Args())
    w, log_prob = actor(torch.zeros(200_000, 3))
    inside = (w.squeeze(-1) > 0.1) & (w.squeeze(-1) < 0.3)
    assert inside.float().mean() / 0.2 == pytest.approx(log_prob[inside].exp().mean().item(), rel=0.03)


def test_members_of_an_ensemble_are_networks_of_their_own():
    critics = Critics(3 + 2, 5.0, Args(num_critics=2, num_cells=(4,)))
    x, chunk = torch.randn(6, 3), torch.randn(6, 2, 1)
    for i in range(2):
        h = torch.cat([x, 5.0 * chunk.flatten(1)], -1) @ critics.weight[0][i].T + critics.bias[0][i]
        h = torch.nn.functional.layer_norm(h, (4,)).relu()
        by_hand = (h @ critics.weight[1][i].T + critics.bias[1][i]).squeeze(-1)
        torch.testing.assert_close(critics(x, chunk)[i], by_hand)


@pytest.mark.parametrize("setting", [SHIPPED, PLAIN], ids=["shipped", "plain"])
@pytest.mark.parametrize("num_critics", [2, 3])
def test_updates_are_those_of_the_library(setting, num_critics):
    assert_same_updates(replace(setting, num_critics=num_critics), "dsrl_na", BareNA)


def test_evaluation_counts_episodes():
    env, args = ToyEnv(num_envs=4), Args(eval_episodes=8)
    assert evaluate(env, lambda s: torch.zeros(len(s), 4, 2), args) < 0.5  # nothing moves
    assert evaluate(env, lambda s: (-10 * s).clamp(-1, 1).unsqueeze(1).expand(-1, 4, -1), args) == 1.0
    assert toy_policy(torch.zeros(3, 2), torch.zeros(3, 4, 2)).abs().max() == 0


def run_script(*arguments):
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_runs():
    tiny = {"total-env-steps": 120, "warmup-env-steps": 60, "eval-env-steps": 40, "eval-episodes": 4}
    tiny |= {"batch-size": 8, "num-cells": "(8, 8)", "num-envs": 2}
    out = run_script("--env", "toy", *[word for name, value in tiny.items() for word in (f"--{name}", str(value))])
    assert out.startswith("base policy: success 0.") and out.count("env steps: success") >= 3 and "q_noise" in out


@pytest.mark.simulator
def test_it_runs_on_maniskill(tmp_path):
    pytest.importorskip("mani_skill")
    policy = FlowPolicy(35, 4, 8, network={"kind": "mlp", "width": 8, "depth": 1}, control_mode="pd_ee_delta_pos")
    observations, actions = torch.randn(100, 35), torch.rand(100, 8, 4) * 2 - 1
    save_policy(policy.fit_scales(observations, actions), tmp_path / "base")
    tiny = Args(
        env="PushCube-v1", base_policy=str(tmp_path / "base"), max_episode_steps=10, total_env_steps=40,
        warmup_env_steps=20, eval_env_steps=40, eval_episodes=2, batch_size=8, num_cells=(8,),
    )  # fmt: skip
    script = f"from examples.dsrl_na_single_file import Args, main; print(sorted(main({tiny!r})))"
    # In a process of its own: another test may have made this one usable without a renderer.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("['base', 'steered']\n")


def test_a_simulated_task_needs_a_base_policy():
    done = subprocess.run([sys.executable, SCRIPT, "--env", "PickCube-v1"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("--base-policy is needed")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_it_learns_the_toy():
    out = run_script("--env", "toy", "--total-env-steps", "4000", "--num-cells", "(64, 64)")
    rates = [float(rate) for rate in re.findall(r"success (\d\.\d+)", out)]
    assert rates[0] < 0.7 and rates[-1] >= 0.95


def test_it_is_short_and_imports_of_ours_only_a_policy_and_a_simulator_without_renderer():
    source = SCRIPT.read_text()
    assert len(source.splitlines()) < 300
    ours = re.findall(r"(?:from|import) (?:dsrl_torchrl|torchrl|tensordict|envs)\b.*", source)
    assert ours == [
        "from dsrl_torchrl.envs.headless import import_mani_skill",
        "from dsrl_torchrl.policies import load_policy",
    ]
