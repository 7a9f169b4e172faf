"""What is fitted has known fixed points, what is measured is the library's, and a tiny run ends to end."""

from __future__ import annotations

import json

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from benchmarks.__main__ import main
from benchmarks.branched_data import Branches, collect_branches
from benchmarks.critic_figure import table
from benchmarks.critic_targets import OWN, RESULTS, VARIANTS
from benchmarks.fitted_critics import (
    FittedCritic,
    NextStateModel,
    centred_error,
    lookahead,
    with_next_chunks,
    within_r2,
)
from benchmarks.setting import Setting, random_transitions
from dsrl_torchrl import seeds
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.steerability.critic_ranking import critic_ranking, rank_against
from tests.steerability.test_critic_ranking import GAMMA, latent_env, values, walk

SETTING = Setting(observation=3, action=1, horizon=2, width=32, depth=2, base_width=4, batch_size=64)


def prepared(n=32, sample=False):
    torch.manual_seed(0)
    env = SETTING.env()
    agent = SETTING.agent("dsrl_aw_mle", env)
    return env, agent, with_next_chunks(agent, random_transitions(SETTING, n), sample=sample)


def test_td_of_transitions_that_end_finds_their_rewards():
    """Every macro transition terminates: ``Q = R``."""
    env, agent, data = prepared()
    data["next", "terminated"][:] = True
    critic = FittedCritic(agent, env, SETTING.networks())
    critic.fit(data, 400)
    assert (critic.values(data) - data["next", "reward"].squeeze(-1)).abs().max() < 0.05
    assert critic.seconds > 0


def test_td_of_a_state_that_stays():
    """One transition to itself, its chunk the policy's: ``Q = R / (1 - γ^k)``, and looking ahead tells the same."""
    env, agent, data = prepared(1)
    data["next", "observation"], data["next", "terminated"][:] = data["observation"], False
    data["next", "chunk_steps"][:] = 2
    data = with_next_chunks(agent, data)
    data["next", "action_chunk"] = data["next", "chunk"]
    agent.config = agent.config.model_copy(update={"gamma": 0.5, "tau": 0.2})
    critic = FittedCritic(agent, env, SETTING.networks())
    critic.fit(data, 400)
    expected = float(data["next", "reward"]) / (1 - 0.5**2)
    assert float(critic.values(data)) == pytest.approx(expected, abs=0.02)
    assert float(lookahead(data, critic.next_values(data), 0.5)) == pytest.approx(expected, abs=0.02)


def test_looking_ahead_by_hand():
    outcome = {
        "reward": torch.tensor([[-1.5], [-1.0]]),
        "chunk_steps": torch.tensor([[2], [1]]),
        "terminated": torch.tensor([[False], [True]]),
    }
    value = lookahead(TensorDict({"next": TensorDict(outcome, [2])}, [2]), torch.tensor([-4.0, -4.0]), 0.5)
    assert value.tolist() == [-1.5 + 0.25 * -4, -1.0]


def test_the_regression_within_a_state_by_hand():
    values, returns = torch.tensor([[[1.0, 3.0]], [[0.0, 0.0]]]), torch.tensor([[2.0, 6.0]])
    # Means 2 and 0 against 4; within (-1, 1) and (0, 0) against (-2, 2).
    assert centred_error(values, returns, 10.0).tolist() == [[[10 + 4.0, 10 + 4.0]], [[40 + 16.0, 40 + 16.0]]]
    torch.manual_seed(0)
    values, returns = torch.randn(2, 5, 4), torch.randn(5, 4)
    torch.testing.assert_close(centred_error(values, returns).mean(-1), (values - returns).square().mean(-1))
    shifted = returns + torch.randn(5, 1)
    error = centred_error(shifted[None], returns, 7.0)
    torch.testing.assert_close(error, (shifted - returns).square()[None])  # what a state shares has no weight


def test_the_policy_is_asked_once_for_its_mode_or_a_sample():
    _, agent, data = prepared()
    again = with_next_chunks(agent, data)
    torch.testing.assert_close(again["next", "chunk"], data["next", "chunk"])
    assert not torch.equal(with_next_chunks(agent, data, sample=True)["next", "chunk"], data["next", "chunk"])
    assert not data["next", "noise_log_prob"].any()


def test_a_model_finds_linear_dynamics():
    _, _, data = prepared(512)
    chunk = data["next", "action_chunk"].flatten(1)
    data["next", "observation"] = data["observation"] + chunk @ torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])
    model = NextStateModel(data, "observation", updates=300)
    true = data["next", "observation"].unflatten(0, (128, 4))
    assert within_r2(model(data)["next", "observation"].unflatten(0, (128, 4)), true, model.unit) > 0.95
    assert within_r2(true, true, model.unit) == 1
    assert within_r2(true.mean(1, keepdim=True).expand_as(true), true, model.unit) == pytest.approx(0, abs=1e-6)
    off = true + torch.tensor([[[0.1], [-0.1], [0.1], [-0.1]]])
    far = torch.tensor([1e6, 1e6, 1.0])  # the last entry alone counts
    error = 0.1**2 / float((true - true.mean(1, keepdim=True))[..., 2].square().mean())
    assert within_r2(off, true, far) == pytest.approx(1 - error, abs=1e-4)


def test_branches_are_the_ranking_s(tmp_path):
    """The states, noises and returns of ``dsrl diagnose``; and they are what was saved."""
    env, policy = latent_env(num_envs=5), TensorDictModule(walk, ["observation"], ["action"])
    branches = collect_branches(env, policy, seeds.DIAGNOSIS[:8], 3, seed=0)
    expected = critic_ranking(
        env,
        policy,
        q_action=lambda s, chunk: values(s, chunk, walk).sin(),
        q_noise=lambda s, w: w.sum(-1)[None],
        states=8,
        noises=3,
    )
    first = branches.first
    assert first["observation"].shape == (8, 3, 2) and bool((first["observation"][:, :1] == first["observation"]).all())
    flat = first.reshape(-1)
    truth = values(flat, flat["next", "action_chunk"], walk)[0].unflatten(0, (8, 3))
    torch.testing.assert_close(branches.returns, truth, atol=1e-5, rtol=0)
    assert rank_against(branches.returns, truth.sin()).pearson.value == pytest.approx(
        expected.q_action.pearson.value, abs=1e-6
    )
    assert rank_against(branches.returns, first["action"].sum(-1)) == expected.q_noise
    assert int(branches.transitions["next", "chunk_steps"].sum()) == branches.env_steps
    branches.save(tmp_path / "branches.safetensors")
    stored = Branches.load(tmp_path / "branches.safetensors")
    assert bool((stored.transitions == branches.transitions).all()) and bool((stored.first == first).all())
    assert torch.equal(stored.returns, branches.returns) and stored.env_steps == branches.env_steps
    more = collect_branches(env, policy, seeds.DIAGNOSIS[100:1000], 2, seed=0, env_steps=300)
    assert 300 <= more.env_steps < 800 and more.first.shape[1] == 2
    assert env.gamma == GAMMA


def test_what_a_variant_changes_is_an_option():
    config = NetworkConfig()
    for variant in VARIANTS.values():
        changed = config.replace(**variant.networks)
        assert all(getattr(changed, name) == value for name, value in variant.networks.items())
        assert not variant.regression or variant.collected == ("branches",)


def test_mistakes_are_one_line(tmp_path):
    for words, message in (
        (["runs=x"], "expected run=<folder> of a finished stage 1"),
        ([f"run={tmp_path}"], "with a config.yaml"),
        (["run=x", "--variants", "mode,nope"], "got nope"),
        (["run=x", "--noises", "1"], "at least 2 noises, got 1"),
    ):
        with pytest.raises(SystemExit, match="benchmarks: error") as refused:
            main(["critic_targets", *words])
        assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_tiny_run(tmp_path):
    from dsrl_torchrl.cli.compose import compose
    from dsrl_torchrl.cli.run import Run

    words = ["task=toy", "experiment=smoke", f"output={tmp_path}", "name=toy", "progress=false"]
    with Run(compose(words), say=lambda line: None) as run:
        run.stage1()
    sizes = ["--states", "4", "--noises", "3", "--updates", "3", "--env-steps", "50"]
    results = tmp_path / "out" / "critic_targets.json"
    main(
        ["critic_targets", f"run={tmp_path / 'toy'}", *sizes, "--variants", "own,regression", "--results", str(results)]
    )
    main(["critic_targets", f"run={tmp_path / 'toy'}", *sizes, "--variants", "tails", "--results", str(results)])
    found = json.loads(results.read_text())
    assert list(found["variants"]) == [OWN, "tails", "regression"] and found["states"] == 4
    tails = found["variants"]["tails"]
    assert tails["env_steps"] >= 50 and tails["updates"] == 3 and tails["model"]["within_r2"] <= 1
    assert all(-1 <= tails[judge]["pearson"]["value"] <= 1 for judge in ("q", "next_state", "predicted_next_state"))
    assert results.with_suffix(".png").stat().st_size > 5_000
    before = results.read_text()
    with pytest.raises(SystemExit, match=r"another fixed policy or truth .*'noises': 3.*'noises': 2.*--results"):
        more = ["--states", "4", "--noises", "2", "--variants", "own", "--results", str(results)]
        main(["critic_targets", f"run={tmp_path / 'toy'}", *more])
    assert results.read_text() == before


@pytest.mark.parametrize("file", [RESULTS, RESULTS.with_stem("critic_targets_seed1")], ids=lambda file: file.stem)
def test_the_page_has_the_committed_results(file):
    results = json.loads(file.read_text())["variants"]
    assert table(results) in (RESULTS.parents[2] / "docs/why-critics-rank.md").read_text()
