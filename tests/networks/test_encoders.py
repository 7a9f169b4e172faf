"""What latent policy and critics see: standardised states with waves, encoded pixels, side by side."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.encoders import LinearStateEncoder, ObservationEncoder, PixelEncoder, StateEncoder

STATE = ("agent", "state")


def test_standardised_entries_and_waves():
    encoder = StateEncoder((2,), (torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5])), fourier_bands=(1.0,))
    out = encoder(torch.tensor([2.0, -0.25]))
    z = torch.tensor([0.5, -0.5])
    torch.testing.assert_close(out, torch.cat([z, torch.sin(math.pi * z), torch.cos(math.pi * z)]))
    assert out.numel() == encoder.out_features


def test_no_bands_and_the_clamp():
    encoder = StateEncoder((1,), (torch.zeros(1), torch.ones(1)), fourier_bands=())
    assert encoder(torch.tensor([[1e6], [-1e6]])).tolist() == [[10.0], [-10.0]]
    assert encoder.out_features == 1
    as_it_is = StateEncoder((1,), fourier_bands=())  # without statistics
    assert as_it_is(torch.tensor([[0.75], [1e6]])).tolist() == [[0.75], [1e6]]


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize(("shape", "size"), [((), 1), ((3,), 3), ((2, 3), 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8])
def test_a_state_of_any_shape_and_dtype(batch, shape, size, dtype):
    mean, std = torch.ones(shape), torch.full(shape, 2.0)
    encoder = StateEncoder(shape, (mean, std))
    x = torch.randint(0, 9, (*batch, *shape)).to(dtype)
    out = encoder(x)
    assert out.shape == (*batch, 5 * size) and encoder.out_features == 5 * size
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[..., :size], (x.float().reshape(*batch, size) - 1) / 2)


def test_statistics_are_the_encoders_own_and_never_trained():
    mean, std = torch.zeros(2, dtype=torch.float64, requires_grad=True), torch.ones(2)
    encoder = StateEncoder((2,), (mean, std))
    std.fill_(7.0)
    assert encoder.std.tolist() == [1, 1] and encoder.mean.dtype == torch.float32
    assert not list(encoder.parameters()) and not encoder.mean.requires_grad
    assert encoder.state_dict().keys() == {"mean", "std", "limit"}


@pytest.mark.parametrize("shape", [(3, 8, 8), (6, 7, 9), (1, 64, 64), (2, 1, 1)])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_pixels_of_any_size_and_batch(shape, batch):
    encoder = PixelEncoder(shape, features=10)
    image = torch.randint(256, (*batch, *shape), dtype=torch.uint8)
    out = encoder(image)
    assert out.shape == (*batch, 10) and out.dtype == torch.float32 and encoder.out_features == 10
    assert out.abs().max() <= 1
    flat = encoder(image.reshape(-1, *shape))
    torch.testing.assert_close(out.reshape(-1, 10), flat)


def test_pixels_come_scaled_to_plus_minus_one():
    encoder = PixelEncoder((1, 4, 4))
    seen = []
    encoder.network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    encoder(torch.tensor([0, 255] * 8, dtype=torch.uint8).reshape(1, 4, 4))
    assert seen[0].flatten().tolist() == [-1, 1] * 8


def test_every_frame_of_a_history_counts_and_every_weight_is_trained():
    torch.manual_seed(0)
    encoder = PixelEncoder((4, 8, 8), strides=(2, 1, 1, 1))
    image = torch.randint(256, (5, 4, 8, 8), dtype=torch.uint8)
    before = encoder(image)
    for channel in range(4):
        changed = image.clone()
        changed[:, channel] = 255 - changed[:, channel]
        assert (encoder(changed) - before).abs().amax(1).min() > 1e-4
    before.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())
    # RLinf's: four convolutions of 32 channels, one linear layer, LayerNorm.
    convolutions = 4 * 32 * 9 + 32 + 3 * (32 * 32 * 9 + 32)
    assert sum(p.numel() for p in encoder.parameters()) == convolutions + 32 * 4 * 4 * 64 + 64 + 2 * 64


@pytest.mark.parametrize(
    ("options", "side", "features"),
    [
        ({"strides": (2, 1, 1, 1)}, 32, 64),  # RLinf's
        ({"strides": (2, 1, 1, 1), "padding": 0, "features": 50}, 25, 50),  # dsrl_pi0's
        ({}, 8, 64),
    ],
)
def test_the_sizes_of_the_public_encoders(options, side, features):
    convolutions = 3 * 32 * 9 + 32 + 3 * (32 * 32 * 9 + 32)
    linear = 32 * side**2 * features + 3 * features
    assert sum(p.numel() for p in PixelEncoder((3, 64, 64), **options).parameters()) == convolutions + linear


def test_pixel_encoders_begin_orthogonal_without_biases():
    torch.manual_seed(0)
    network = PixelEncoder((3, 16, 16)).network
    weight = network[2].weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(32), atol=1e-4, rtol=0)
    assert all(not layer.bias.any() for layer in network if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)))


def test_images_of_which_nothing_is_left():
    with pytest.raises(
        UserError, match=r"images of 8 x 8 pixels are too small for the strides \[2, 2, 2, 1\] with pad"
    ):
        PixelEncoder((3, 8, 8), padding=0)


def test_a_linear_state_encoder_is_its_closed_form():
    torch.manual_seed(0)
    mean, std = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5])
    encoder = LinearStateEncoder((2,), (mean, std), features=5)
    linear, x = encoder.network[1], torch.randn(4, 3, 2)
    h = (x - mean) / std @ linear.weight.T + linear.bias
    expected = torch.tanh((h - h.mean(-1, True)) / (h.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt())
    torch.testing.assert_close(encoder(x), expected)
    assert encoder.out_features == 5 and ObservationEncoder({"observation": encoder}).trainable
    assert sum(p.numel() for p in LinearStateEncoder((8,)).parameters()) == 8 * 64 + 3 * 64  # RLinf's


def test_features_are_those_of_every_entry_in_order():
    state, pixels = StateEncoder((2,)), PixelEncoder((3, 8, 8), features=6)
    encoder = ObservationEncoder({"pixels": pixels, STATE: state})
    assert encoder.in_keys == ["pixels", STATE] and encoder.out_keys == ["features"]
    assert encoder.out_features == 6 + 10
    image, x = torch.randint(256, (2, 4, 3, 8, 8), dtype=torch.uint8), torch.randn(2, 4, 2).double()
    td = TensorDict({"pixels": image, "agent": {"state": x}, "left": torch.zeros(2, 4)}, [2, 4])
    assert encoder(td) is td
    torch.testing.assert_close(td["features"], torch.cat([pixels(image), state(x)], -1))
    assert td["pixels"].dtype == torch.uint8 and td[STATE].dtype == torch.float64


def test_one_entry_is_not_copied_and_only_pixels_are_trained():
    state = StateEncoder((2,))
    encoder = ObservationEncoder({"observation": state})
    x = torch.randn(3, 2)
    assert torch.equal(encoder(TensorDict({"observation": x}, [3]))["features"], state(x))
    assert not encoder.trainable
    mixed = ObservationEncoder({"observation": state, "pixels": PixelEncoder((3, 8, 8))})
    assert mixed.trainable
    td = TensorDict({"observation": x, "pixels": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}, [3])
    mixed(td)["features"].sum().backward()
    assert all(p.grad is not None for p in mixed.parameters())


def test_an_encoder_of_ones_own():
    class Mean(torch.nn.Module):
        out_features = 1

        def forward(self, x):
            return x.mean(-1, keepdim=True)

    td = TensorDict({"touch": torch.tensor([[1.0, 3.0]]), "observation": torch.zeros(1, 2)}, [1])
    encoder = ObservationEncoder({"touch": Mean(), "observation": StateEncoder((2,), fourier_bands=())})
    assert encoder(td)["features"].tolist() == [[2.0, 0.0, 0.0]]
