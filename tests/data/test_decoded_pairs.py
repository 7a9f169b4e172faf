"""Noises decoded once per stored state: the same loss as noises decoded at every update."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from dsrl_torchrl.data.decoded_pairs import draw_alias_pairs, pick_alias_pair, refresh_alias_pairs
from dsrl_torchrl.objectives.noise_aliasing import NoiseAliasingLoss
from dsrl_torchrl.data.replay import offline_buffer

from ..objectives.macro_batch import DIM, Decoder, N, make_batch, make_q_noise
from ..objectives.test_noise_aliasing import make_losses

M = 5


def test_pairs_are_prior_noises_and_what_they_decode_to():
    torch.manual_seed(0)
    td = TensorDict({"observation": torch.randn(3000, 5, dtype=torch.float64)}, [3000])
    calls = []

    def decode(observation, noise):
        calls.append(len(noise))
        return Decoder()(observation, noise)

    td = draw_alias_pairs(td, decode, DIM, M)
    noise, chunk = td["alias_noise"], td["alias_chunk"]
    assert noise.shape == (3000, M, DIM)
    torch.testing.assert_close(chunk, Decoder()(td["observation"].unsqueeze(1).expand(-1, M, -1), noise).detach())
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert len(calls) > 1 and max(calls) * M <= 4096  # memory is bounded
    assert not chunk.requires_grad


def test_zero_samples_add_nothing():
    td = make_batch()
    assert "alias_noise" not in draw_alias_pairs(td, Decoder(), DIM, 0).keys()
    assert pick_alias_pair(td) is td


def test_a_pair_is_picked_whole_and_every_pair_in_turn():
    torch.manual_seed(0)
    stored = draw_alias_pairs(make_batch(), Decoder(), DIM, M)
    picked = set()
    for _ in range(60):
        one = pick_alias_pair(stored.copy())
        same = (one["alias_noise"].unsqueeze(1) == stored["alias_noise"]).all(-1)  # (B, M)
        assert (same.sum(1) == 1).all()
        chunk = stored["alias_chunk"][torch.arange(len(same)), same.int().argmax(1)]
        assert torch.equal(one["alias_chunk"], chunk)
        picked |= {int(i) for i in same.int().argmax(1)}
    assert picked == set(range(M))


def test_a_refresh_redraws_some_states_and_leaves_the_rest():
    torch.manual_seed(0)

    def draw(td):
        return draw_alias_pairs(td, Decoder(), DIM, M)

    buffer = offline_buffer(draw(make_batch()))
    before = buffer[:].clone()
    refresh_alias_pairs(buffer, 3, draw)
    after = buffer[:]
    changed = (after["alias_noise"] != before["alias_noise"]).flatten(1).any(1)
    assert 1 <= int(changed.sum()) <= 3
    expected = Decoder()(after["observation"].unsqueeze(1).expand(-1, M, -1), after["alias_noise"]).detach()
    torch.testing.assert_close(after["alias_chunk"], expected)
    rest = [key for key in before.keys(True, True) if key not in ("alias_noise", "alias_chunk")]
    assert (after.select(*rest) == before.select(*rest)).all()


def test_a_share_of_the_pairs_is_what_was_executed():
    batch = make_batch()
    batch.set("action", torch.full((len(batch), DIM), 7.0, dtype=torch.float64))
    td = draw_alias_pairs(batch, Decoder(), DIM, 4, behaviour_fraction=0.5)
    own = (td["alias_noise"] == 7.0).all(-1)
    assert own.sum(1).tolist() == [2] * len(batch)
    executed = batch["next", "executed_chunk"].unsqueeze(1).expand(-1, 2, -1, -1)
    assert torch.equal(td["alias_chunk"][own].view_as(executed), executed)


def test_the_loss_on_a_stored_pair_equals_the_loss_on_a_fresh_noise():
    _, loss = make_losses()
    batch = make_batch()
    torch.manual_seed(5)
    fresh = loss(batch)["loss_noise_aliasing"]
    torch.manual_seed(5)
    noise = torch.randn(len(batch), DIM, dtype=torch.float64)
    batch.set("alias_noise", noise).set("alias_chunk", Decoder()(batch["observation"], noise).detach())
    torch.testing.assert_close(loss(batch)["loss_noise_aliasing"], fresh)


def test_a_stored_pair_costs_no_decode():
    def no_decode(observation, noise):
        raise AssertionError("decoded")

    loss = NoiseAliasingLoss(
        make_q_noise(), lambda s, a: a.flatten(-2)[..., :N].movedim(-1, 0), no_decode, latent_dim=DIM, num_critics=N
    ).double()
    batch = pick_alias_pair(draw_alias_pairs(make_batch(), Decoder(), DIM, M))
    loss(batch)["loss_noise_aliasing"].backward()
