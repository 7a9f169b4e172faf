"""Schedules and DDIM, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.ddim import DDIM, betas, deterministic_steps


def exact(sampler, x_0, prediction="epsilon"):
    """The perfect network of a data set of one chunk."""

    def predict(x, t):
        alpha_bar = sampler.alpha_bars[t]
        return (x - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt() if prediction == "epsilon" else x_0

    return predict


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear", "dppo_cosine"])
def test_a_perfect_network_gives_the_data(schedule, prediction):
    x_0 = torch.rand(2, 4, 3) * 1.6 - 0.8
    sampler = DDIM(betas(schedule, 100), 10, prediction=prediction)
    torch.testing.assert_close(sampler(exact(sampler, x_0, prediction), torch.randn(2, 4, 3)), x_0, atol=1e-5, rtol=0)


def test_two_steps_by_hand():
    """ᾱ = 1/4 at step 1, 1/2 at step 0; ε is always 1."""
    sampler = DDIM(torch.tensor([0.5, 0.5]), 2, clip=None)
    x = sampler(lambda x, t: torch.ones_like(x), torch.tensor([[[2.0]]]))
    x_0 = (2 - math.sqrt(0.75)) / 0.5
    x_1 = math.sqrt(0.5) * x_0 + math.sqrt(0.5)
    assert float(x) == pytest.approx((x_1 - math.sqrt(0.5)) / math.sqrt(0.5), rel=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_what_the_clip_does_to_epsilon(recompute):
    """x̂_0 = (2 - √0.75) / 0.5 is clipped to 1; DPPO's ε follows from that, diffusers' stays."""
    sampler = DDIM(torch.tensor([0.5, 0.5]), 2, clip=1.0, recompute_epsilon=recompute, last_alpha_bar_is_one=False)
    seen = []
    sampler(lambda x, t: seen.append(x) or torch.ones_like(x), torch.tensor([[[2.0]]]))
    epsilon = (2 - 0.5) / math.sqrt(0.75) if recompute else 1.0
    assert float(seen[1]) == pytest.approx(math.sqrt(0.5) + math.sqrt(0.5) * epsilon, rel=1e-6)


def test_an_offset_moves_every_step():
    assert DDIM(betas("linear", 100), 4, offset=1).timesteps == [76, 51, 26, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: betas("sigmoid_v3", 100), "noise schedule should be one of squaredcos_cap_v2"),
        (lambda: DDIM(betas("linear", 100), 101), "at most train_steps"),
        (lambda: DDIM(betas("linear", 100), 3), "start in the middle"),
        (lambda: DDIM(betas("linear", 100), 10, prediction="velocity"), "epsilon or sample, got 'velocity'"),
        (lambda: DDIM(betas("linear", 100), 100, offset=1), "steps_offset=1 puts"),
        (lambda: deterministic_steps("DPMSolver", 10, 100, None), "should be DDPM or DDIM, got 'DPMSolver'"),
    ],
)
def test_what_cannot_be_sampled(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_ddpm_becomes_ddim_and_says_so():
    with pytest.warns(UserWarning, match="DDPM of 100 steps draws fresh noise"):
        assert deterministic_steps("DDPM", 100, 100, None) == 10
    assert deterministic_steps("DDPM", 100, 100, 20) == 20
    assert deterministic_steps("DDIM", 16, 100, None) == 16
