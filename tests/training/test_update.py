"""What one update reads of its batch."""

from __future__ import annotations

import torch

from benchmarks.latent_update import make_loop
from benchmarks.setting import Setting
from dsrl_torchrl.data.decoded_pairs import pick_alias_pair


def test_the_imitating_actor_reads_evenly_spaced_states(monkeypatch):
    """Online transitions come first in a batch, offline ones last: both stay in proportion."""
    setting = Setting(num_critics=2, width=8, batch_size=32, base_width=8)
    loop = make_loop(setting, setting.algorithm("dsrl_na", "algorithm.actor_batch_size=12"), 100)
    update, batch = loop.update.update, pick_alias_pair(loop.replay.sample(1))[0]
    read = []
    whole = update.aw_mle.forward
    monkeypatch.setattr(update.aw_mle, "forward", lambda td: read.append(td["observation"]) or whole(td))
    update(batch)
    update.actor_batch_size = 64  # more than there are
    update(batch)
    index = [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29]
    assert torch.equal(read[0], batch["observation"][index])
    assert torch.equal(read[1], batch["observation"])
