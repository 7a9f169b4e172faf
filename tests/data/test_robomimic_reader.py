"""Robomimic's and LIBERO's HDF5: what is in the file arrives, and what is wrong with it is one line."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from dsrl_torchrl.cli.folder import demonstration_files
from dsrl_torchrl.data.readers.any_format import read_any
from dsrl_torchrl.data.readers.robomimic import read_robomimic
from dsrl_torchrl.errors import NonFiniteError, UserError

ENTRIES = {"observation": "obs/ee_states+obs/gripper_states", "pixels": "obs/agentview_rgb"}


def write(path, lengths=(3, 2), rewards=None, edit=None):
    """LIBERO's layout with numbers that tell where they are from; ``edit(file)`` before closing."""
    with h5py.File(path, "w") as file:
        for i, length in enumerate(lengths):
            group = file.create_group(f"data/demo_{i}")
            t = np.arange(length)
            group["actions"] = np.stack([t / 10, t + i], 1)
            group["rewards"] = (t == length - 1).astype(np.uint8) if rewards is None else rewards[i]
            group["dones"] = (t == length - 1).astype(np.uint8)
            group["obs/ee_states"] = np.repeat(t[:, None] + 100.0 * i, 6, 1)
            group["obs/gripper_states"] = np.repeat(t[:, None] - 100.0, 2, 1)
            group["obs/agentview_rgb"] = np.arange(length * 4 * 5 * 3, dtype=np.uint8).reshape(length, 4, 5, 3)
        if edit is not None:
            edit(file)
    return path


def test_reads_every_array(tmp_path):
    shapes = {"observation": [8], "pixels": [3, 4, 5]}
    first, second = read_any(write(tmp_path / "d.hdf5"), entries=ENTRIES, action_dim=2, shapes=shapes)
    assert (len(first), len(second)) == (3, 2)
    assert second.observations["observation"].tolist()[:2] == [[100.0] * 6 + [-100.0] * 2, [101.0] * 6 + [-99.0] * 2]
    assert second.action.tolist() == [[0.0, 1.0], [pytest.approx(0.1), 2.0]]
    assert first.success.tolist() == [False, False, True] == first.terminated.tolist()
    with h5py.File(tmp_path / "d.hdf5") as file:
        stored = torch.from_numpy(file["data/demo_0/obs/agentview_rgb"][:])
    assert torch.equal(first.observations["pixels"][:3].permute(0, 2, 3, 1), stored)


def test_the_last_observation_stands_for_the_one_after_it(tmp_path):
    first = read_robomimic(write(tmp_path / "d.hdf5"), entries=ENTRIES)[0]
    for value in first.observations.values():
        assert torch.equal(value[-1], value[-2]) and not torch.equal(value[-2], value[-3])


def test_episodes_are_in_the_order_of_their_numbers(tmp_path):
    lengths = tuple(range(1, 13))
    assert [len(e) for e in read_robomimic(write(tmp_path / "d.hdf5", lengths), entries=ENTRIES)] == list(lengths)


@pytest.mark.parametrize(
    ("rewards", "success"),
    [
        (([0, 1, 1], [0, 0]), [[False, True, True]]),  # the second fails
        (([0.1, 0.4, 0.9], [0.2, 0.3]), [[False, False, True], [False, True]]),  # dense: nothing is told
    ],
)
def test_success_is_a_reward_of_one(tmp_path, rewards, success):
    episodes = read_robomimic(write(tmp_path / "d.hdf5", rewards=rewards), entries=ENTRIES)
    assert [episode.success.tolist() for episode in episodes] == success


def test_without_rewards_every_episode_succeeds_at_its_end(tmp_path):
    path = write(tmp_path / "d.hdf5", edit=lambda file: [file[f"data/demo_{i}"].pop("rewards") for i in (0, 1)])
    assert [e.success.tolist() for e in read_robomimic(path, entries=ENTRIES)] == [[False, False, True], [False, True]]


def test_the_format_shows_in_the_file_whatever_its_name(tmp_path):
    path = write(tmp_path / "trajectory.h5")
    assert len(read_any(path, entries=ENTRIES)) == 2
    assert demonstration_files(path) == (path,)


def put(name, value):
    def edit(file):
        del file["data/demo_1"][name]
        file["data/demo_1"][name] = value

    return edit


def link(file):
    file["data/demo_1/obs"].pop("ee_states")
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["x"] = np.zeros((2, 6))
    file["data/demo_1/obs/ee_states"] = h5py.ExternalLink("other.h5", "/x")


ODD = {
    "no episodes": (lambda file: file["data"].clear(), "has no episodes data/demo_<i>"),
    "words": (put("actions", [["a", "b"], ["c", "d"]]), "actions in demo_1 .* should be numbers"),
    "no actions": (lambda file: file["data/demo_1"].pop("actions"), "truncated or not a robomimic or LIBERO file"),
    "flat actions": (put("actions", np.zeros(2)), r"has no flat actions \[T, action_dim\]"),
    "rewards of another length": (put("rewards", np.zeros(7)), "7 rewards for 2 actions"),
    "another length": (put("obs/ee_states", np.zeros((5, 6))), "5 of obs/ee_states for 2 actions, expected as many"),
    "other sizes": (put("obs/ee_states", np.zeros((2, 5))), r"shape \[7\], the episodes before it have \[8\]"),
    "a vector joined with a picture": (
        put("obs/ee_states", np.zeros((2, 4, 5, 3), dtype=np.uint8)),
        "not all vectors",
    ),
    "depth": (put("obs/agentview_rgb", np.zeros((2, 4, 5, 1), dtype=np.float32)), "or uint8 images"),
    "missing": (lambda file: file["data/demo_1/obs"].pop("ee_states"), "its data sets are actions, dones, obs/agent"),
    "elsewhere": (link, "obs/ee_states in demo_1 of .* lies in another file"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", ODD)
def test_odd_contents_are_one_line(tmp_path, odd):
    edit, match = ODD[odd]
    path = write(tmp_path / "d.hdf5", edit=edit)
    with pytest.raises(UserError, match=match) as error:
        read_any(path, entries=ENTRIES)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_what_is_not_finite_is_named(tmp_path):
    path = write(tmp_path / "d.hdf5", edit=put("obs/ee_states", np.full((2, 6), np.nan)))
    with pytest.raises(NonFiniteError, match=r"observation in demo_1 of .* is NaN or infinite at step 0"):
        read_any(path, entries=ENTRIES)


@pytest.mark.parametrize("kept", [0, 100, 2000, -1])
def test_a_truncated_file_is_one_line(tmp_path, kept):
    path = write(tmp_path / "d.hdf5")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"d\.hdf5 is truncated or not a robomimic or LIBERO file") as error:
        read_any(path, entries=ENTRIES)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="demonstrations not found"):
        read_any(tmp_path / "d.hdf5", entries=ENTRIES)


def test_a_path_from_the_root_would_be_one_episode_for_all(tmp_path):
    with pytest.raises(UserError, match="would be the same data for all episodes"):
        read_any(write(tmp_path / "d.hdf5"), entries={"observation": "/data/demo_0/obs/ee_states"})


def test_rewards_that_are_no_numbers_tell_no_success(tmp_path):
    rewards = (np.array([0, 0, 1.0]), np.full(2, np.nan))
    with pytest.raises(UserError, match=r"demo_1 of .* has rewards that are NaN"):
        read_any(write(tmp_path / "d.hdf5", rewards=rewards), entries=ENTRIES)


def test_no_success_is_one_line(tmp_path):
    with pytest.raises(UserError, match="has no successful episode among 2"):
        read_any(write(tmp_path / "d.hdf5", rewards=([0, 0, 0], [0, 0])), entries=ENTRIES)
