"""What every loaded policy promises as a ``BasePolicy``, and that a source's files are all it depends on."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import probe
from dsrl_torchrl.policies.adapters.conditional_unet1d import ConditionalUnet1D, UnetSizes
from dsrl_torchrl.policies.adapters.ddim import DDIM, betas
from dsrl_torchrl.policies.adapters.foreign_diffusion import ForeignDiffusionPolicy, named_entries
from dsrl_torchrl.policies.adapters.history_encoder import Affine, Image, State
from dsrl_torchrl.policies.adapters.resnet import RgbEncoder

from .loaded import SOURCES, load_source, random_entries


@pytest.fixture(params=SOURCES)
def policy(request, tmp_path):
    torch.manual_seed(0)
    return load_source(request.param, tmp_path)


def noise_for(policy, *batch):
    return torch.randn(*batch, policy.noise_horizon, policy.noise_dim)


def test_frozen_deterministic_and_steerable(policy):
    assert policy.frozen
    entries = dict(zip(policy.in_keys, random_entries(policy, 6), strict=True))
    probe(policy, TensorDict(entries, [6]))


@pytest.mark.parametrize("batch", [(), (2, 3), (1,), (0,), (0, 2)])
def test_any_leading_dims(policy, batch):
    entries, noise = random_entries(policy, *batch), noise_for(policy, *batch)
    chunk = policy(*entries, noise)
    assert chunk.shape == (*batch, policy.pred_horizon, policy.action_dim)
    flat = policy(*(e.reshape(-1, *e.shape[len(batch) :]) for e in entries), noise.reshape(-1, *noise.shape[-2:]))
    torch.testing.assert_close(chunk.reshape(flat.shape), flat)


def test_taken_apart_it_is_the_same(policy):
    entries, noise = random_entries(policy, 2, 3), noise_for(policy, 2, 3)
    features = policy.features(*entries)
    assert features.shape == (2, 3, policy.features_dim)
    assert torch.equal(policy.from_features(features, noise), policy(*entries, noise))


def test_double_precision_of_a_simulator_is_taken(policy):
    entries, noise = random_entries(policy, 2), noise_for(policy, 2)
    doubled = [entry.double() if entry.is_floating_point() else entry for entry in entries]
    torch.testing.assert_close(policy(*doubled, noise.double()).float(), policy(*entries, noise))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_the_networks_work_in_less_precision(policy, dtype):
    """Schedule and normalisation in bfloat16 gave NaN, or an action range of another policy."""
    observations = TensorDict(dict(zip(policy.in_keys, random_entries(policy, 4), strict=True)), [4])
    noise, bounds = noise_for(policy, 4), {k: t.clone() for k, t in policy.state_dict().items() if "action_scale" in k}
    chunk, half_range = policy.decode(observations, noise), (policy.action_high - policy.action_low) / 2
    policy.to(dtype)
    assert all(torch.equal(policy.state_dict()[name], bound) for name, bound in bounds.items())
    low = policy.decode(observations, noise)
    assert low.dtype == torch.float32 and low.isfinite().all()
    assert ((low - chunk) / half_range).abs().mean() < 0.1


def test_a_dimension_that_never_moved_has_a_range_all_the_same():
    scale = Affine.from_range(torch.tensor([0.5, -1.0]), torch.tensor([0.5, 1.0]))
    policy = tiny(action_scale=scale)
    assert policy.action_low.tolist() == pytest.approx([0.49, -1]) and policy.action_high.tolist() == pytest.approx(
        [0.51, 1]
    )
    chunk = policy(torch.zeros(3, 3), torch.randn(3, 4, 2))
    assert policy.normalise_action(chunk)[..., 0].abs().max() < 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_no_numbers(value):
    bad = Affine.from_moments(torch.zeros(2), torch.tensor([1.0, value]))
    with pytest.raises(UserError, match="normalisation of the action holds NaN, infinity"):
        tiny(action_scale=bad)


def test_a_state_of_no_width():
    with pytest.raises(UserError, match=r"normalisation of observation holds .* a width of zero"):
        tiny(state_scale=Affine.from_moments(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])))


def test_the_hash_knows_how_an_image_is_cropped():
    hashes = set()
    for crop in ((28, 28), (30, 30), (30, 30)):
        torch.manual_seed(0)
        encoder = RgbEncoder((3, 32, 32), "resnet18", True, 2, None, crop)
        camera = Image(Affine.identity(3, 1, 1), encoder, 4, (32, 32))
        hashes.add(tiny(camera=camera).content_hash())
    assert len(hashes) == 2


def tiny(action_scale=None, state_scale=None, **more):
    features = {"observation": State(state_scale or Affine.identity(3))} | more
    torch.manual_seed(0)
    size = sum(feature.features for feature in features.values())
    network = ConditionalUnet1D(UnetSizes(2, size, (8, 8), 3, 4, film_scale=True, film_layers=1, norm=False))
    return ForeignDiffusionPolicy(
        features,
        network,
        DDIM(betas("squaredcos_cap_v2", 10), 10),
        action_scale or Affine.identity(2),
        pred_horizon=4,
        obs_horizon=1,
        first_action=0,
    ).freeze()


def test_the_gradient_reaches_the_noise(policy):
    noise = noise_for(policy, 2).requires_grad_(True)
    (gradient,) = torch.autograd.grad(policy(*random_entries(policy, 2), noise).sum(), noise)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_the_newest_observation_is_the_last_of_the_history(policy):
    """And each step matters: no history is dropped."""
    entries, noise = random_entries(policy, 1), noise_for(policy, 1)
    chunk = policy(*entries, noise)
    for step in range(policy.obs_horizon):
        size = policy.encoder.features[0].size
        changed = entries[0].clone()
        changed[:, step * size : (step + 1) * size] = changed[:, step * size : (step + 1) * size].flip(1)
        assert not torch.equal(policy(changed, *entries[1:], noise), chunk)


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    torch.manual_seed(3)
    for source in SOURCES:
        load_source(source, tmp_path)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize("source", SOURCES)
def test_the_hash_knows_weights_and_sampler(source, tmp_path):
    hashes = {load_source(source, tmp_path, sampler_steps=n).content_hash() for n in (5, 10, 10)}
    assert len(hashes) == 2


def test_wrong_shapes_are_one_line(policy):
    entries, noise = random_entries(policy, 2), noise_for(policy, 2)
    with pytest.raises(UserError, match="expects noise"):
        policy(*entries, noise[..., :-1])
    with pytest.raises(UserError, match="steps of history"):
        policy(entries[0][:, 1:], *entries[1:], noise)
    with pytest.raises(UserError, match="beside these observations"):
        policy(*(entry[:1] for entry in entries), noise)


def test_images_are_bytes(tmp_path):
    policy = load_source("maniskill_rgb", tmp_path)
    image, state = random_entries(policy, 1)
    with pytest.raises(UserError, match=r"should be uint8, got torch\.float32"):
        policy(image / 255, state, noise_for(policy, 1))


def test_statistics_are_those_of_the_training_data_for_each_step(tmp_path):
    policy = load_source("stanford", tmp_path)
    mean, std = policy.observation_statistics("observation")
    assert mean.shape == std.shape == (10,)
    assert torch.equal(mean[:5], mean[5:])
    assert 0.5 < float(mean.mean()) < 1.5  # of 3 * N(0, 1) + 1
    assert policy.observation_statistics("other") is None
    assert load_source("dppo", tmp_path).observation_statistics("observation") is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "none is given for a"),
        ({"a": "x"}, "none is given for b"),
        ({"a": "x", "b": "y", "c": "z"}, "c is none of them"),
        ({"a": "x", "b": "x"}, "x stands twice"),
    ],
)
def test_each_input_has_an_entry_of_its_own(entries, message):
    with pytest.raises(UserError, match=message):
        named_entries(entries, ["a", "b"], "there")


def test_a_nested_entry():
    assert named_entries({"a": ["robot", "state"]}, ["a"], "there") == {"a": ("robot", "state")}
