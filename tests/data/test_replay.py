"""Replay that mixes online and offline transitions."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage

from dsrl_torchrl.data.replay import Replay, has_images, transition_bytes
from dsrl_torchrl.training.checkpoints import Checkpoints

STATE = ("agent", "state")


def transitions(n, value, **more):
    return TensorDict(
        {"observation": torch.full((n, 2), value), "next": {"reward": torch.full((n, 1), value)}} | more, [n]
    )


def camera_transitions(n, value=0):
    """Pixels and a nested float64 state, s and s'."""
    observations = {
        "pixels": torch.full((n, 3, 8, 8), value, dtype=torch.uint8),
        "agent": {"state": torch.full((n, 2), value).double()},
    }
    following = {
        **observations,
        "reward": torch.full((n, 1), float(value)),
        "done": torch.zeros(n, 1, dtype=torch.bool),
    }
    return TensorDict({**observations, "next": following}, [n])


@pytest.mark.parametrize(("fraction", "share"), [(0.25, 4), (0.5, 8), (0.9, 14), (0.99, 15)])
def test_the_fraction_is_exact_and_only_common_entries_stay(fraction, share):
    replay = Replay(100, 16, transitions(5, 1.0), fraction)
    replay.extend(transitions(50, 0.0, action=torch.zeros(50, 3)))
    for _ in range(3):
        batch = replay.sample(2)
        assert batch.shape == (2, 16)
        assert batch["observation"][..., 0].sum(1).tolist() == [share, share]
        assert "action" not in batch.keys()


def test_prefilled_they_are_drawn_like_everything_else():
    """Their share is that of what is stored, at first all but one; one stays."""
    replay, shares = Replay(3_000, 16, transitions(20, 1.0), None), []
    for n in (1, 19, 40, 240, 2_700):
        replay.extend(transitions(n, 0.0, action=torch.zeros(n, 3)))
        batch = replay.sample(2)
        assert batch.shape == (2, 16) and "action" not in batch.keys()
        shares.append(batch["observation"][..., 0].sum(1).tolist())
    assert shares == [[share, share] for share in (15, 8, 4, 1, 1)]
    assert Replay(10, 16, None, None).offline_share == 0


@pytest.mark.parametrize("offline", [None, transitions(5, 1.0)])
def test_no_fraction_is_online_data_alone(offline):
    replay = Replay(100, 16, offline, 0.0)
    replay.extend(transitions(50, 0.0, action=torch.zeros(50, 3)))
    batch = replay.sample(1)
    assert batch.shape == (1, 16)
    assert batch["observation"].sum() == 0
    assert "action" in batch.keys()


def test_a_fraction_of_one_is_offline_data_alone():
    replay = Replay(0, 16, transitions(5, 1.0, action=torch.zeros(5, 3)), 1.0)
    batch = replay.sample(3)
    assert batch.shape == (3, 16)
    assert (batch["observation"] == 1).all() and (batch["next", "reward"] == 1).all()
    assert "action" in batch.keys()
    assert len(replay) == 0  # of online transitions


def test_the_oldest_make_room():
    replay = Replay(10, 4)
    assert len(replay) == 0
    for value in range(4):
        replay.extend(transitions(4, float(value)))
    assert len(replay) == 10
    assert replay.sample(50)["observation"].unique().tolist() == [1, 2, 3]


@pytest.mark.parametrize("memmap", [False, True])
def test_named_entries_keep_dtype_and_place(memmap):
    replay = Replay(20, 8, camera_transitions(5, 200), 0.5, memmap=memmap)
    replay.extend(camera_transitions(10, 7))
    batch = replay.sample(2)
    for side in (batch, batch["next"]):
        assert side["pixels"].dtype == torch.uint8 and side["pixels"].shape == (2, 8, 3, 8, 8)
        assert side[STATE].dtype == torch.float64
        assert (side["pixels"][..., 0, 0, 0] == side[STATE][..., 0]).all()  # a transition's entries stay together
    assert batch["pixels"][..., 0, 0, 0].tolist() == [[7] * 4 + [200] * 4] * 2
    assert isinstance(replay._online.storage, LazyMemmapStorage) is memmap


def test_states_are_stored_on_the_learners_device_and_images_on_the_cpu():
    states = Replay(10, 4, transitions(5, 1.0), 0.5, device="meta")
    states.extend(transitions(5, 0.0))
    assert states._online.storage.device.type == states.offline.storage.device.type == "meta"
    images = Replay(10, 4, camera_transitions(5), 0.5, device="meta")
    images.extend(camera_transitions(5))
    assert images._online.storage.device.type == images.offline.storage.device.type == "cpu"
    for replay in (states, images):
        batch = replay.sample(2)
        assert {value.device.type for value in batch.values(True, True)} == {"meta"}
        assert batch.device.type == "meta"
    resumed = Replay(10, 4, device="meta")
    resumed.load_state_dict(images.state_dict())
    assert resumed._online.storage.device.type == "cpu"


def test_size_and_kind_of_a_transition():
    assert has_images(camera_transitions(2)) and not has_images(transitions(2, 0.0))
    flags = TensorDict({"bytes": torch.zeros(2, 4, dtype=torch.uint8), "picture": torch.zeros(2, 3, 8, 8)}, [2])
    assert not has_images(flags)  # a vector of bytes, and floats that are no longer an image as it came
    assert transition_bytes(camera_transitions(5)) == 2 * 3 * 8 * 8 + 2 * 2 * 8 + 4 + 1


def size_on_disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def numbered(start, stop):
    return TensorDict({"observation": torch.arange(start, stop, dtype=torch.float32).unsqueeze(-1)}, [stop - start])


def stored(replay):
    return replay._pool.give(replay._online[:])


@pytest.mark.parametrize("collected", [0, 30, 100, 130], ids=["empty", "partly", "full", "wrapped"])
def test_a_checkpoint_holds_what_was_collected_and_no_more(tmp_path, collected):
    replay = Replay(100, 16)
    if collected:
        replay.extend(numbered(0, collected))
    Checkpoints(tmp_path / "saved", {}, {"replay": replay}).save(1)
    count = min(collected, 100)
    assert size_on_disk(tmp_path / "saved") < (4 + 8) * count + 2_000  # and TorchRL's index; the rest describes it
    again = Replay(100, 16)
    assert Checkpoints(tmp_path / "saved", {}, {"replay": again}).restore()
    assert len(again) == count
    for buffer in (replay, again):
        buffer.extend(numbered(200, 205))  # goes to the same places
    assert torch.equal(stored(again)["observation"], stored(replay)["observation"])
    torch.manual_seed(0)
    here = replay.sample(1)
    torch.manual_seed(0)
    assert torch.equal(again.sample(1)["observation"], here["observation"])


@pytest.mark.parametrize("memmap", [False, True])
@pytest.mark.parametrize("collected", [30, 130], ids=["partly", "wrapped"])
def test_a_checkpoint_of_named_entries(tmp_path, collected, memmap):
    """Names with dots and slashes too: they are the user's."""
    replay = Replay(100, 16, memmap=memmap)
    data = camera_transitions(collected)
    data["pixels"][:, 0, 0, 0] = torch.arange(collected)
    data["a.b"] = data["next", "x/y"] = torch.arange(collected)
    for part in data.split(10):
        replay.extend(part)
    Checkpoints(tmp_path / "saved", {}, {"replay": replay}).save(1)
    again = Replay(100, 16, memmap=memmap)
    assert Checkpoints(tmp_path / "saved", {}, {"replay": again}).restore()
    for buffer in (replay, again):
        buffer.extend(data[:5])
    assert set(stored(again).keys(True, True)) == set(stored(replay).keys(True, True))
    for key, value in stored(replay).items(True, True):
        got = stored(again).get(key)
        assert got.dtype == value.dtype and torch.equal(got, value), key


def test_a_checkpoint_of_a_larger_buffer_is_refused():
    replay = Replay(100, 16)
    replay.extend(numbered(0, 100))
    with pytest.raises(ValueError, match="100 transitions, but the buffer has room for 50"):
        Replay(50, 16).load_state_dict(replay.state_dict())


def test_a_full_buffer_goes_on_in_a_larger_one():
    """By age: what was collected first makes room first, and no place is sampled that was never written."""
    replay, larger = Replay(50, 16), Replay(120, 16)
    for start in range(0, 60, 20):  # the last ones go where the first ones were
        replay.extend(numbered(start, start + 20))
    larger.load_state_dict(replay.state_dict())
    assert stored(larger)["observation"].squeeze().tolist() == list(range(10, 60))
    larger.extend(numbered(60, 160))
    kept = stored(larger)["observation"].squeeze()
    assert sorted(kept.tolist()) == list(range(40, 160))
