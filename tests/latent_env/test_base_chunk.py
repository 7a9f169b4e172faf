"""The base policy's chunk as an entry, and its bounded correction."""

from __future__ import annotations

import torch
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl import LatentActionEnv, make_macro_env
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.latent_env.base_chunk import BASE_CHUNK_KEY, BaseChunk, ResidualPolicy
from dsrl_torchrl.latent_env.prior_noise import make_prior
from dsrl_torchrl.policies import FlowPolicy


def make_base():
    torch.manual_seed(2)
    base = FlowPolicy(observation_dim=2, action_dim=2, pred_horizon=4)
    base.action_low.copy_(torch.tensor([-0.5, 0.0]))
    base.action_high.copy_(torch.tensor([0.5, 2.0]))
    return base.freeze()


def make_env(scale=0.25, base=None):
    base = make_base() if base is None else base
    macro = make_macro_env(PointReachEnv(num_envs=4, seed=0), act_horizon=2, gamma=0.9)
    env = TransformedEnv(macro, BaseChunk(base, 2), auto_unwrap=False)
    return LatentActionEnv(env, ResidualPolicy(base, 2, scale), action_magnitude=1.0, gamma=0.9)


def test_the_chunk_is_base_plus_scaled_residual_clipped_to_the_range():
    policy = ResidualPolicy(make_base(), 2, 0.5)
    base = torch.tensor([[0.0, 0.9, -0.8, 0.2]])
    residual = torch.tensor([[[1.0, 1.0], [-1.0, -0.4]]])
    chunk = policy(torch.zeros(1, 2), base, residual)
    # In half ranges: 0 + 0.5, 0.9 + 0.5 clipped to 1, -0.8 - 0.5 clipped to -1, 0.2 - 0.2; then to env units.
    torch.testing.assert_close(chunk, torch.tensor([[[0.25, 2.0], [-0.5, 1.0]]]))


def test_no_residual_is_the_base_policy_even_beyond_its_range():
    policy = ResidualPolicy(make_base(), 2, 0.5)
    base = torch.tensor([[1.5, -3.0, 0.3, 1.0]])
    chunk = policy(torch.zeros(1, 2), base, torch.zeros(1, 2, 2))
    torch.testing.assert_close(policy.normalise_action(chunk).flatten(-2), base)


def test_the_entry_is_what_the_base_policy_decodes_from_a_noise_of_its_own():
    base = make_base()
    env = make_env(base=base)
    torch.manual_seed(7)
    td = env.reset()
    torch.manual_seed(7)
    noise = torch.randn(4, 4, 2)
    expected = base.normalise_action(base(td["observation"], noise)[:, :2]).flatten(-2)
    torch.testing.assert_close(td[BASE_CHUNK_KEY], expected)
    following = env.step(td.set("action", torch.zeros(4, 4)))["next"]
    torch.testing.assert_close(base.normalise_action(following["action_chunk"]).flatten(-2), expected)
    assert not torch.equal(following[BASE_CHUNK_KEY], expected)  # drawn anew


def test_the_entry_begins_at_the_base_policys_first_action():
    base = make_base()
    base.first_action = 1
    torch.manual_seed(7)
    td = make_env(base=base).reset()
    torch.manual_seed(7)
    chunk = base(td["observation"], torch.randn(4, 4, 2))[:, 1:3]
    torch.testing.assert_close(td[BASE_CHUNK_KEY], base.normalise_action(chunk).flatten(-2))


def test_it_is_an_env_whose_prior_is_the_base_policy():
    env = make_env()
    check_env_specs(env)
    td = make_prior(env.decoder)(env.reset())
    assert torch.equal(td["action"], torch.zeros(4, 4))


def test_statistics_leave_the_chunk_as_it_is():
    policy = ResidualPolicy(make_base(), 2, 0.25)
    mean, std = policy.observation_statistics(BASE_CHUNK_KEY)
    assert torch.equal(mean, torch.zeros(4)) and torch.equal(std, torch.ones(4))
    assert policy.observation_statistics("observation") is None  # the base policy's: not fitted
    assert policy.content_hash() != ResidualPolicy(make_base(), 2, 0.5).content_hash()


def test_the_base_policys_features_carry_its_chunk():
    """``latent.base_features``: what else is read in place of images."""
    base = make_base()
    macro = make_macro_env(PointReachEnv(num_envs=4, seed=0), act_horizon=2, gamma=0.9)
    env = TransformedEnv(macro, BaseChunk(base, 2), auto_unwrap=False)
    env = LatentActionEnv(env, ResidualPolicy(base, 2, 0.25), action_magnitude=1.0, gamma=0.9, base_features=True)
    td = make_prior(env.decoder)(env.reset())
    assert torch.equal(td["base_features"][..., -4:], td[BASE_CHUNK_KEY])
    executed = env.step(td)["next", "action_chunk"]
    torch.testing.assert_close(base.normalise_action(executed).flatten(-2), td[BASE_CHUNK_KEY])
