"""Images of a replay buffer, every different frame once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.data.frame_pool import FramePool
from dsrl_torchrl.data.replay import Replay

SIZE = 3 * 8 * 8


def frames(*values: int) -> torch.Tensor:
    """``[n, 3, 8, 8]`` of one shade each."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def walk(first: int, last: int) -> TensorDict:
    """An episode whose step t shows the shade t, with a history of two frames."""
    now, after = torch.arange(first, last), torch.arange(first + 1, last + 1)

    def stack(t):
        return torch.cat([frames(*(t - 1).clamp(min=first).tolist()), frames(*t.tolist())], 1)

    return TensorDict({"pixels": stack(now), "next": {"pixels": stack(after), "t": after}}, [len(now)])


@pytest.mark.parametrize("memmap", [False, True])
def test_what_is_taken_comes_back(memmap):
    torch.manual_seed(0)
    pool = FramePool(memmap)
    shapes = {"front": (9, 6, 5), "wrist": (4, 7, 3)}  # three frames of three channels, and one of four
    data = TensorDict({key: torch.randint(256, (40, *shape), dtype=torch.uint8) for key, shape in shapes.items()}, [40])
    data["next"] = TensorDict({key: data[key].flip(0) for key in shapes} | {"reward": torch.randn(40, 1)}, [40])
    packed = pool.take(data)
    assert {key: tuple(packed[key].shape) for key in shapes} == {"front": (40, 3), "wrist": (40, 1)}
    assert (pool.give(packed) == data).all()
    index = torch.randint(40, (4, 5))
    assert (pool.give(packed[index]) == data[index]).all()


def test_a_frame_is_kept_once_and_as_long_as_it_is_shown():
    pool = FramePool()
    first, second = pool.take(walk(0, 10)), pool.take(walk(100, 105))
    assert pool.nbytes == (11 + 6) * SIZE  # shades 0 to 10 and 100 to 105
    pool.release(first[:4])  # still shown: 3 in the histories of what follows
    assert pool.nbytes == (8 + 6) * SIZE
    assert (pool.give(first[4:])["pixels"] == walk(0, 10)[4:]["pixels"]).all()
    pool.release(first[4:])
    assert pool.nbytes == 6 * SIZE
    again = pool.take(walk(50, 60))  # in the places that are free
    assert (pool.give(again) == walk(50, 60)).all() and (pool.give(second) == walk(100, 105)).all()


def test_a_buffer_that_is_full_keeps_the_frames_of_what_it_holds():
    replay = Replay(16, 4)
    for first in range(0, 60, 6):
        replay.extend(walk(first, first + 6))
        newest = replay._online[:]
        shown = replay._pool.give(newest)
        assert (shown["next", "pixels"][:, 3, 0, 0] == shown["next", "t"]).all()
    assert sorted(shown["next", "t"].tolist()) == list(range(45, 61))
    different = {int(shade) for part in (shown, shown["next"]) for shade in part["pixels"][:, ::3, 0, 0].flatten()}
    assert replay._pool.nbytes == len(different) * SIZE
    batch = replay.sample(2)
    assert batch["pixels"].shape == (2, 4, 6, 8, 8) and batch["pixels"].dtype == torch.uint8


def test_offline_and_online_frames_share_the_pool_but_not_the_checkpoint():
    replay = Replay(16, 4, walk(0, 10), 0.5)
    replay.extend(walk(5, 12))
    assert replay._pool.nbytes == 13 * SIZE
    saved = replay.state_dict()
    assert {shape: len(kept) for shape, kept in saved["images"]["frames"].items()} == {"3x8x8": 8}
    again = Replay(16, 4, walk(0, 10), 0.5)
    again.load_state_dict(saved)
    again.load_state_dict(saved)  # in place of what it had
    assert again._pool.nbytes == 13 * SIZE
    torch.manual_seed(0)
    expected = replay.sample(3)
    torch.manual_seed(0)
    assert (again.sample(3) == expected).all()
    for value in range(100, 130):
        again.extend(walk(value, value + 1))
    assert (again._pool.give(again.offline[:]).exclude("index") == walk(0, 10)).all()


@pytest.mark.parametrize("memmap", [False, True])
def test_frames_of_several_blocks(monkeypatch, memmap):
    monkeypatch.setattr("dsrl_torchrl.data.frame_pool.BLOCK", 4)
    replay = Replay(16, 4, walk(100, 107), 0.5, memmap=memmap)
    for first in range(0, 60, 6):
        replay.extend(walk(first, first + 6))
        shown = replay._pool.give(replay._online[:])
        assert (shown["next", "pixels"][:, 3, 0, 0] == shown["next", "t"]).all()
    assert (replay._pool.give(replay.offline[:]).exclude("index") == walk(100, 107)).all()
    (shelf,) = replay._pool._shelves.values()
    assert len(shelf._blocks) <= 8  # 8 frames offline, at most 20 of 16 + 6 transitions: what is free is taken again


def test_room_for_many_transitions_takes_no_memory_before_they_come():
    replay = Replay(10**9, 4)  # of more bytes than any machine has
    pixels = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    packed = replay._pool.take(TensorDict({"pixels": pixels, "next": {"pixels": pixels}}, [2]))
    assert (replay._pool.give(packed)["pixels"] == pixels).all()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells what is mapped")
def test_what_is_on_disk_is_neither_in_memory_nor_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    replay = Replay(16, 4, memmap=True)
    before = mapped("/dev/shm/pym-")
    replay.extend(walk(0, 10))
    assert mapped("/dev/shm/pym-") == before
    assert mapped(f"{tmp_path}/dsrl-frames-") and mapped(f"{tmp_path}/dsrl-replay-")
    assert not list(tmp_path.iterdir())
    for first in range(10, 40, 10):
        replay.extend(walk(first, first + 10))
    assert (replay._pool.give(replay._online[:])["next", "pixels"][:, 3, 0, 0] == replay._online[:]["next", "t"]).all()


def mapped(where: str) -> set[str]:
    return {line.split()[5] for line in Path("/proc/self/maps").read_text().splitlines() if f" {where}" in line}
