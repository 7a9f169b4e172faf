from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_layout import NOISE_LAYOUTS, NoiseLayout


def layout(name, noise_horizon=4, noise_dim=3, act_horizon=2, first_action=0):
    return NoiseLayout(name, noise_horizon, noise_dim, act_horizon, first_action)


def test_full_is_a_reshape():
    w = torch.randn(5, 12)
    assert layout("full").dim == 12
    torch.testing.assert_close(layout("full").to_chunk_noise(w), w.reshape(5, 4, 3))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_act_horizon_leaves_what_is_not_executed_at_zero(first):
    w = torch.randn(5, 6)
    made = layout("act_horizon", first_action=first)
    noise = made.to_chunk_noise(w)
    assert made.dim == 6
    assert noise.shape == (5, 4, 3)
    torch.testing.assert_close(noise[:, first : first + 2], w.reshape(5, 2, 3))
    assert (noise[:, :first] == 0).all() and (noise[:, first + 2 :] == 0).all()


def test_repeat_gives_every_step_the_same_noise():
    w = torch.randn(5, 3)
    noise = layout("repeat").to_chunk_noise(w)
    assert layout("repeat").dim == 3
    assert noise.shape == (5, 4, 3)
    assert (noise == w.unsqueeze(1)).all()


@pytest.mark.parametrize("name", NOISE_LAYOUTS)
def test_any_leading_dims_and_gradient(name):
    w = torch.randn(2, 3, layout(name).dim, requires_grad=True)
    noise = layout(name).to_chunk_noise(w)
    assert noise.shape == (2, 3, 4, 3)
    noise.sum().backward()
    assert (w.grad != 0).all()


def test_bad_arguments():
    with pytest.raises(UserError, match="noise_layout must be one of full, act_horizon, repeat; got 'half'"):
        layout("half")
    for sizes in ({"act_horizon": 5}, {"first_action": 3}):
        with pytest.raises(UserError, match=r"needs a noise for each of the . executed steps from step .* has 4"):
            layout("act_horizon", **sizes)
    assert layout("repeat", act_horizon=5).dim == 3  # one noise for a chunk that is longer
