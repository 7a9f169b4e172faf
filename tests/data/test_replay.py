"""Replay that mixes online and offline transitions."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.checkpoint import Checkpoint

from dsrl_torchrl.data.replay import MixedReplay


def transitions(n, value, **more):
    return TensorDict(
        {"observation": torch.full((n, 2), value), "next": {"reward": torch.full((n, 1), value)}} | more, [n]
    )


@pytest.mark.parametrize(("fraction", "share"), [(0.25, 4), (0.5, 8), (0.9, 14), (0.99, 15)])
def test_the_fraction_is_exact_and_only_common_entries_stay(fraction, share):
    replay = MixedReplay(100, 16, transitions(5, 1.0), fraction)
    replay.online.extend(transitions(50, 0.0, action=torch.zeros(50, 3)))
    for _ in range(3):
        batch = replay.sample(2)
        assert batch.shape == (2, 16)
        assert batch["observation"][..., 0].sum(1).tolist() == [share, share]
        assert "action" not in batch.keys()


@pytest.mark.parametrize("offline", [None, transitions(5, 1.0)])
def test_no_fraction_is_online_data_alone(offline):
    replay = MixedReplay(100, 16, offline, 0.0)
    replay.online.extend(transitions(50, 0.0, action=torch.zeros(50, 3)))
    batch = replay.sample(1)
    assert batch.shape == (1, 16)
    assert batch["observation"].sum() == 0
    assert "action" in batch.keys()


def size_on_disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def numbered(start, stop):
    return TensorDict({"observation": torch.arange(start, stop, dtype=torch.float32).unsqueeze(-1)}, [stop - start])


@pytest.mark.parametrize("collected", [0, 30, 100, 130], ids=["empty", "partly", "full", "wrapped"])
def test_a_checkpoint_holds_what_was_collected_and_no_more(tmp_path, collected):
    replay = MixedReplay(100, 16)
    if collected:
        replay.online.extend(numbered(0, collected))
    Checkpoint(replay=replay).save(tmp_path / "saved")
    stored = min(collected, 100)
    assert (
        sum(path.stat().st_size for path in (tmp_path / "saved").rglob("*.memmap")) == (4 + 8) * stored
    )  # and TorchRL's index
    again = MixedReplay(100, 16)
    Checkpoint(replay=again).load(tmp_path / "saved")
    assert len(again.online) == stored
    for buffer in (replay, again):
        buffer.online.extend(numbered(200, 205))  # goes to the same places
    assert torch.equal(again.online[:]["observation"], replay.online[:]["observation"])
    torch.manual_seed(0)
    here = replay.sample(1)
    torch.manual_seed(0)
    assert torch.equal(again.sample(1)["observation"], here["observation"])


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    replay = MixedReplay(100, 16)
    replay.online.extend(numbered(0, 30))
    Checkpoint(replay=replay).save(tmp_path / "saved")
    assert {path.suffix for path in (tmp_path / "saved").rglob("*") if path.is_file()} == {".json", ".memmap"}
    assert size_on_disk(tmp_path / "saved") < 10_000


def test_a_checkpoint_of_a_larger_buffer_is_refused(tmp_path):
    replay = MixedReplay(100, 16)
    replay.online.extend(numbered(0, 100))
    Checkpoint(replay=replay).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="100 transitions, but the buffer has room for 50"):
        MixedReplay(50, 16).load_state_dict(replay.state_dict())


def test_batches_are_where_the_buffer_is():
    replay = MixedReplay(10, 4, transitions(5, 1.0), 0.5, device="meta")
    assert replay.online.storage.device.type == "meta"
