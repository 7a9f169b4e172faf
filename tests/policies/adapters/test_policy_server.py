"""A policy behind a server is the same function, whatever the batch and the server's limits."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import probe, steerability
from dsrl_torchrl.policies.adapters.serve_policy import MAX_MEGABYTES

from .served import served, steered, walk, walking


@pytest.fixture(scope="module")
def policy():
    with served() as url, steered(url) as policy:
        yield policy


def inputs(*batch):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*batch, 2, generator=generator), torch.randn(*batch, 4, 2, generator=generator)


def direct(observation, noise):
    rows = walk({"observation": observation.reshape(-1, 2).numpy()}, noise.reshape(-1, 4, 2).numpy())
    return torch.from_numpy(rows).reshape(noise.shape)


@pytest.mark.parametrize("batch", [(), (1,), (8,), (2, 3), (0,)])
def test_the_chunk_is_that_of_a_direct_call(policy, batch):
    observation, noise = inputs(*batch)
    chunk = policy(observation, noise)
    assert chunk.dtype == torch.float32 and chunk.shape == (*batch, 4, 2)
    assert torch.equal(chunk, direct(observation, noise))


def test_a_batch_equals_its_rows(policy):
    observation, noise = inputs(8)
    rows = [policy(observation[i : i + 1], noise[i : i + 1]) for i in range(8)]
    assert torch.equal(policy(observation, noise), torch.cat(rows))


def test_sizes_are_the_servers():
    served_policy = walking(
        noise_shape=(5, 32), chunk_shape=(6, 7), first_action=2, n_action_steps=3, decode=lambda observation, noise: 0
    )
    with served(served_policy) as url, steered(url) as policy:
        assert (policy.noise_horizon, policy.noise_dim) == (5, 32)
        assert (policy.pred_horizon, policy.action_dim, policy.first_action) == (6, 7, 2)
        assert policy.n_action_steps == 3 and policy.in_keys == ["observation"] and policy.obs_horizon == 1


@pytest.mark.parametrize(
    ("limits", "requests"), [({"max_batch": 3}, [3, 3, 2]), ({"max_bytes": 16_384 + 100}, [2] * 4)]
)
def test_a_batch_beyond_the_servers_limits_is_split(limits, requests):
    seen = []

    def decode(observation, noise):
        seen.append(len(noise))
        return walk(observation, noise)

    observation, noise = inputs(8)
    with served(walking(decode=decode), **limits) as url, steered(url) as policy:
        assert torch.equal(policy(observation, noise), direct(observation, noise))
    assert seen == requests


def test_entries_are_mapped_and_keep_their_dtypes():
    """Nested and renamed keys; uint8 stays uint8, every floating type becomes the server's."""
    seen = {}

    def decode(observation, noise):
        seen.update(observation)
        return walk({"observation": observation["observation.state"]}, noise)

    entries = {"observation.state": ("float32", (2,)), "image": ("uint8", (3, 4, 4))}
    image = torch.arange(96, dtype=torch.uint8).reshape(2, 3, 4, 4)
    observation, noise = inputs(2)
    with served(walking(decode=decode, entries=entries)) as url:
        names = {"image": ["camera", "rgb"], "observation.state": "state"}
        with steered(url, entries=names) as policy:
            assert policy.in_keys == [("camera", "rgb"), "state"]
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                given = TensorDict({"state": observation.to(dtype), "camera": {"rgb": image}}, [2])
                chunk = policy.decode(given, noise)
                assert torch.equal(chunk, direct(observation.to(dtype).float(), noise))
                assert np.array_equal(seen["image"], image.numpy()) and seen["image"].dtype == np.uint8
                assert seen["observation.state"].dtype == np.float32


def test_the_probe_passes_and_spread_is_that_of_the_policy(policy):
    observations = TensorDict({"observation": inputs(16)[0]}, [16])
    probe(policy, observations)
    assert 0.3 < steerability(policy, observations).spread < 0.5


def test_the_probe_refuses_a_policy_that_ignores_its_noise():
    def deaf(observation, noise):
        return walk(observation, 0 * noise)

    with (
        served(walking(decode=deaf)) as url,
        steered(url) as policy,
        pytest.raises(UserError, match="ignores its noise"),
    ):
        probe(policy, TensorDict({"observation": inputs(8)[0]}, [8]))


def test_no_gradient_no_copy(policy):
    observation, noise = inputs(2)
    assert not policy.differentiable and policy.frozen
    assert not policy(observation, noise.requires_grad_()).requires_grad
    with pytest.raises(UserError, match="cannot be sent to another process"):
        copy.deepcopy(policy)


def test_a_vlas_sizes_with_the_servers_own_limits():
    """SmolVLA's and π0's as they are published: 50 actions executed, noise of 32."""
    vla = walking(noise_shape=(50, 32), chunk_shape=(50, 7), n_action_steps=50, decode=lambda o, noise: noise[..., :7])
    with served(vla, max_bytes=MAX_MEGABYTES * 2**20) as url, steered(url) as policy:
        assert policy(torch.zeros(2, 2), torch.ones(2, 50, 32)).shape == (2, 50, 7)


def test_the_hash_is_of_what_the_server_announces():
    hashes = []
    for name in ("weights 1", "weights 1", "weights 2"):
        with served(walking(content_hash=name)) as url, steered(url) as policy:
            hashes.append(policy.content_hash())
    assert hashes[0] == hashes[1] != hashes[2]
    with served(walking(content_hash=None)) as url, steered(url) as policy:
        assert policy.content_hash() is None


def test_clients_of_one_server_are_answered_one_at_a_time():
    inside = threading.Lock()

    def decode(observation, noise):
        assert inside.acquire(blocking=False)
        try:
            return walk(observation, noise)
        finally:
            inside.release()

    observation, noise = inputs(4)
    expected, wrong = direct(observation, noise), []

    def ask(policy):
        wrong.extend(i for i in range(50) if not torch.equal(policy(observation, noise), expected))

    with served(walking(decode=decode)) as url, steered(url) as one, steered(url) as other:
        threads = [threading.Thread(target=ask, args=[policy]) for policy in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
