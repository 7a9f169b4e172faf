"""Plain arrays as episodes: where they end, what follows them, and mistakes in one line."""

from __future__ import annotations

from functools import partial

import h5py
import numpy as np
import pytest
import torch

from dsrl_torchrl.data.readers.any_format import demonstration_files, read_any
from dsrl_torchrl.errors import NonFiniteError, UserError

ENTRIES = {"observation": "states"}


def arrays(**more):
    """Two episodes of 3 and 2 steps; every number is another."""
    states = np.arange(10.0).reshape(5, 2)
    return {"states": states, "actions": 100 + np.arange(5.0).reshape(5, 1), "traj_lengths": np.array([3, 2])} | more


def write(path, values):
    np.savez(path, **{name: value for name, value in values.items() if value is not None})
    return path


def test_dppos_arrays(tmp_path):
    path = write(tmp_path / "train.npz", arrays(rewards=np.zeros(5)))
    first, second = read_any(path, entries=ENTRIES, action_dim=1, shapes={"observation": [2]})
    assert first.action.flatten().tolist() == [100, 101, 102] and second.action.flatten().tolist() == [103, 104]
    assert second.observations["observation"].tolist() == [[6, 7], [8, 9], [8, 9]]  # the last stands for what follows
    assert first.observations["observation"].dtype == torch.float32
    assert demonstration_files(path) == (path,)


def test_dppos_normalised_arrays_come_back_in_the_envs_units(tmp_path):
    """``2 (x - min) / (max - min + 1e-6) - 1``, as its scripts write them."""
    raw = arrays()
    ranges = {"obs_min": [0.0, 1.0], "obs_max": [8.0, 9.0], "action_min": [100.0], "action_max": [104.0]}
    values = raw | {
        name: 2 * (raw[name] - ranges[low]) / (np.subtract(ranges[high], ranges[low]) + 1e-6) - 1
        for name, low, high in (("states", "obs_min", "obs_max"), ("actions", "action_min", "action_max"))
    }
    path, beside = write(tmp_path / "train.npz", values), tmp_path / "normalization.npz"
    np.savez(beside, **ranges)
    assert demonstration_files(path) == (path, beside)
    episodes = read_any(path, entries=ENTRIES)
    torch.testing.assert_close(torch.cat([one.action for one in episodes]).numpy(), raw["actions"].astype(np.float32))
    observed = torch.cat([one.observations["observation"][:-1] for one in episodes])
    torch.testing.assert_close(observed.numpy(), raw["states"].astype(np.float32))
    with pytest.raises(
        UserError, match=r"states should be in \[-1, 1\], as normalization.npz lies beside it, is up to 9"
    ):
        read_any(write(path, raw), entries=ENTRIES)
    write(path, values)
    for low, message in (
        ([0.0], r"should have obs_min and obs_max, numbers of the shape \[2\] of train.npz's states"),
        (["a", "b"], "should have obs_min and obs_max, numbers"),
        ([np.nan, 0.0], "obs_min should be below obs_max, and both finite"),
        ([0.0, 10.0], "obs_min should be below obs_max, and both finite"),
    ):
        np.savez(beside, **(ranges | {"obs_min": low}))
        with pytest.raises(UserError, match=message):
            read_any(path, entries=ENTRIES)


def test_a_plus_joins_arrays_and_numbers_count_as_vectors(tmp_path):
    path = write(tmp_path / "a.npz", arrays(angle=np.arange(5.0) / 10))
    _, second = read_any(path, entries={"observation": "angle+states"})
    np.testing.assert_allclose(second.observations["observation"], [[0.3, 6, 7], [0.4, 8, 9], [0.4, 8, 9]], rtol=1e-6)
    with pytest.raises(UserError, match="joins arrays that are not all vectors"):
        pictures = np.zeros((5, 4, 4, 3), np.uint8)
        read_any(write(tmp_path / "b.npz", arrays(seen=pictures)), entries={"observation": "states+seen"})


def test_a_file_of_d4rl_is_named(tmp_path):
    with h5py.File(tmp_path / "hopper.hdf5", "w") as file:
        file["actions"] = np.zeros((5, 1))
    for read in (demonstration_files, partial(read_any, entries=ENTRIES)):
        with pytest.raises(UserError, match="is a file of D4RL, whose arrays are read as an npz"):
            read(tmp_path / "hopper.hdf5")


def test_a_layout_of_ones_own_is_named(tmp_path):
    path = tmp_path / "mine.h5"
    with h5py.File(path, "w") as file:
        file["episode_0/actions"] = np.zeros((3, 2))
    for read in (demonstration_files, partial(read_any, entries={"observation": "obs"})):
        with pytest.raises(UserError, match=r"neither ManiSkill's .* nor robomimic's .*numpy\.savez"):
            read(path)


def test_d4rls_arrays(tmp_path):
    flags = {"terminals": np.array([0, 0, 1, 0, 0]), "timeouts": np.array([False] * 4 + [True])}
    values = arrays(traj_lengths=None, next_states=arrays()["states"] + 0.5, **flags)
    first, second = read_any(write(tmp_path / "a.npz", values), entries=ENTRIES)
    assert first.terminated.tolist() == [False, False, True] and not first.truncated.any()
    assert second.truncated.tolist() == [False, True] and not second.terminated.any()
    assert first.observations["observation"][-1].tolist() == [4.5, 5.5]


def test_episodes_without_the_success_that_the_file_tells_are_left_out(tmp_path):
    (episode,) = read_any(write(tmp_path / "a.npz", arrays(success=np.array([0, 0, 0, 0, 1]))), entries=ENTRIES)
    assert episode.success.tolist() == [False, True]


def test_flags_in_a_column_are_flags(tmp_path):
    """A flag [n, 1] would broadcast with the steps."""
    episodes = read_any(write(tmp_path / "a.npz", arrays(success=np.array([[0], [0], [1], [0], [1]]))), entries=ENTRIES)
    assert [episode.success.tolist() for episode in episodes] == [[False, False, True], [False, True]]


def test_an_array_alone_is_no_npz(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    path = (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UserError, match="not an npz of plain arrays"):
        read_any(path, entries=ENTRIES)


def test_pictures(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3), dtype=np.uint8)
    first, _ = read_any(write(tmp_path / "a.npz", arrays(seen=pictures)), entries=ENTRIES | {"pixels": "seen"})
    assert first.observations["pixels"].shape == (4, 3, 4, 6)
    assert (first.observations["pixels"][1].permute(1, 2, 0).numpy() == pictures[1]).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"states": None}, "no array 'states'; it has actions, traj_lengths; set task.demonstrations.entries"),
        ({"actions": None}, "no array 'actions'"),
        ({"traj_lengths": None}, "does not tell where episodes end"),
        ({"traj_lengths": np.array([3, 3])}, "should add up to the 5 actions"),
        ({"states": np.zeros((4, 2))}, r"states should be 5 rows of numbers, is \(4, 2\)"),
        ({"states": np.zeros((5, 2, 2))}, r"states should be vectors \[n, d\]"),
        ({"states": np.array([object()] * 5)}, "is truncated or not an npz of plain arrays"),
        ({"success": np.zeros(5)}, "no successful episode among 2"),
        ({"actions": np.array(1.0)}, r"actions should be \[n, action_dim\], is of shape \[\]"),
        ({"states": np.array(1.0)}, "states should be 5 rows of numbers"),
        ({"success": np.array([0, 0, 0.5, 0, 1])}, "success should be 5 flags, 0 or 1"),
        ({"traj_lengths": None, "terminals": np.full(5, np.nan)}, "terminals should be 5 flags, 0 or 1"),
        ({"traj_lengths": None, "terminals": np.zeros((5, 2))}, "terminals should be 5 flags, 0 or 1"),
        ({"next_states": np.zeros((5, 3))}, r"next_states is of shape \[3\], states \[2\]"),
        ({"actions": np.zeros((5, 2))}, "has 2-d actions, the task has 1-d ones"),
    ],
)
def test_mistakes_are_one_line(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        read_any(write(tmp_path / "a.npz", arrays(**more)), entries=ENTRIES, action_dim=1)


def test_damaged_missing_and_not_finite(tmp_path):
    path = write(tmp_path / "a.npz", arrays())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="truncated"):
        read_any(path, entries=ENTRIES)
    with pytest.raises(UserError, match="not found"):
        read_any(tmp_path / "b.npz", entries=ENTRIES)
    with pytest.raises(NonFiniteError, match="observation in episode 1"):
        read_any(write(path, arrays(states=np.diag([1, 1, 1, np.nan, 1])[:, :4])), entries=ENTRIES)
