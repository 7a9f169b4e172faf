"""The base policy's own features as what everything else reads."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import check_env_specs

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLAWMLE, DSRLSAC
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env import base_features
from dsrl_torchrl.latent_env.base_features import BASE_FEATURES_KEY, add_base_features
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.policies import BasePolicy, CentredPolicy, FlowPolicy, IdentityPolicy
from dsrl_torchrl.steerability.prior_rollouts import with_layout


class Counting(FlowPolicy):
    """Counts the images that it encodes."""

    encoded = 0

    def features(self, observation, *images):
        self.encoded += observation.shape[:-1].numel()
        return super().features(observation, *images)


def make(*, base_features: bool, num_envs: int = 3, centre: bool = False, first_action: int = 0, **options):
    torch.manual_seed(0)
    policy = Counting(4, 2, 4, obs_horizon=2, image_keys=["pixels"], image_shapes=[(6, 16, 16)]).freeze()
    policy.first_action = first_action
    env = PointReachEnv(num_envs=num_envs, image_size=16, seed=0)
    steered = CentredPolicy(policy, torch.randn(4, 2)) if centre else policy
    return LatentActionEnv(env, steered, act_horizon=2, base_features=base_features, **options), policy


@pytest.mark.parametrize("first_action", [0, 1])
@pytest.mark.parametrize("centre", [False, True])
def test_the_episodes_are_those_of_the_whole_policy(centre, first_action):
    options = {"centre": centre, "first_action": first_action}
    (plain, _), (split, policy) = (make(base_features=features, **options) for features in (False, True))
    check_env_specs(split, seed=0)
    torch.manual_seed(1)
    noises = torch.randn(5, 3, plain.latent_dim)
    now, same = plain.reset(seed=[1, 2, 3]), split.reset(seed=[1, 2, 3])
    for noise in noises:
        now, same = (e.step(td.set("action", noise))["next"] for e, td in ((plain, now), (split, same)))
        for key in ("observation", "pixels", "reward", "done", "action_chunk"):
            torch.testing.assert_close(same[key], now[key])
        torch.testing.assert_close(same[BASE_FEATURES_KEY], policy.encode(same))


def test_another_layout_reads_the_same_features():
    env, policy = make(base_features=True)
    repeated = with_layout(env, "repeat")
    now = repeated.reset(seed=[1, 2, 3])
    torch.testing.assert_close(now[BASE_FEATURES_KEY], policy.encode(now))
    assert repeated.rollout(2).shape[0] == 3


def test_an_image_is_encoded_once_per_macro_step():
    env, policy = make(base_features=True)
    policy.encoded = 0
    data = env.rollout(4, break_when_any_done=False)
    assert policy.encoded == 3 * 5  # the reset, and four steps
    agent = DSRLAWMLE(env, DSRLAWMLE.Config(batch_size=8), NetworkConfig(num_cells=(8,)))
    assert agent.in_keys == [BASE_FEATURES_KEY]
    transitions = to_macro_transitions(data, agent.in_keys)
    assert "pixels" not in transitions.keys()
    stored = agent.store(transitions, online=True)
    batches = agent.prepare(torch.stack([stored[:8], stored[4:]]))
    for batch in batches.unbind(0):
        agent.update(batch, agent.parts(0))
    assert policy.encoded == 3 * 5


def test_demonstrations_get_the_same_features(monkeypatch):
    monkeypatch.setattr(base_features, "ROWS", 4)
    env, policy = make(base_features=True)
    data = to_macro_transitions(env.rollout(3, break_when_any_done=False), ["observation", "pixels", BASE_FEATURES_KEY])
    again = add_base_features(data.exclude(BASE_FEATURES_KEY, ("next", BASE_FEATURES_KEY)), policy)
    torch.testing.assert_close(again, data)


def test_a_policy_is_another_one_for_what_was_learned_from_its_features():
    (plain, _), (split, _) = make(base_features=False), make(base_features=True)
    hashes = [env.decoder.base_policy.content_hash() for env in (plain, split)]
    assert hashes[0] != hashes[1]
    sac = DSRLSAC(split, networks=NetworkConfig(in_keys=[BASE_FEATURES_KEY, "pixels"], num_cells=(8,)))
    assert sac.encoder.out_features == 5 * (4 + 64) + 64  # Fourier features of the one, a CNN of the other


def test_a_policy_that_is_one_piece_is_refused():
    class Whole(BasePolicy):
        def forward(self, observation, noise):
            return noise

    with pytest.raises(UserError, match=r"Whole has no features to read .*base_features=false"):
        LatentActionEnv(PointReachEnv(), Whole(2, 4).freeze(), base_features=True)


def test_raw_chunks_stay_what_they_are_beside_a_policy_of_less_precision():
    policy = Counting(4, 2, 4, obs_horizon=2, image_keys=["pixels"], image_shapes=[(6, 16, 16)]).to(torch.bfloat16)
    env = PointReachEnv(num_envs=3, image_size=16, seed=0)
    steered = IdentityPolicy(policy.freeze(), 2)
    env = LatentActionEnv(env, steered, act_horizon=2, action_magnitude=1.0, base_features=True)
    td = env.reset().set("action", torch.rand(3, 4) - 0.5)
    torch.testing.assert_close(env.step(td)["next", "action_chunk"].flatten(-2), td["action"] / 0.99)
