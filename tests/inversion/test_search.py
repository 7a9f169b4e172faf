"""Inversion against closed forms, retrieval against brute force."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.inversion.search import NoiseOptimisation, NoiseRetrieval, alias_noise
from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.policies import BasePolicy
from tests.policies.conftest import make_policy, random_inputs

OBSERVATION_DIM, ACTION_DIM, PRED_HORIZON = 2, 3, 4
SIZE = PRED_HORIZON * ACTION_DIM
HALF_RANGE = torch.tensor([0.5, 1.0, 4.0])
METHODS = [NoiseOptimisation(steps=5, starts=2), NoiseRetrieval(samples=6)]
ids = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)


class AffinePolicy(BasePolicy):
    """``chunk = (1 + s_0²) A w + s_1``, remembering the noise that it saw."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__(OBSERVATION_DIM, ACTION_DIM, PRED_HORIZON)
        self.matrix = torch.nn.Parameter(matrix)
        self.normalisation.action_low.copy_(-HALF_RANGE)
        self.normalisation.action_high.copy_(HALF_RANGE)
        self.seen: list[torch.Tensor] = []

    def forward(self, observation, noise):
        self.check_shapes(observation, noise)
        self.seen.append(noise.detach().clone())
        gain, shift = (observation[..., :1].square() + 1), observation[..., 1:]
        return (gain * (noise.flatten(-2) @ self.matrix.mT) + shift).unflatten(-1, (PRED_HORIZON, ACTION_DIM))


class NoGradient(AffinePolicy):
    def forward(self, observation, noise):
        with torch.no_grad():
            return super().forward(observation, noise)


def diagonal() -> torch.Tensor:
    return torch.diag(torch.linspace(0.5, 1.5, SIZE))


def orthogonal() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(3)))[0]


def make_decoder(matrix: torch.Tensor, act_horizon: int = PRED_HORIZON, layout: str = "full", magnitude: float = 1.5):
    return NoiseDecoder(
        AffinePolicy(matrix).freeze(), act_horizon=act_horizon, noise_layout=layout, action_magnitude=magnitude
    )


def make_data(n: int, act_horizon: int = PRED_HORIZON, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(n, OBSERVATION_DIM, generator=generator)
    return observation, torch.randn(n, act_horizon, ACTION_DIM, generator=generator)


def rms(decoder, observation, noise, chunk, k=None):
    difference = (decoder.decode(observation, noise) - chunk) / HALF_RANGE
    return difference[..., :k, :].square().mean((-1, -2)).sqrt()


def test_an_orthogonal_map_gives_the_noise_itself():
    decoder = make_decoder(orthogonal())
    observation, _ = make_data(20)
    true = 2.8 * torch.rand(20, SIZE, generator=torch.Generator().manual_seed(1)) - 1.4
    chunk = decoder.decode(observation, true)
    noise, error = alias_noise(decoder, observation, chunk, NoiseOptimisation(steps=1000, lr=0.05))
    assert error.max() < 1e-3
    torch.testing.assert_close(noise, true, atol=1e-3, rtol=0)


def test_a_general_map_gives_the_chunk():
    decoder = make_decoder(orthogonal() @ diagonal(), act_horizon=2)
    observation, _ = make_data(20)
    true = torch.randn(20, SIZE, generator=torch.Generator().manual_seed(1)).clamp(-1.5, 1.5)
    chunk = decoder.decode(observation, true)
    noise, error = alias_noise(decoder, observation, chunk, NoiseOptimisation(steps=300))
    assert error.max() < 0.01
    torch.testing.assert_close(rms(decoder, observation, noise, chunk), error)


@pytest.mark.parametrize("layout", ["full", "act_horizon"])
def test_the_bound_is_kept_and_reached(layout):
    # Every coordinate on its own: the best noise in the box is the clamped solution.
    decoder = make_decoder(diagonal(), act_horizon=2, layout=layout, magnitude=0.7)
    observation, chunk = make_data(30, act_horizon=2)
    gain, shift = observation[:, :1].square() + 1, observation[:, 1:]
    head = 2 * ACTION_DIM
    solution = (chunk.flatten(1) - shift) / (gain * diagonal().diag()[:head])
    noise, _ = alias_noise(decoder, observation, chunk, NoiseOptimisation(steps=200, lr=0.02, starts=2))
    assert noise.abs().max() <= 0.7 and noise.shape == (30, decoder.layout.dim)
    torch.testing.assert_close(noise[:, :head], solution.clamp(-0.7, 0.7), atol=0.05, rtol=0)
    assert (noise[:, :head].abs()[solution.abs() > 0.9] == torch.tensor(0.7)).all()


def test_repeated_noise_gives_the_mean_action():
    # The least squares fit of one noise to k actions is their mean, and the error is their deviation.
    decoder = make_decoder(torch.eye(SIZE), layout="repeat", magnitude=10.0)
    observation, chunk = make_data(30)
    macro_steps = torch.arange(30).remainder(PRED_HORIZON).add(1).unsqueeze(-1)
    gain, shift = observation[:, :1].square() + 1, observation[:, 1:]
    noise, error = alias_noise(decoder, observation, chunk, NoiseOptimisation(steps=400, lr=0.05), macro_steps)
    for i, k in enumerate(macro_steps.squeeze(-1).tolist()):
        mean = chunk[i, :k].mean(0)
        torch.testing.assert_close(noise[i], (mean - shift[i]) / gain[i], atol=0.05, rtol=0)
        deviation = ((chunk[i, :k] - mean) / HALF_RANGE).square().mean().sqrt()
        torch.testing.assert_close(error[i], deviation, atol=0.01, rtol=0)


def test_noise_that_moves_nothing_stays_prior_noise():
    decoder = make_decoder(diagonal(), act_horizon=2)
    observation, chunk = make_data(10, act_horizon=2)
    method, head = NoiseOptimisation(starts=1), 2 * ACTION_DIM
    one, other = (alias_noise(decoder, observation, target, method).noise for target in (chunk, -chunk))
    assert not torch.equal(one[:, :head], other[:, :head]) and torch.equal(one[:, head:], other[:, head:])
    assert 0.6 < one[:, head:].std() < 1.1


def test_retrieval_is_brute_force():
    decoder = make_decoder(orthogonal(), act_horizon=3, magnitude=1.0)
    observation, chunk = make_data(7, act_horizon=3)
    macro_steps = torch.tensor([[1], [2], [3], [1], [2], [3], [3]])
    noise, error = alias_noise(decoder, observation, chunk, NoiseRetrieval(samples=50), macro_steps, batch_size=1000)
    candidates = decoder.base_policy.seen[0].flatten(-2)
    assert candidates.shape == (7, 50, SIZE) and candidates.abs().max() == 1
    for i in range(7):
        k = int(macro_steps[i])
        errors = [rms(decoder, observation[i], candidate, chunk[i], k) for candidate in candidates[i]]
        best = int(torch.stack(errors).argmin())
        assert torch.equal(noise[i], candidates[i, best])
        torch.testing.assert_close(error[i], errors[best])


@ids
def test_unexecuted_actions_do_not_matter(method):
    decoder = make_decoder(orthogonal())
    observation, chunk = make_data(8)
    macro_steps = torch.full((8, 1), 2)
    other = chunk.clone()
    other[:, 2:] = torch.nan
    found, again = (alias_noise(decoder, observation, target, method, macro_steps) for target in (chunk, other))
    assert torch.equal(found.noise, again.noise) and torch.equal(found.error, again.error)
    other[:, 1] += 1
    assert not torch.equal(found.error, alias_noise(decoder, observation, other, method, macro_steps).error)


@ids
@pytest.mark.parametrize("policy_type", ["flow", "diffusion"])
def test_elements_do_not_depend_on_how_the_data_is_cut(method, policy_type):
    policy = make_policy(policy_type).freeze()
    decoder = NoiseDecoder(policy, act_horizon=3)
    observation, noise = random_inputs(policy, 9)
    chunk = policy(observation, noise)[:, :3]
    whole = alias_noise(decoder, observation, chunk, method)
    for first, batch_size in ((0, 1), (4, 5)):
        data = observation[first:], chunk[first:]
        cut = alias_noise(decoder, *data, method, first_index=first, batch_size=batch_size)
        torch.testing.assert_close(cut.noise, whole.noise[first:], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(cut.error, whole.error[first:], atol=1e-4, rtol=1e-4)
    assert not torch.equal(alias_noise(decoder, observation, chunk, method, seed=1).noise, whole.noise)


@ids
def test_the_caller_is_left_alone(method):
    policy = AffinePolicy(orthogonal())  # not frozen: its matrix could collect a gradient
    decoder = NoiseDecoder(policy, act_horizon=2)
    observation, chunk = make_data(5, act_horizon=2)
    state = torch.get_rng_state()
    with torch.no_grad():
        noise, error = alias_noise(decoder, observation, chunk, method)
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.matrix.grad is None
    assert not (noise.requires_grad or error.requires_grad)


@ids
def test_float64_data_and_no_data(method):
    decoder = make_decoder(orthogonal())
    observation, chunk = make_data(3)
    found = alias_noise(decoder, observation.float(), chunk.double(), method)
    assert found.noise.dtype == found.error.dtype == torch.float32
    empty = alias_noise(decoder, observation[:0], chunk[:0], method)
    assert (empty.noise.shape, empty.error.shape) == ((0, SIZE), (0,))


def test_rows_per_decode_are_bounded():
    decoder = make_decoder(orthogonal())
    observation, chunk = make_data(5)
    alias_noise(decoder, observation, chunk, NoiseRetrieval(samples=20), batch_size=8)
    alias_noise(decoder, observation, chunk, NoiseOptimisation(steps=1, starts=3), batch_size=8)
    assert max(seen.shape[:2].numel() for seen in decoder.base_policy.seen) <= 8


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda o, c, k: (o.index_fill(0, torch.tensor(3), torch.nan), c, k),
            "observation is NaN or infinite at element 3",
        ),
        (
            lambda o, c, k: (o, c.index_fill(0, torch.tensor(2), torch.nan), k),
            "executed_chunk is NaN or infinite at element 2",
        ),
        (lambda o, c, k: (o, c[:, :1], k), r"executed chunk \[n, 2, 3\]; got \[6, 2\] and \[6, 1, 3\]"),
        (lambda o, c, k: (o[:5], c, k), r"got \[5, 2\] and \[6, 2, 3\]"),
        (lambda o, c, k: (o, c, k + 2), r"values in 1..2 \(act_horizon\); got \[6, 1\] in 3..3"),
    ],
)
def test_bad_data_is_one_line(change, match):
    decoder = make_decoder(orthogonal(), act_horizon=2)
    observation, chunk, macro_steps = change(*make_data(6, act_horizon=2), torch.ones(6, 1, dtype=torch.int64))
    with pytest.raises(UserError, match=match) as error:
        alias_noise(decoder, observation, chunk, METHODS[1], macro_steps)
    assert "\n" not in str(error.value)


@ids
def test_a_diverged_policy_is_named(method):
    decoder = make_decoder(orthogonal() * torch.nan, act_horizon=2)
    with pytest.raises(NonFiniteError, match="the decoded action is NaN or infinite at element 10"):
        alias_noise(decoder, *make_data(2, act_horizon=2), method, first_index=10)


def test_a_policy_without_gradient_can_only_be_searched():
    decoder = NoiseDecoder(NoGradient(orthogonal()).freeze(), act_horizon=2)
    with pytest.raises(UserError, match="take NoiseRetrieval"):
        alias_noise(decoder, *make_data(2, act_horizon=2), METHODS[0])
    alias_noise(decoder, *make_data(2, act_horizon=2), METHODS[1])


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
        alias_noise(make_decoder(diagonal()), *make_data(2), METHODS[1], **options)
