from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_layout import NOISE_LAYOUTS, NoiseLayout


def layout(name, pred_horizon=4, act_horizon=2, action_dim=3):
    return NoiseLayout(name, pred_horizon, act_horizon, action_dim)


def test_full_is_a_reshape():
    w = torch.randn(5, 12)
    assert layout("full").dim == 12
    torch.testing.assert_close(layout("full").to_chunk_noise(w), w.reshape(5, 4, 3))


def test_act_horizon_leaves_the_unexecuted_tail_at_zero():
    w = torch.randn(5, 6)
    noise = layout("act_horizon").to_chunk_noise(w)
    assert layout("act_horizon").dim == 6
    torch.testing.assert_close(noise[:, :2], w.reshape(5, 2, 3))
    assert (noise[:, 2:] == 0).all()


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
    with pytest.raises(UserError, match="noise_layout"):
        layout("half")
    with pytest.raises(UserError, match="act_horizon"):
        layout("full", act_horizon=5)
