"""Noises decoded once per stored state: the same loss as noises decoded at every update."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.agents.dsrl_aw_mle import draw_decoded_pairs, pick_decoded_pair
from dsrl_torchrl.objectives.noise_aliasing import NoiseAliasingLoss
from tests.objectives.macro_batch import ACTION, DIM, H_A, OBS, Decoder, N, make_batch, make_q_noise
from tests.objectives.test_noise_aliasing import make_losses

M = 5
STATE = ("agent", "state")


def executed(n):
    """The chunk of the dtype that the pairs take."""
    return {"action_chunk": torch.zeros(n, H_A, ACTION, dtype=torch.float64)}


def repeated(observations, times):
    return observations.unsqueeze(1).expand(len(observations), times)


def test_pairs_are_prior_noises_and_what_they_decode_to():
    torch.manual_seed(0)
    td = TensorDict({"observation": torch.randn(3000, OBS, dtype=torch.float64), "next": executed(3000)}, [3000])
    calls = []

    def decode(observations, noise):
        assert observations.batch_size == noise.shape[:-1]
        calls.append(len(noise))
        return Decoder()(observations, noise)

    td = draw_decoded_pairs(td, decode, DIM, M)
    noise, chunk = td["pair_noise"], td["pair_chunk"]
    assert noise.shape == (3000, M, DIM) and chunk.shape == (3000, M, H_A, ACTION)
    torch.testing.assert_close(chunk, Decoder()(repeated(td.select("observation"), M), noise).detach())
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert len(calls) > 1 and max(calls) * M <= 4096  # memory is bounded
    assert not chunk.requires_grad


def test_named_entries_reach_the_decoder_as_they_are_stored():
    pixels = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8)
    td = TensorDict({"pixels": pixels, "agent": {"state": torch.randn(6, 2).double()}, "next": executed(6)}, [6])

    def decode(observations, noise):
        assert (observations["pixels"].dtype, observations[STATE].dtype) == (torch.uint8, torch.float64)
        assert observations["pixels"].shape == (*noise.shape[:-1], 3, 4, 4)
        seen = observations["pixels"].double().mean((-3, -2, -1)) + observations[STATE].sum(-1)
        return (noise + seen[..., None]).unflatten(-1, (H_A, ACTION))

    td = draw_decoded_pairs(td, decode, DIM, M)
    seen = pixels.double().mean((-3, -2, -1)) + td[STATE].sum(-1)
    torch.testing.assert_close(td["pair_chunk"].flatten(-2), td["pair_noise"] + seen[:, None, None])
    assert torch.equal(td["pixels"], pixels) and set(td.keys()) == {
        "pixels",
        "agent",
        "next",
        "pair_noise",
        "pair_chunk",
    }


def test_zero_samples_add_nothing():
    td = make_batch()
    assert "pair_noise" not in draw_decoded_pairs(td, Decoder(), DIM, 0).keys()
    assert pick_decoded_pair(td) is td


@pytest.mark.parametrize("batches", [(), (3,)], ids=["a batch", "several"])
def test_a_pair_is_picked_whole_and_every_pair_in_turn(batches):
    torch.manual_seed(0)
    stored = draw_decoded_pairs(make_batch(), Decoder(), DIM, M)
    stored = stored.expand(*batches, *stored.batch_size).reshape(-1)
    picked = set()
    for _ in range(60):
        one = pick_decoded_pair(stored.reshape(*batches, -1).clone()).reshape(-1)
        same = (one["pair_noise"].unsqueeze(1) == stored["pair_noise"]).all(-1)  # (B, M)
        assert (same.sum(1) == 1).all()
        chunk = stored["pair_chunk"][torch.arange(len(same)), same.int().argmax(1)]
        assert torch.equal(one["pair_chunk"], chunk)
        picked |= {int(i) for i in same.int().argmax(1)}
    assert picked == set(range(M))


@pytest.mark.parametrize(("share", "own"), [(0.5, 2), (1.0, 4)])
def test_a_share_of_the_pairs_is_what_was_executed(share, own):
    batch = make_batch()
    batch.set("action", torch.full((len(batch), DIM), 7.0, dtype=torch.float64))
    td = draw_decoded_pairs(batch, Decoder(), DIM, 4, executed_share=share)
    is_own = (td["pair_noise"] == 7.0).all(-1)
    assert is_own.sum(1).tolist() == [own] * len(batch)
    chunk = batch["next", "action_chunk"].unsqueeze(1).expand(-1, own, -1, -1)
    assert torch.equal(td["pair_chunk"][is_own].view_as(chunk), chunk)


def test_the_loss_on_a_stored_pair_equals_the_loss_on_a_fresh_noise():
    _, loss = make_losses()
    batch = make_batch()
    torch.manual_seed(5)
    fresh = loss(batch)["loss_noise_aliasing"]
    torch.manual_seed(5)
    noise = torch.randn(len(batch), DIM, dtype=torch.float64)
    batch.set("pair_noise", noise).set("pair_chunk", Decoder()(batch, noise).detach())
    torch.testing.assert_close(loss(batch)["loss_noise_aliasing"], fresh)


def test_a_stored_pair_costs_no_decode():
    def no_decode(observations, noise):
        raise AssertionError("decoded")

    loss = NoiseAliasingLoss(
        make_q_noise(), lambda s, a: a.flatten(-2)[..., :N].movedim(-1, 0), no_decode, latent_dim=DIM, num_critics=N
    ).double()
    batch = pick_decoded_pair(draw_decoded_pairs(make_batch(), Decoder(), DIM, M))
    loss(batch)["loss_noise_aliasing"].backward()
