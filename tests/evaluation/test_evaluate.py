from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs.utils import ExplorationType, exploration_type

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.evaluate import evaluate
from dsrl_torchrl.latent_env.macro_step import make_macro_env
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.collect.test_episodes import SeededEnv, make_seeded, zero_actions
from tests.collect.test_rollouts import CameraPolicy
from tests.scripted_env import ScriptedCameraEnv, ScriptedEnv


@pytest.mark.parametrize("batched", [True, False])
def test_both_success_measures_returns_and_lengths(batched):
    """Lengths 1, 2, 5, 7 with chunks of 3: success is seen at step 2 and only the second episode ends on it."""
    result = evaluate(make_seeded(batched), zero_actions((3, 1)), [1, 2, 5, 7])
    assert result.success_once.value == 0.75
    assert result.success_at_end.value == 0.25
    assert result.return_mean == pytest.approx((1 + 3 + 15 + 28) / 4)
    # Up to the end of the macro step with the first success: 1 (none), 2, 3, 3.
    assert result.length_mean == pytest.approx((1 + 2 + 3 + 3) / 4)


def test_a_success_that_does_not_last_is_none_at_the_end():
    """Seen at step 2, where a macro step ends; the second episode goes on for three more."""
    env = make_macro_env(SeededEnv([9, 9], [False, False]), act_horizon=2, gamma=1.0)
    result = evaluate(env, zero_actions((2, 1)), [2, 5])
    assert (result.success_once.value, result.success_at_end.value) == (1.0, 0.5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_policy_is_asked_for_a_sample_or_for_its_mode(deterministic):
    asked = set()

    def act(observation):
        asked.add(exploration_type())
        return torch.zeros(*observation.shape[:-1], 3, 1)

    policy = TensorDictModule(act, ["observation"], ["action"])
    evaluate(make_seeded(True), policy, [2, 5, 7], deterministic=deterministic)
    assert asked == {ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM}


def test_nested_entries_and_images():
    env = make_macro_env(ScriptedCameraEnv([2, 7], [False, False]), act_horizon=3, gamma=1.0)
    result = evaluate(env, zero_actions((3, 1), ("agent", "state")), [0, 1])
    assert (result.success_once.value, result.success_at_end.value) == (1.0, 0.5)
    assert result.return_mean == pytest.approx((3 + 28) / 2)


def test_nan_after_an_episodes_end_is_not_in_its_return():
    class Diverging(ScriptedEnv):
        def _step(self, tensordict):
            out = super()._step(tensordict)
            return out.set("reward", torch.where(self.t > self.lengths, torch.nan, out["reward"]))

    env = make_macro_env(Diverging([2, 7], [False, False]), act_horizon=3, gamma=1.0)
    assert evaluate(env, zero_actions((3, 1)), [0, 1]).return_mean == pytest.approx((3 + 28) / 2)


def test_seeds_that_do_not_fill_the_batch():
    assert evaluate(make_seeded(True), zero_actions((3, 1)), [2, 2, 5]).success_once.n == 3


def test_what_cannot_be_evaluated_is_refused():
    env = make_seeded(True)
    with pytest.raises(UserError, match="at least one reset seed"):
        evaluate(env, zero_actions((3, 1)), [])
    env = SeededEnv([9, 9], [False, False])
    del env.observation_spec["success"]
    with pytest.raises(UserError, match="needs an env with a `success` entry"):
        evaluate(env, zero_actions((3, 1)), [1])


class RecordedNoise(PriorNoise):
    def __init__(self):
        super().__init__(4)
        self.drawn = []

    def forward(self, tensordict):
        tensordict = super().forward(tensordict)
        self.drawn.append(tensordict["action"])
        return tensordict


def test_evaluation_leaves_the_callers_randomness_alone_and_repeats():
    env = LatentActionEnv(ScriptedCameraEnv([5, 7], [False, False]), CameraPolicy(), act_horizon=3)
    state = torch.get_rng_state()
    policies = [RecordedNoise() for _ in range(3)]
    first, again, _ = (evaluate(env, policy, [0, 1], noise_seed=i // 2) for i, policy in enumerate(policies))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    drawn, drawn_again, other = (torch.stack(policy.drawn) for policy in policies)
    assert torch.equal(drawn, drawn_again)
    assert not torch.equal(drawn, other)


def test_no_two_episodes_have_the_same_noise():
    """Nor those that the same sub-env plays one after the other."""
    env = LatentActionEnv(ScriptedCameraEnv([5, 7], [False, False]), CameraPolicy(), act_horizon=3)
    policy = RecordedNoise()
    evaluate(env, policy, [0, 1, 2, 3])
    drawn = torch.cat(policy.drawn)
    assert len(drawn.unique(dim=0)) == len(drawn) == 2 * 2 * 3


def test_on_a_machine_with_several_cards_nobody_is_warned(monkeypatch, recwarn):
    """``fork_rng`` does, unless it is told which."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    evaluate(make_seeded(True), zero_actions((3, 1)), [1])
    assert not [warning for warning in recwarn if "fork_rng" in str(warning.message)]
