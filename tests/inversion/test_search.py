"""Inversion against closed forms, retrieval against brute force."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.inversion.search import NoiseOptimisation, NoiseRetrieval, invert_noise
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from tests.policies.conftest import make_policy, random_inputs

from .affine import (
    ACTION_DIM,
    HALF_RANGE,
    PRED_HORIZON,
    SIZE,
    diagonal,
    ids,
    make_data,
    make_decoder,
    observed,
    orthogonal,
    rms,
)


def test_an_orthogonal_map_gives_the_noise_itself():
    decoder = make_decoder(orthogonal())
    observations, _ = make_data(20)
    true = 2.8 * torch.rand(20, SIZE, generator=torch.Generator().manual_seed(1)) - 1.4
    chunk = decoder.decode(observations, true)
    noise, error = invert_noise(decoder, observations, chunk, NoiseOptimisation(steps=1000, lr=0.05))
    assert error.max() < 1e-3
    torch.testing.assert_close(noise, true, atol=1e-3, rtol=0)


def test_a_general_map_gives_the_chunk():
    decoder = make_decoder(orthogonal() @ diagonal(), act_horizon=2)
    observations, _ = make_data(20)
    true = torch.randn(20, SIZE, generator=torch.Generator().manual_seed(1)).clamp(-1.5, 1.5)
    chunk = decoder.decode(observations, true)
    noise, error = invert_noise(decoder, observations, chunk, NoiseOptimisation(steps=300))
    assert error.max() < 0.01
    torch.testing.assert_close(rms(decoder, observations, noise, chunk), error)


def test_more_steps_never_make_it_worse():
    """The best iterate is kept, however far the next ones jump."""
    decoder = make_decoder(orthogonal())
    observations, chunk = make_data(20)
    errors = torch.stack(
        [
            invert_noise(decoder, observations, chunk, NoiseOptimisation(steps=steps, lr=1.0, starts=1)).error
            for steps in range(1, 8)
        ]
    )
    assert (errors.diff(dim=0) <= 1e-6).all() and (errors.diff(dim=0) < 0).any()


@pytest.mark.parametrize("layout", ["full", "act_horizon"])
def test_the_bound_is_kept_and_reached(layout):
    # Every coordinate on its own: the best noise in the box is the clamped solution.
    decoder = make_decoder(diagonal(), act_horizon=2, layout=layout, magnitude=0.7)
    observations, chunk = make_data(30, act_horizon=2)
    gain, shift = observations["observation"][:, :1].square() + 1, observations["observation"][:, 1:]
    head = 2 * ACTION_DIM
    solution = (chunk.flatten(1) - shift) / (gain * diagonal().diag()[:head])
    noise, _ = invert_noise(decoder, observations, chunk, NoiseOptimisation(steps=200, lr=0.02, starts=2))
    assert noise.abs().max() <= 0.7 and noise.shape == (30, decoder.layout.dim)
    torch.testing.assert_close(noise[:, :head], solution.clamp(-0.7, 0.7), atol=0.05, rtol=0)
    assert (noise[:, :head].abs()[solution.abs() > 0.9] == torch.tensor(0.7)).all()


def test_repeated_noise_gives_the_mean_action():
    # The least squares fit of one noise to k actions is their mean, and the error is their deviation.
    decoder = make_decoder(torch.eye(SIZE), layout="repeat", magnitude=10.0)
    observations, chunk = make_data(30)
    executed_steps = torch.arange(30).remainder(PRED_HORIZON).add(1).unsqueeze(-1)
    gain, shift = observations["observation"][:, :1].square() + 1, observations["observation"][:, 1:]
    noise, error = invert_noise(decoder, observations, chunk, NoiseOptimisation(steps=400, lr=0.05), executed_steps)
    for i, k in enumerate(executed_steps.squeeze(-1).tolist()):
        mean = chunk[i, :k].mean(0)
        torch.testing.assert_close(noise[i], (mean - shift[i]) / gain[i], atol=0.05, rtol=0)
        deviation = ((chunk[i, :k] - mean) / HALF_RANGE).square().mean().sqrt()
        torch.testing.assert_close(error[i], deviation, atol=0.01, rtol=0)


def test_noise_that_moves_nothing_stays_prior_noise():
    decoder = make_decoder(diagonal(), act_horizon=2)
    observations, chunk = make_data(10, act_horizon=2)
    method, head = NoiseOptimisation(starts=1), 2 * ACTION_DIM
    one, other = (invert_noise(decoder, observations, target, method).noise for target in (chunk, -chunk))
    assert not torch.equal(one[:, :head], other[:, :head]) and torch.equal(one[:, head:], other[:, head:])
    assert 0.6 < one[:, head:].std() < 1.1


def test_retrieval_is_brute_force():
    decoder = make_decoder(orthogonal(), act_horizon=3, magnitude=1.0)
    observations, chunk = make_data(7, act_horizon=3)
    executed_steps = torch.tensor([[1], [2], [3], [1], [2], [3], [3]])
    noise, error = invert_noise(
        decoder, observations, chunk, NoiseRetrieval(samples=50), executed_steps, batch_size=1000
    )
    candidates = decoder.base_policy.seen[0].flatten(-2)
    assert candidates.shape == (7, 50, SIZE) and candidates.abs().max() == 1
    for i in range(7):
        k = int(executed_steps[i])
        errors = [rms(decoder, observations[i], candidate, chunk[i], k) for candidate in candidates[i]]
        best = int(torch.stack(errors).argmin())
        assert torch.equal(noise[i], candidates[i, best])
        torch.testing.assert_close(error[i], errors[best])


@ids
def test_unexecuted_actions_do_not_matter(method):
    decoder = make_decoder(orthogonal())
    observations, chunk = make_data(8)
    executed_steps = torch.full((8, 1), 2)
    other = chunk.clone()
    other[:, 2:] = torch.nan
    found, again = (invert_noise(decoder, observations, target, method, executed_steps) for target in (chunk, other))
    assert torch.equal(found.noise, again.noise) and torch.equal(found.error, again.error)
    other[:, 1] += 1
    assert not torch.equal(found.error, invert_noise(decoder, observations, other, method, executed_steps).error)


@ids
@pytest.mark.parametrize("policy_type", ["flow", "diffusion"])
def test_elements_do_not_depend_on_how_the_data_is_cut(method, policy_type):
    policy = make_policy(policy_type).freeze()
    decoder = NoiseDecoder(policy, act_horizon=3)
    observation, noise = random_inputs(policy, 9)
    observations, chunk = observed(observation), policy(observation, noise)[:, :3]
    whole = invert_noise(decoder, observations, chunk, method)
    for first, batch_size in ((0, 1), (4, 5)):
        data = observations[first:], chunk[first:]
        cut = invert_noise(decoder, *data, method, first_index=first, batch_size=batch_size)
        torch.testing.assert_close(cut.noise, whole.noise[first:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(cut.error, whole.error[first:], atol=1e-4, rtol=1e-4)
    assert not torch.equal(invert_noise(decoder, observations, chunk, method, seed=1).noise, whole.noise)
