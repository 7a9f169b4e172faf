from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.noise_layout import NOISE_LAYOUTS, NoiseLayout, knot_weights
from dsrl_torchrl.latent_env.prior_noise import PriorNoise
from tests.latent_env.test_latent_action_env import TanhPolicy
from tests.scripted_env import ScriptedEnv


def layout(name, noise_horizon=4, noise_dim=3, act_horizon=2, first_action=0, knots=2):
    return NoiseLayout(name, noise_horizon, noise_dim, act_horizon, first_action, knots)


def test_interpolated_has_gradients_whoever_called_first():
    knot_weights.cache_clear()
    made = layout("interpolated")
    with torch.inference_mode():
        made.to_chunk_noise(torch.randn(5, made.dim))
    w = torch.randn(5, made.dim, requires_grad=True)
    made.to_chunk_noise(w).square().sum().backward()
    assert w.grad.abs().min() > 0


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


def test_interpolated_by_hand():
    """Two knots over five steps: the steps between lie 1/4, 1/2 and 3/4 of the way, each scaled to unit variance."""
    made = layout("interpolated", noise_horizon=5, noise_dim=1)
    z = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    expected = [[(1 - a) * x + a * y for a in (0, 0.25, 0.5, 0.75, 1)] for x, y in z.tolist()]
    scale = torch.tensor([math.hypot(1 - a, a) for a in (0, 0.25, 0.5, 0.75, 1)])
    assert made.dim == 2
    torch.testing.assert_close(made.to_chunk_noise(z).squeeze(-1), torch.tensor(expected) / scale)


@pytest.mark.parametrize("knots", [2, 3, 5, 7])
def test_interpolated_noise_of_every_step_is_the_prior(knots):
    """Closed form: the covariance of the steps is W Wᵀ, with ones on its diagonal; knots are passed on as they are."""
    made = layout("interpolated", noise_horizon=9, noise_dim=2, knots=knots)
    weights = made.to_chunk_noise(torch.eye(knots).repeat_interleave(2, -1)[:, : 2 * knots])[..., 0].T  # (9, knots)
    assert made.dim == 2 * knots
    torch.testing.assert_close((weights @ weights.T).diagonal(), torch.ones(9))
    assert (weights >= 0).all() and ((weights > 0).sum(1) <= 2).all()
    if 8 % (knots - 1) == 0:
        torch.testing.assert_close(weights[:: 8 // (knots - 1)], torch.eye(knots))


def test_interpolated_takes_as_many_knots_as_steps():
    made = layout("interpolated", knots=4)
    w = torch.randn(5, 12)
    assert torch.equal(made.to_chunk_noise(w), layout("full").to_chunk_noise(w))
    for knots in (0, 1, 5):
        with pytest.raises(UserError, match=rf"needs between 2 and 4 knots .* got {knots}: one knot is repeat"):
            layout("interpolated", knots=knots)


@pytest.mark.parametrize("name", NOISE_LAYOUTS)
def test_any_leading_dims_and_gradient(name):
    w = torch.randn(2, 3, layout(name).dim, requires_grad=True)
    noise = layout(name).to_chunk_noise(w)
    assert noise.shape == (2, 3, 4, 3)
    noise.sum().backward()
    assert (w.grad != 0).all()


@pytest.mark.parametrize("name", NOISE_LAYOUTS)
def test_the_base_policys_own_noise_is_decoded_in_every_layout(name):
    """So that its user's own way to run it, a noise for every step, can be compared with what is steered."""
    env = LatentActionEnv(ScriptedEnv([9, 9], [True, True]), TanhPolicy(), act_horizon=2, noise_layout=name)
    assert env.decoder.layout.full_dim == 4
    torch.manual_seed(0)
    out = env.step(PriorNoise(env.decoder.layout.full_dim)(env.reset()))
    torch.manual_seed(0)
    expected = torch.tanh(torch.randn(2, 4))[:, :2]  # the observation starts at 0
    torch.testing.assert_close(out["next", "action_chunk"].squeeze(-1), expected)


def test_bad_arguments():
    with pytest.raises(UserError, match="must be one of full, act_horizon, repeat, interpolated; got 'half'"):
        layout("half")
    for sizes in ({"act_horizon": 5}, {"first_action": 3}):
        with pytest.raises(UserError, match=r"needs a noise for each of the . executed steps from step .* has 4"):
            layout("act_horizon", **sizes)
    assert layout("repeat", act_horizon=5).dim == 3  # one noise for a chunk that is longer
