"""What inversion takes and refuses: data, policies and options of all kinds."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.inversion.search import NoiseOptimisation, NoiseRetrieval, invert_noise
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder

from .affine import (
    METHODS,
    SIZE,
    AffinePolicy,
    ImagePolicy,
    NoGradient,
    Server,
    diagonal,
    ids,
    make_data,
    make_decoder,
    observed,
    orthogonal,
)


@ids
def test_the_caller_is_left_alone(method):
    policy = AffinePolicy(orthogonal())  # not frozen: its matrix could collect a gradient
    decoder = NoiseDecoder(policy, act_horizon=2)
    observations, chunk = make_data(5, act_horizon=2)
    state = torch.get_rng_state()
    with torch.no_grad():
        noise, error = invert_noise(decoder, observations, chunk, method)
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.matrix.grad is None
    assert not (noise.requires_grad or error.requires_grad)


@ids
def test_float64_data_and_no_data(method):
    decoder = make_decoder(orthogonal())
    observations, chunk = make_data(3)
    found = invert_noise(decoder, observations, chunk.double(), method)
    assert found.noise.dtype == found.error.dtype == torch.float32
    empty = invert_noise(decoder, observations[:0], chunk[:0], method)
    assert (empty.noise.shape, empty.error.shape) == ((0, SIZE), (0,))


def test_rows_per_decode_are_bounded():
    decoder = make_decoder(orthogonal())
    observations, chunk = make_data(5)
    invert_noise(decoder, observations, chunk, NoiseRetrieval(samples=20), batch_size=8)
    invert_noise(decoder, observations, chunk, NoiseOptimisation(steps=1, starts=3), batch_size=8)
    assert max(seen.shape[:2].numel() for seen in decoder.base_policy.seen) <= 8


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda o, c, k: (observed(o["observation"].index_fill(0, torch.tensor(3), torch.nan)), c, k),
            "observation is NaN or infinite at element 3",
        ),
        (
            lambda o, c, k: (o, c.index_fill(0, torch.tensor(2), torch.nan), k),
            "action_chunk is NaN or infinite at element 2",
        ),
        (lambda o, c, k: (o, c[:, :1], k), r"action chunks \[n, 2, 3\]; got \[6\] and \[6, 1, 3\]"),
        (lambda o, c, k: (o[:5], c, k), r"got \[5\] and \[6, 2, 3\]"),
        (lambda o, c, k: (o.exclude("observation"), c, k), "reads observation, which the observations have not"),
        (lambda o, c, k: (o, c, k + 2), r"values in 1..2 \(act_horizon\); got \[6, 1\] in 3..3"),
    ],
)
def test_bad_data_is_one_line(change, match):
    decoder = make_decoder(orthogonal(), act_horizon=2)
    observations, chunk, executed_steps = change(*make_data(6, act_horizon=2), torch.ones(6, 1, dtype=torch.int64))
    with pytest.raises(UserError, match=match) as error:
        invert_noise(decoder, observations, chunk, METHODS[1], executed_steps)
    assert "\n" not in str(error.value)


@ids
def test_a_diverged_policy_is_named(method):
    decoder = make_decoder(orthogonal() * torch.nan, act_horizon=2)
    with pytest.raises(NonFiniteError, match="the decoded action is NaN or infinite at element 10"):
        invert_noise(decoder, *make_data(2, act_horizon=2), method, first_index=10)


@pytest.mark.parametrize("policy", [NoGradient, Server])
def test_a_policy_without_gradient_can_only_be_searched(policy):
    decoder = NoiseDecoder(policy(orthogonal()).freeze(), act_horizon=2)
    with pytest.raises(UserError, match="take NoiseRetrieval") as error:
        invert_noise(decoder, *make_data(2, act_horizon=2), METHODS[0])
    assert "\n" not in str(error.value)
    invert_noise(decoder, *make_data(2, act_horizon=2), METHODS[1])


@ids
def test_named_entries_give_what_one_flat_entry_gives(method):
    """An image and a nested float64 state against the same numbers in one vector."""
    grey = torch.arange(0, 250, 25, dtype=torch.uint8)  # (10,)
    _, chunk = make_data(10)
    state = torch.randn(10, 1, generator=torch.Generator().manual_seed(2))
    entries = {
        "pixels": grey[:, None, None, None].expand(10, 3, 2, 2),
        "robot": {"qpos": state.double()},
        "unread": torch.full((10, 4), torch.nan),
    }
    policy = ImagePolicy(orthogonal(), in_keys=["pixels", ("robot", "qpos")])
    found = invert_noise(NoiseDecoder(policy.freeze(), act_horizon=4), TensorDict(entries, [10]), chunk, method)
    flat = observed(torch.cat([(grey.float() / 255).sqrt().unsqueeze(-1), state], -1))
    expected = invert_noise(make_decoder(orthogonal()), flat, chunk, method)
    torch.testing.assert_close(tuple(found), tuple(expected), atol=1e-4, rtol=1e-4)


def test_noise_of_other_sizes_than_the_chunk():
    """A policy whose noise is one step of 12 numbers, which executes its chunk from action 1 on."""

    class Foreign(AffinePolicy):
        def forward(self, observation, noise):
            assert noise.shape[-2:] == (1, SIZE)
            return super().forward(observation, noise)

    policy = Foreign(orthogonal(), noise_horizon=1, noise_dim=SIZE, first_action=1).freeze()
    decoder = NoiseDecoder(policy, act_horizon=3)
    observations, _ = make_data(5)
    chunk = decoder.decode(observations, torch.rand(5, SIZE, generator=torch.Generator().manual_seed(1)))
    noise, error = invert_noise(decoder, observations, chunk, NoiseOptimisation(steps=300))
    assert noise.shape == (5, SIZE) and error.max() < 0.01


@pytest.mark.parametrize(
    ("method", "options"),
    [(NoiseOptimisation, {"steps": 0}), (NoiseOptimisation, {"lr": 0.0}), (NoiseRetrieval, {"samples": 0})],
)
def test_bad_methods_are_one_line(method, options):
    with pytest.raises(UserError, match=f"{next(iter(options))} must be"):
        method(**options)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}])
def test_bad_options_are_one_line(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} must be"):
        invert_noise(make_decoder(diagonal()), *make_data(2), METHODS[1], **options)
