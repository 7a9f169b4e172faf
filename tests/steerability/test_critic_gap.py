from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from dsrl_torchrl.steerability.critic_gap import critic_gap, sample_latent_policy
from dsrl_torchrl.steerability.noise_response import prior_noises
from tests.steerability.bases import decoder_of, diagonal

DECODER = decoder_of(diagonal(*[0.1 * i for i in range(1, 9)]))
OBSERVATIONS = TensorDict({"observation": torch.randn(50, 2)}, [50])
NOISES = prior_noises(DECODER, 6, 50, seed=0)


def state_sum(observations):
    return observations["observation"].sum(-1)


def q_action(observations, chunk):
    """Three members around ``Σ s + Σ a``."""
    value = state_sum(observations) + chunk.sum((-1, -2))
    return torch.stack([value - 1, value, value + 1])


def exact(observations, noise):
    return q_action(observations, DECODER.decode(observations, noise))


def test_exact_critics_have_no_gap():
    gap = critic_gap(DECODER, q_action, exact, OBSERVATIONS, NOISES)
    assert (gap.mean, gap.std) == pytest.approx((0, 0), abs=1e-6)
    assert gap.correlation == pytest.approx(1)
    values = (state_sum(OBSERVATIONS) + DECODER.decode(OBSERVATIONS.expand(6, 50), NOISES).sum((-1, -2))).flatten()
    assert gap.q_action_std == pytest.approx(values.std().item(), rel=1e-4)


def test_over_estimation_is_a_positive_mean_and_leaves_the_ranking():
    gap = critic_gap(DECODER, q_action, lambda s, w: exact(s, w)[:2] + 3.5, OBSERVATIONS, NOISES)
    assert gap.mean == pytest.approx(3.0, abs=1e-5)  # its two members average 0.5 below the three
    assert gap.std == pytest.approx(0, abs=1e-5)
    assert gap.correlation == pytest.approx(1)


def test_a_critic_that_knows_states_but_not_noises():
    """Between states the two agree perfectly; that is not what the actor uses."""
    by_state = critic_gap(DECODER, q_action, lambda s, w: 100 * state_sum(s)[None], OBSERVATIONS, NOISES)
    assert by_state.correlation is None
    inverted = critic_gap(DECODER, q_action, lambda s, w: 200 * state_sum(s) - exact(s, w), OBSERVATIONS, NOISES)
    assert inverted.correlation == pytest.approx(-1, abs=1e-4)


def test_a_latent_policys_noise():
    noises = sample_latent_policy(PriorNoise(8), OBSERVATIONS, 4, seed=1)
    assert noises.shape == (4, 50, 8)
    assert (noises[0] - noises[1]).abs().max() > 0.1
    torch.testing.assert_close(noises, sample_latent_policy(PriorNoise(8), OBSERVATIONS, 4, seed=1))
    mode = TensorDictModule(lambda o: o.sum(-1, keepdim=True).expand(-1, 8), ["observation"], ["action"])
    repeated = sample_latent_policy(mode, OBSERVATIONS, 4)
    assert critic_gap(DECODER, q_action, exact, OBSERVATIONS, repeated).correlation is None


def test_a_latent_policy_reads_its_own_entries():
    observations = TensorDict({"observation": torch.randn(50, 2), "agent": {"state": torch.ones(50, 1)}}, [50])
    policy = TensorDictModule(lambda o: o.expand(-1, 8), [("agent", "state")], ["action"])
    assert (sample_latent_policy(policy, observations, 2) == 1).all()
    assert "action" not in observations.keys()


def test_an_algorithm_without_one_of_the_critics_has_no_gap():
    assert critic_gap(DECODER, lambda s, a: None, exact, OBSERVATIONS, NOISES) is None
