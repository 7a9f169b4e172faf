"""Inversion against closed forms, retrieval against brute force."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.inversion.search import NoiseOptimisation, NoiseRetrieval, invert_noise
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

    def __init__(self, matrix: torch.Tensor, **kwargs) -> None:
        super().__init__(ACTION_DIM, PRED_HORIZON, **kwargs)
        self.matrix = torch.nn.Parameter(matrix)
        self.action_low.copy_(-HALF_RANGE)
        self.action_high.copy_(HALF_RANGE)
        self.seen: list[torch.Tensor] = []

    def forward(self, observation, noise):
        self.seen.append(noise.detach().clone())
        gain, shift = (observation[..., :1].square() + 1), observation[..., 1:]
        return (gain * (noise.flatten(-2) @ self.matrix.mT) + shift).unflatten(-1, (PRED_HORIZON, ACTION_DIM))


class NoGradient(AffinePolicy):
    def forward(self, observation, noise):
        with torch.no_grad():
            return super().forward(observation, noise)


class Server(AffinePolicy):
    """As a JAX model or a server: cannot even be called with a tensor that requires grad."""

    differentiable = False

    def forward(self, observation, noise):
        assert not noise.requires_grad
        return super().forward(observation, noise)


class ImagePolicy(AffinePolicy):
    """:class:`AffinePolicy`, its gain the mean brightness of an image in [0, 1], its shift a nested state."""

    def forward(self, pixels, state, noise):
        assert pixels.dtype == torch.uint8
        gain = (pixels.float().mean((-3, -2, -1), keepdim=False) / 255).sqrt().unsqueeze(-1)
        return super().forward(torch.cat([gain, state.float()], -1), noise)


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
    return observed(observation), torch.randn(n, act_horizon, ACTION_DIM, generator=generator)


def observed(observation: torch.Tensor) -> TensorDict:
    return TensorDict({"observation": observation}, observation.shape[:-1])


def rms(decoder, observations, noise, chunk, k=None):
    difference = (decoder.decode(observations, noise) - chunk) / HALF_RANGE
    return difference[..., :k, :].square().mean((-1, -2)).sqrt()


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
