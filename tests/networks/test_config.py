"""Networks made for a latent env: which entries they read, by which encoder, in whose units."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Bounded, Unbounded

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.config import (
    NetworkConfig,
    make_actor,
    make_critics,
    make_encoder,
    network_keys,
    observation_keys,
)
from dsrl_torchrl.networks.encoders import PixelEncoder, StateEncoder
from dsrl_torchrl.objectives.sac import SACOptions, make_sac_loss
from tests.steerability.bases import CameraPolicy, CoinCameraEnv, CoinEnv, diagonal

STATE = ("agent", "state")


def coin_env(policy=None):
    policy = diagonal(0.2, 0.2, pred_horizon=2, action_dim=1) if policy is None else policy
    return LatentActionEnv(CoinEnv(3), policy, act_horizon=2, action_magnitude=2.0)


def camera_env():
    return LatentActionEnv(CoinCameraEnv(3), CameraPolicy(), act_horizon=2, action_magnitude=2.0)


class Knowing(type(diagonal(1.0, pred_horizon=1, action_dim=1))):
    """A base policy that knows the statistics of its observations."""

    def observation_statistics(self, key):
        return torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])


@pytest.mark.parametrize(
    ("in_keys", "read", "kept"),
    [
        (None, ["pixels", STATE], ["pixels", STATE]),
        ([["agent", "state"]], [STATE], ["pixels", STATE]),  # as YAML has a nested key
        (["pixels", "success"], ["pixels", "success"], ["pixels", STATE, "success"]),
    ],
)
def test_networks_read_what_the_base_policy_reads_or_what_they_are_told(in_keys, read, kept):
    policy, config = CameraPolicy(), NetworkConfig(in_keys=in_keys)
    assert network_keys(policy, config) == read
    assert observation_keys(policy, config) == kept  # the base policy decodes from replay, too


def test_each_kind_of_entry_gets_its_encoder():
    env = camera_env()
    encoder = make_encoder(
        env, NetworkConfig(encoders={"state": StateEncoder, "pixels": partial(PixelEncoder, features=6)})
    )
    assert encoder.in_keys == ["pixels", STATE]
    assert [type(e) for e in encoder.encoders] == [PixelEncoder, StateEncoder]
    td = encoder(env.reset())
    assert td["features"].shape == (3, encoder.out_features) and td["features"].dtype == torch.float32
    assert encoder.out_features == 6 + 2 * 5 and encoder.trainable
    state_only = make_encoder(env, NetworkConfig(in_keys=[["agent", "state"]]))
    assert state_only.out_features == 10 and not state_only.trainable


def test_a_factory_of_ones_own_replaces_an_encoder():
    class Mean(nn.Module):
        out_features = 1

        def __init__(self, shape):
            super().__init__()

        def forward(self, image):
            return image.float().mean((-3, -2, -1)).unsqueeze(-1)

    env = camera_env()
    encoder = make_encoder(env, NetworkConfig(in_keys=["pixels"], encoders={"state": StateEncoder, "pixels": Mean}))
    td = env.reset()
    torch.testing.assert_close(encoder(td)["features"].squeeze(-1), td["pixels"].float().mean((-3, -2, -1)))


def statistics(encoder):
    return torch.stack([encoder.encoders[0].mean, encoder.encoders[0].std])


def test_states_are_standardised_by_the_base_policy_then_by_the_data():
    data = TensorDict({"observation": torch.tensor([[0.0, 1.0], [4.0, 1.0]])}, [2])
    known = coin_env(Knowing(lambda noise: noise, pred_horizon=2, action_dim=1))
    config = NetworkConfig()
    torch.testing.assert_close(statistics(make_encoder(known, config, data)), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    plain = torch.tensor([[2.0, 1.0], [2.0, 1.0]])  # what never moves keeps its scale
    torch.testing.assert_close(statistics(make_encoder(coin_env(), config, data)), plain)
    torch.testing.assert_close(statistics(make_encoder(coin_env(), config)), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))


def test_an_entry_that_the_env_lacks_is_named():
    with pytest.raises(UserError, match=r"networks\.in_keys names 'image', but the env gives .*observation"):
        make_encoder(coin_env(), NetworkConfig(in_keys=["image"]))


def test_actor_and_critics_have_the_latent_envs_sizes():
    policy = diagonal(1.0, 1.0, 1.0, 1.0, pred_horizon=2, action_dim=2)
    policy.action_low.copy_(torch.tensor([-1.0, -4.0]))
    policy.action_high.copy_(torch.tensor([1.0, 2.0]))

    class Env(CoinEnv):
        def __init__(self):
            super().__init__(3)
            self.action_spec = self.action_spec.unsqueeze(-1).expand(3, 1, 2).squeeze(1).clone()

    env = LatentActionEnv(Env(), policy, act_horizon=1, action_magnitude=2.0)
    config = NetworkConfig(num_cells=(8,), chunk_gain=4.0)
    actor, critics = make_actor(env, config, 5), make_critics(env, config, 5)
    td = TensorDict({"features": torch.randn(3, 5)}, [3])
    assert actor(td)["action"].shape == (3, 4)
    assert td["action"].abs().max() <= 2.0
    assert critics["q_noise"](td)["state_action_value"].shape == (3, 1)
    assert critics["q_action"](td.set("chunk", torch.randn(3, 1, 2)))["state_action_value"].shape == (3, 1)
    scale = critics["q_action"].module
    torch.testing.assert_close(scale.centre, torch.tensor([0.0, -1.0]))
    torch.testing.assert_close(scale.unit, torch.tensor([0.25, 0.75]))  # ±gain at the ends of the range


def test_values_and_std_begin_as_asked():
    """In an ensemble as a TorchRL loss draws it, too: RLinf's values begin near 0."""
    torch.manual_seed(0)
    env = coin_env()
    config = NetworkConfig(critic_head_std=0.01, log_std_range=(-20, 2), initial_std=1.0, actor_layer_norm=True)
    sizes = {"latent_dim": 2, "action_magnitude": 2.0, "gamma": 0.9, "num_critics": 10}
    actor = make_actor(env, config, 5)
    loss = make_sac_loss(actor, make_critics(env, config, 5)["q_noise"], SACOptions(), **sizes)
    head = loss.qvalue_network_params[
        "module", "mlp", str(max(int(k) for k in loss.qvalue_network.module.mlp._modules))
    ]
    assert head["weight"].shape == (10, 1, 128) and not head["bias"].any()
    assert abs(head["weight"].std() - 0.01) < 0.001
    features = TensorDict({"features": 5 * torch.randn(100, 5)}, [100])
    assert loss.values(features, 2 * torch.randn(100, 2).tanh()).abs().max() < 0.5
    torch.testing.assert_close(actor(features)["scale"], torch.ones(100, 2), atol=0.1, rtol=0)
    assert sum(isinstance(layer, nn.LayerNorm) for layer in actor.modules()) == 3


def env_with(shape, dtype):
    """Beside what the policy reads, an entry ``seen``."""

    class More(CoinEnv):
        def _observation_specs(self, num_envs):
            more = {"seen": Unbounded((num_envs, *shape), dtype=dtype)}
            return {**super()._observation_specs(num_envs), **more}

        def _observe(self):
            return {**super()._observe(), "seen": torch.zeros(3, *shape, dtype=dtype)}

    return LatentActionEnv(More(3), diagonal(0.2, 0.2, pred_horizon=2, action_dim=1), act_horizon=2)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((64, 64, 3), torch.uint8, r"'seen' is \[64, 64, 3\]: .*PermuteTransform\(\(-1, -3, -2\), in_keys=\['seen'\]"),
        ((64, 48, 1), torch.uint8, r"'seen' is \[64, 48, 1\]"),
        ((3, 64, 64), torch.float32, r"'seen' is \[3, 64, 64\] of floats: .*before ToTensorImage"),
        ((64, 64, 3), torch.float32, r"'seen' is \[64, 64, 3\] of floats"),
    ],
)
def test_an_image_in_another_layout_is_refused(shape, dtype, message):
    with pytest.raises(UserError, match=f"images should be uint8 .C, H, W., but {message}"):
        make_encoder(env_with(shape, dtype), NetworkConfig(in_keys=["seen"]))


@pytest.mark.parametrize(
    ("shape", "dtype", "kind"),
    [
        ((3, 64, 64), torch.uint8, PixelEncoder),
        ((2, 64, 64), torch.uint8, PixelEncoder),  # two grey frames
        ((2, 4, 4), torch.uint8, PixelEncoder),
        ((1, 32, 32), torch.float32, StateEncoder),  # a depth map
        ((3, 4, 5), torch.float32, StateEncoder),  # three fingers' tactile maps
        ((64, 3), torch.float32, StateEncoder),  # points
    ],
)
def test_what_is_no_image_in_another_layout_is_encoded(shape, dtype, kind):
    encoder = make_encoder(env_with(shape, dtype), NetworkConfig(in_keys=["seen"]))
    assert type(encoder.encoders[0]) is kind


def test_a_state_encoder_of_ones_own_may_read_pictures_of_floats():
    class Mean(nn.Module):
        out_features = 1

        def __init__(self, shape, statistics):
            super().__init__()

    config = NetworkConfig(in_keys=["seen"], encoders={"state": Mean, "pixels": PixelEncoder})
    assert make_encoder(env_with((3, 64, 64), torch.float32), config).out_features == 1


def test_jitter_needs_colours():
    class Grey(CoinCameraEnv):
        def _observation_specs(self, num_envs):
            specs = super()._observation_specs(num_envs)
            return {**specs, "pixels": Bounded(0, 255, shape=(num_envs, 1, 8, 8), dtype=torch.uint8)}

        def _observe(self):
            seen = super()._observe()
            return {**seen, "pixels": seen["pixels"][:, :1]}

    class Blind(CameraPolicy):
        def forward(self, pixels, state, noise):
            return self.gain * noise[..., :4, :1]

    env = LatentActionEnv(Grey(3), Blind(), act_horizon=2)
    with pytest.raises(UserError, match=r"networks\.color_jitter is for RGB images, but 'pixels' has 1 channels"):
        make_encoder(env, NetworkConfig(color_jitter=(0.2, 0.1, 0.1, 0.03)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_critics": 0}, "num_critics should be greater than or equal to 1, got 0"),
        ({"num_critics": 2.5}, "num_critics"),
        ({"num_cells": ()}, "num_cells"),
        ({"activation": "gelu"}, "activation"),
        ({"layer_norm": "yes"}, "layer_norm"),
        ({"chunk_gain": 0.0}, "chunk_gain"),
        ({"initial_std": float("nan")}, "initial_std"),
        ({"critic_head_std": 0.0}, "critic_head_std should be greater than 0"),
        ({"log_std_range": (2.0, -20.0)}, "log_std_range should be the lower bound and a higher one"),
        ({"log_std_range": (2.0,)}, "log_std_range"),
        ({"actor_encoder": "mine"}, "actor_encoder should be 'shared' or 'own'"),
        ({"random_shift": -1}, "random_shift should be greater than or equal to 0"),
        ({"color_jitter": (0.2, 0.1, 0.1)}, "color_jitter"),
        ({"color_jitter": (0.2, 0.1, 0.1, 0.6)}, "color_jitter"),
        ({"encoders": {"pixels": 3}}, "encoders.pixels"),
        ({"widths": (8,)}, "unknown option widths"),
    ],
)
def test_bad_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        NetworkConfig(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0] * 3, [1.0] * 3, "should give 2 numbers, as the env's entry has, its mean has 3"),
        ([0.0, float("nan")], [1.0, 1.0], "its mean should be finite"),
        ([0.0, 0.0], [1.0, 0.0], "its std should be finite and positive"),
    ],
)
def test_statistics_that_cannot_be_are_the_policys(mean, std, message):
    """They would surface as a shape error of ours, or as a loss that is NaN."""
    policy = coin_env().decoder.base_policy
    policy.observation_statistics = lambda key: (torch.tensor(mean), torch.tensor(std))
    with pytest.raises(UserError, match=message):
        make_encoder(coin_env(policy), NetworkConfig())
