"""Trajectory files that somebody edited, cut, mixed up or poisoned: one line each, and nothing is ever unpickled."""

from __future__ import annotations

import json
import os
import pickle
from functools import partial

import h5py
import numpy as np
import pytest

from dsrl_torchrl.data.readers.any_format import demonstration_files, read_any
from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.errors import UserError
from tests.data.maniskill_trajectory import write


def refused(path, match, **kwargs):
    with pytest.raises(UserError, match=match) as error:
        read_maniskill(path, **kwargs)
    assert "\n" not in str(error.value)
    assert str(path.parent) in str(error.value)


ODD_JSON = {
    "success in words": ([{"episode_id": 0, "success": "false"}], "success: should be true or false, got 'false'"),
    "the same episode three times": ([{"episode_id": 1}] * 3, "names traj_1 3 times"),
    "no episodes": ([], "episodes"),
    "no number": ([{"success": True}], "episode_id: Field required"),
    "a path for a number": ([{"episode_id": "../traj_0"}], "episode_id: Input should be a valid integer"),
    "no list": ({"episode_id": 0}, "episodes: Input should be a valid array"),
    "of another file": ([{"episode_id": 0, "elapsed_steps": 7}], "has 3 steps, its json says 7"),
}


@pytest.mark.parametrize("odd", ODD_JSON)
def test_an_odd_json_is_one_line(tmp_path, odd):
    episodes, match = ODD_JSON[odd]
    refused(write(tmp_path / "d.h5", episodes=episodes), match)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 400, b"[1]", b"null", b'"episodes"', b"\xff\xfe", b'{"env_info": null}']
)
def test_a_damaged_json_is_one_line(tmp_path, content):
    path = write(tmp_path / "d.h5")
    path.with_suffix(".json").write_bytes(content)
    refused(path, r"d\.json is (truncated or not json|not the json)")


def put(name, value, **kwargs):
    def edit(file):
        del file["traj_1"][name]
        if value is not None:
            file["traj_1"].create_dataset(name, data=value, **kwargs)

    return edit


def replace_by_dataset(file):
    del file["traj_1"]
    file["traj_1"] = np.zeros(3)


WORDS = np.array(["false", "true"], dtype=h5py.string_dtype())
ODD_H5 = {
    "flags in words": (put("success", WORDS), "success in traj_1 of .* should be flags, but is of type object"),
    "actions in words": (put("actions", [["a", "b"], ["c", "d"]]), "actions in traj_1 .* should be numbers"),
    "complex numbers": (put("obs", np.zeros((3, 5), dtype=complex)), "obs in traj_1 .* should be numbers"),
    "other observations": (
        put("obs", np.zeros((3, 4))),
        r"of shape \[4\], the episodes before it have \[5\]",
    ),
    "other actions": (put("actions", np.zeros((2, 3))), r"actions of shape \[3\], the episodes before it have \[2\]"),
    "no steps": (put("actions", np.zeros((0, 2))), "3 observations for 0 actions"),
    "no group": (replace_by_dataset, "truncated or not a ManiSkill"),
    "beyond float32": (put("obs", np.full((3, 5), 1e300)), "observation in traj_1 .* is NaN or infinite at step 0"),
    "more than a machine holds": (
        lambda file: (
            file["traj_1"].pop("obs"),
            file["traj_1"].create_dataset("obs", (2**40, 2**20), "f8", chunks=True),
        ),
        "truncated or not a ManiSkill",
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("odd", ODD_H5)
def test_odd_contents_are_one_line(tmp_path, odd):
    edit, match = ODD_H5[odd]
    refused(write(tmp_path / "d.h5", edit=edit), match)


def link_dataset(file):
    file["traj_1"].pop("obs")
    file["traj_1"]["obs"] = h5py.ExternalLink("other.h5", "/traj_1/obs")


def link_episode(file):
    file.pop("traj_1")
    file["traj_1"] = h5py.ExternalLink("other.h5", "/traj_1")


def make_virtual(file):
    file["traj_1"].pop("obs")
    layout = h5py.VirtualLayout((3, 5), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "traj_1/obs", shape=(3, 5))
    file["traj_1"].create_virtual_dataset("obs", layout)


def store_outside(file):
    file["traj_1"].pop("obs")
    outside = os.path.join(os.path.dirname(file.filename), "raw")
    file["traj_1"].create_dataset("obs", (3, 5), "f4", external=[(outside, 0, 60)])


@pytest.mark.parametrize("edit", [link_dataset, link_episode, make_virtual, store_outside])
def test_data_in_other_files_are_refused(tmp_path, edit):
    """A hash of the h5 would not tell when they change."""
    write(tmp_path / "other.h5")
    (tmp_path / "raw").write_bytes(bytes(60))
    refused(write(tmp_path / "d.h5", edit=edit), "in traj_1 of .* lies in another file that the h5 only links to")


def damage(data: bytes, kind: str, generator) -> bytes:
    if kind == "truncated":
        return data[: generator.integers(len(data))]
    begin = int(generator.integers(len(data)))
    count = int(generator.integers(1, 400))
    new = bytes(min(count, len(data) - begin)) if kind == "zeroed" else generator.bytes(min(4, len(data) - begin))
    return data[:begin] + new + data[begin + len(new) :]


@pytest.mark.parametrize("kind", ["truncated", "zeroed", "overwritten"])
def test_random_damage_never_gives_a_traceback(tmp_path, kind):
    """What HDF5 cannot notice, a changed number, is noticed by the hash in the run's identity instead."""
    whole = write(tmp_path / "d.h5").read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(100):
        (tmp_path / "d.h5").write_bytes(damage(whole, kind, generator))
        try:
            read_maniskill(tmp_path / "d.h5")
        except UserError as error:
            assert "\n" not in str(error) and "d.h5" in str(error)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path):
    fired = tmp_path / "fired"
    bomb = pickle.dumps(Bomb(fired))

    def as_object(file):
        del file["traj_1/success"]
        rows = np.empty(2, dtype=object)
        rows[:] = [np.frombuffer(bomb, np.uint8)] * 2
        file["traj_1"].create_dataset("success", data=rows, dtype=h5py.vlen_dtype(np.uint8))
        file["traj_1"].attrs["pickle"] = np.void(bomb)

    refused(write(tmp_path / "d.h5", edit=as_object), "success in traj_1 of .* should be flags")
    path = tmp_path / "d.h5"
    path.write_bytes(bomb)
    path.with_suffix(".json").write_text(json.dumps({"episodes": [{"episode_id": 0}]}))
    refused(path, "not a ManiSkill trajectory file")
    path.unlink()
    write(path).with_suffix(".json").write_bytes(bomb)
    refused(path, "truncated or not json")
    assert not fired.exists()
    pickle.loads(bomb)
    assert fired.exists()  # the bomb is live


@pytest.mark.parametrize("find", [demonstration_files, partial(read_any, entries={})])
def test_an_h5_that_is_none_is_named_itself(tmp_path, find):
    """A download that was cut, with no json beside it: the h5 is to blame."""
    (tmp_path / "mine.h5").write_text("no HDF5")
    with pytest.raises(UserError, match=r"mine\.h5 cannot be opened as HDF5"):
        find(tmp_path / "mine.h5")
