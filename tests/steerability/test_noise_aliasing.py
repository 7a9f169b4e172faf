from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.steerability.noise_aliasing import aliasing, noise_jacobian, participation_ratio
from tests.steerability.bases import Decoding, affine, decoder_of, diagonal, observations

OBSERVATIONS = observations(40)


def test_the_jacobian_of_an_affine_policy_is_its_matrix():
    torch.manual_seed(0)
    matrix = torch.randn(8, 8)
    jacobian = noise_jacobian(decoder_of(affine(matrix)), OBSERVATIONS, torch.randn(40, 8))
    torch.testing.assert_close(jacobian, matrix.expand(40, 8, 8))
    measured = aliasing(decoder_of(affine(matrix)), OBSERVATIONS)
    torch.testing.assert_close(torch.tensor(measured.singular_values), torch.linalg.svdvals(matrix))


def test_a_nonlinear_jacobian_against_its_closed_form():
    noise = torch.randn(40, 8)
    jacobian = noise_jacobian(decoder_of(Decoding(torch.tanh)), OBSERVATIONS, noise)
    torch.testing.assert_close(jacobian, torch.diag_embed(1 - noise.tanh().square()))


def test_a_policy_that_ignores_half_of_its_noise():
    measured = aliasing(decoder_of(diagonal(0.2, 0.2, 0.2, 0.2, 0, 0, 0, 0)), OBSERVATIONS)
    assert measured.aliased_fraction == 0.5
    assert measured.effective_dim == pytest.approx(4)
    assert measured.singular_values == pytest.approx([0.2] * 4 + [0] * 4)
    assert measured.same_head_fraction == 0.0
    assert measured.latent_dim == 8


def test_a_policy_that_ignores_all_of_its_noise():
    measured = aliasing(decoder_of(diagonal(*[0.0] * 8)), OBSERVATIONS)
    assert (measured.aliased_fraction, measured.effective_dim, measured.same_head_fraction) == (1.0, 0.0, 1.0)


def test_noise_of_steps_that_are_not_executed_is_aliased_unless_the_layout_leaves_it_out():
    policy = diagonal(*[0.2] * 8)
    assert aliasing(decoder_of(policy, 2, "full"), OBSERVATIONS).aliased_fraction == 0.5
    assert aliasing(decoder_of(policy, 2, "act_horizon"), OBSERVATIONS).aliased_fraction == 0.0
    repeated = aliasing(decoder_of(policy, 4, "repeat"), OBSERVATIONS)
    assert repeated.singular_values == pytest.approx([0.2 * 4**0.5] * 2)


def test_a_direction_that_moves_one_action_of_a_long_chunk_is_not_aliased():
    policy = diagonal(*[0.05] * 200, pred_horizon=100)  # 0.05 / sqrt(200) would be a root mean square of 0.0035
    assert aliasing(decoder_of(policy), OBSERVATIONS[:3]).aliased_fraction == 0.0


def test_two_modes_are_the_same_head_half_of_the_time():
    two_modes = Decoding(lambda noise: noise[..., :1].sign().expand_as(noise) + 0 * noise)
    assert aliasing(decoder_of(two_modes), OBSERVATIONS).same_head_fraction == pytest.approx(0.5, abs=0.03)


def test_participation_ratio():
    values = torch.tensor([[1.0, 1, 0, 0], [2, 1, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(participation_ratio(values), torch.tensor([2, 25 / 17, 0], dtype=torch.float64))


def test_works_under_no_grad_and_leaves_no_gradients():
    policy = diagonal(*[0.2] * 8)
    with torch.no_grad():
        assert aliasing(decoder_of(policy), OBSERVATIONS).aliased_fraction == 0.0


def test_a_policy_without_gradient_is_one_clear_line():
    with pytest.raises(UserError, match="not differentiable in its noise") as caught:
        aliasing(decoder_of(Decoding(lambda noise: noise.detach())), OBSERVATIONS)
    assert "\n" not in str(caught.value)
