"""Nothing of a foreign file runs, and what cannot be read is one line."""

from __future__ import annotations

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.policies.adapters.foreign_files import Inert, read_json, read_npz, read_torch_file


class Touches:
    """Makes a file when it is unpickled by pickle itself."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Plain:
    def __init__(self):
        self.value = 3


def test_a_class_that_is_not_here_stays_inert(tmp_path):
    torch.save({"model": {"w": torch.ones(2)}, "extra": Plain(), "kind": Plain}, tmp_path / "a.pt")
    content = read_torch_file(tmp_path / "a.pt")
    assert torch.equal(content["model"]["w"], torch.ones(2))
    assert isinstance(content["extra"], Inert)
    assert content["extra"].state == {"value": 3}


def test_nothing_runs(tmp_path):
    torch.save({"model": Touches(tmp_path / "ran")}, tmp_path / "a.pt")
    try:
        content = read_torch_file(tmp_path / "a.pt")
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(content["model"], Inert)
    assert not (tmp_path / "ran").exists()


def test_nothing_runs_of_a_bare_pickle(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Touches(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        read_torch_file(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 torn"])
def test_what_is_no_file_of_torch(tmp_path, content):
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)) as error:
        read_torch_file(path)
    assert "\n" not in str(error.value)


def test_a_torn_file(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=str(path)):
        read_torch_file(path)


def test_missing_files(tmp_path):
    for read in (read_torch_file, read_json, lambda path: read_npz(path, ["a"])):
        with pytest.raises(CheckpointError, match=r"cannot read .*nowhere: No such file"):
            read(tmp_path / "nowhere")


def test_a_whole_module_is_not_its_weights(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"save its state_dict\(\)"):
        read_torch_file(tmp_path / "a.pt")


def test_arrays_of_numbers_only(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.arange(3), b=np.array([{}], dtype=object))
    assert read_npz(tmp_path / "a.npz", ["a"])["a"].tolist() == [0, 1, 2]
    for name in ("b", "c"):
        with pytest.raises(CheckpointError, match="should hold the arrays"):
            read_npz(tmp_path / "a.npz", [name])
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("a.npy", b"torn")
    with pytest.raises(CheckpointError, match="should hold the arrays"):
        read_npz(tmp_path / "b.npz", ["a"])


def test_a_flipped_bit_of_the_weights_is_found(tmp_path):
    """PyTorch itself reads on: it would be another policy."""
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(1000)}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(np.ones(4, np.float32).tobytes()) + 402] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged, the checksum of a/data/0 in it"):
        read_torch_file(path)
