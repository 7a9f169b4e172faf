"""The chunk in the noise's place: exact both ways, in the base policy's range."""

from __future__ import annotations

import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.latent_env.prior_noise import make_prior
from dsrl_torchrl.policies import FlowPolicy, IdentityPolicy
from dsrl_torchrl.policies.identity import EDGE


def make():
    base = FlowPolicy(observation_dim=2, action_dim=2, pred_horizon=4)
    base.action_low.copy_(torch.tensor([-0.5, 0.0]))
    base.action_high.copy_(torch.tensor([0.5, 2.0]))
    return IdentityPolicy(base.freeze(), 3)


def test_noise_is_the_scaled_chunk():
    policy = make()
    noise = EDGE * torch.tensor([[[-1.0, -1.0], [0.0, 0.0], [1.0, 0.5]]])
    chunk = policy(torch.zeros(1, 2), noise)
    torch.testing.assert_close(chunk, torch.tensor([[[-0.5, 0.0], [0.0, 1.0], [0.5, 1.5]]]))
    torch.testing.assert_close(policy.encode_chunk(chunk), noise.flatten(-2))


def test_every_chunk_in_the_range_is_encoded_exactly_and_inside_of_the_bound():
    policy = make()
    chunk = policy.denormalise_action(2 * torch.rand(50, 3, 2) - 1)
    chunk[0], chunk[1] = policy.action_low, policy.action_high
    noise = policy.encode_chunk(chunk)
    assert noise.abs().max() <= EDGE
    torch.testing.assert_close(policy(torch.zeros(50, 2), noise.unflatten(-1, (3, 2))), chunk)


def test_beyond_the_range_is_its_end():
    policy = make()
    chunk = policy(torch.zeros(1, 2), torch.full((1, 3, 2), 1.5))
    torch.testing.assert_close(chunk, policy.action_high.expand(1, 3, 2))
    assert torch.equal(policy.encode_chunk(chunk + 1.0), torch.full((1, 6), EDGE))


def test_the_latent_env_executes_the_chunk_itself():
    policy = make()
    env = LatentActionEnv(PointReachEnv(num_envs=4, seed=0), policy, action_magnitude=1.0)
    assert env.latent_dim == 6
    td = env.reset()
    td["action"] = EDGE * (2 * torch.rand(4, 6) - 1)
    executed = env.step(td)["next", "action_chunk"]
    torch.testing.assert_close(policy.encode_chunk(executed), td["action"])


def test_its_prior_begins_at_the_base_policys_first_action():
    policy = make()
    policy.base.first_action = 1
    env = LatentActionEnv(PointReachEnv(num_envs=5, seed=0), policy, gamma=0.9, action_magnitude=1.0)
    td = env.reset()
    torch.manual_seed(7)
    executed = env.step(make_prior(env.decoder)(td.clone()))["next", "action_chunk"]
    torch.manual_seed(7)
    chunk = policy.base(td["observation"], torch.randn(5, 4, 2))[:, 1:]
    torch.testing.assert_close(executed, chunk.clamp(policy.action_low, policy.action_high))


def test_another_base_policy_is_another_identity():
    policy, other = make(), make()
    other.base.action_high.add_(1.0)
    assert policy.content_hash() != policy.base.content_hash()
    assert policy.content_hash() != other.content_hash()


def test_its_features_are_the_base_policys():
    policy = make()
    env = LatentActionEnv(PointReachEnv(num_envs=4, seed=0), policy, action_magnitude=1.0, base_features=True)
    td = make_prior(env.decoder)(env.reset())
    torch.testing.assert_close(td["base_features"], policy.base.encode(td))
    executed = env.step(td)["next", "action_chunk"]
    torch.testing.assert_close(policy.encode_chunk(executed), td["action"])
