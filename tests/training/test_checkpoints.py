"""Checkpoints: whole or not there, every byte accounted for, nothing in them executed, nobody else's taken."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
from pathlib import Path

import pytest
import torch

from dsrl_torchrl.errors import CheckpointError, NonFiniteError
from dsrl_torchrl.training.checkpoints import Checkpoints, checkpoints_in
from dsrl_torchrl.training.run_state import Counters, RNGState

IDENTITY = {"stage": "online", "seed": 0, "loop": {"utd": 1.0, "replay_size": 10}}


class Holder:
    """A component that keeps what it is given."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def example():
    torch.manual_seed(0)
    shared = torch.randn(3, 4)
    return {
        "net": {"weight": shared, "alias": shared, "a.b/c": torch.arange(5), "flag": torch.tensor(True)},
        "lists": [1, 2.5, None, "text", [torch.zeros(0), {"deep": torch.ones(2, dtype=torch.uint8)}]],
    }


def make(folder, state=None, identity=IDENTITY, **options):
    said = []
    holder, counters = Holder(state), Counters()
    components = {"agent": holder, "counters": counters, "rng": RNGState()}
    return Checkpoints(folder, identity, components, say=said.append, **options), holder, counters, said


def written(folder, steps=(100, 200)):
    checkpoints, _, counters, _ = make(folder, example())
    for step in steps:
        counters.env_steps = step
        checkpoints.save(step)
    return folder


def assert_example(state):
    expected = example()
    assert set(state["net"]) == set(expected["net"])
    for name, tensor in expected["net"].items():
        assert torch.equal(state["net"][name], tensor) and state["net"][name].dtype == tensor.dtype, name
    assert state["lists"][:4] == expected["lists"][:4]
    assert torch.equal(state["lists"][4][1]["deep"], expected["lists"][4][1]["deep"])


def test_what_was_saved_comes_back(tmp_path):
    written(tmp_path)
    before = torch.rand(3), random.random()
    checkpoints, *_ = make(tmp_path / "other", example())
    state = RNGState().state_dict()
    checkpoints.save(7)
    after = torch.rand(3), random.random()
    again, holder, _, said = make(tmp_path / "other")
    assert again.restore() and not said
    assert_example(holder.state)
    assert torch.equal(torch.rand(3), after[0]) and random.random() == after[1]
    assert state.keys() >= {"python", "numpy", "torch_cpu"} and before[1] != after[1]


def test_the_newest_is_taken_and_two_are_kept(tmp_path):
    written(tmp_path, (100, 200, 1_500))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-000000200", "checkpoint-000001500"]
    checkpoints, _, counters, _ = make(tmp_path)
    assert checkpoints.restore() and counters.env_steps == 1_500


def test_only_safetensors_and_json(tmp_path):
    files = [path for path in written(tmp_path).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_nothing_there_is_no_checkpoint(tmp_path):
    checkpoints, _, _, said = make(tmp_path / "none")
    assert not checkpoints.restore() and not said


def test_a_run_that_begins_anew_is_kept_out_of_another_ones_folder(tmp_path):
    checkpoints, *_ = make(written(tmp_path))
    with pytest.raises(CheckpointError, match="holds the checkpoints of a run"):
        checkpoints.start(resume=False)


def damage(path: Path, chance: random.Random) -> str:
    """One random damage; never the same bytes again."""
    data = bytearray(path.read_bytes())
    kind = chance.choice(["truncated", "flipped", "zeroed", "emptied", "longer", "removed"])
    if kind == "truncated":
        data = data[: chance.randrange(len(data))]
    elif kind == "flipped":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "zeroed":
        data = bytearray(len(data))
    elif kind == "emptied":
        data = bytearray()
    elif kind == "longer":
        data += bytes(chance.randrange(1, 9))
    if kind == "removed":
        path.unlink()
    else:
        path.write_bytes(data)
    return kind


def test_no_random_damage_is_accepted(tmp_path):
    """210 of them, in every file; each time the checkpoint before it is taken, with a line that names the damage."""
    chance = random.Random(0)
    source, kinds = written(tmp_path / "source"), set()
    for case in range(210):
        folder = tmp_path / f"case{case}"
        shutil.copytree(source, folder)
        newest = folder / "checkpoint-000000200"
        path = chance.choice(sorted(newest.iterdir()))
        kinds.add((path.name, damage(path, chance)))
        checkpoints, holder, counters, said = make(folder)
        assert checkpoints.restore()
        assert counters.env_steps == 100, f"{path.name}: {kinds}"
        assert_example(holder.state)
        assert len(said) == 1 and str(newest) in said[0] and "taking the one before it" in said[0]
        shutil.rmtree(folder)
    assert len({name for name, _ in kinds}) == 4 and len(kinds) > 20


def test_files_swapped_between_checkpoints_are_refused(tmp_path):
    folder = written(tmp_path)
    old, new = checkpoints_in(folder)
    for name in ("state.json", "manifest.json"):
        shutil.copytree(folder, tmp_path / name)
        shutil.copy(tmp_path / name / old.name / name, tmp_path / name / new.name / name)
        checkpoints, _, counters, said = make(tmp_path / name)
        assert checkpoints.restore() and counters.env_steps == 100 and len(said) == 1
    shutil.copytree(old, folder / "checkpoint-000000900")
    checkpoints, _, counters, said = make(folder)
    assert checkpoints.restore() and counters.env_steps == 200
    assert "is the checkpoint of step 100" in said[0]


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        ({"seed": 7}, "seed is 0 there, 7 here"),
        ({"stage": "offline"}, "stage is online there, offline here"),
        ({"loop": {"utd": 0.5, "replay_size": 10}}, r"loop is \{'utd': 1.0\} there, \{'utd': 0.5\} here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, identity, named):
    checkpoints, _, _, said = make(written(tmp_path), identity=IDENTITY | identity)
    with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
        checkpoints.restore()
    assert len(said) == 2 and re.search(named, said[0])


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    """A pickle in the place of every file, and TorchRL's way to have one read, beside them."""
    source, burst = written(tmp_path / "source"), tmp_path / "burst"
    bomb = pickle.dumps(Bomb(burst))
    names = [path.name for path in checkpoints_in(source)[-1].iterdir()]
    for name in [*names, "other.pkl", "meta.json"]:
        folder = tmp_path / f"with {name}"
        shutil.copytree(source, folder)
        (folder / "checkpoint-000000200" / name).write_bytes(bomb)
        make(folder)[0].restore()
    tensors = {}
    torch.save({"a": Bomb(burst), **tensors}, tmp_path / "zip.pt")
    shutil.copy(tmp_path / "zip.pt", source / "checkpoint-000000200" / "agent.safetensors")
    make(source)[0].restore()
    assert not burst.exists()


def test_an_interrupted_write_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    """Cut at every file and at the rename; what is left over is swept at the next start."""
    folder = written(tmp_path, (100,))
    for cut in range(1, 8):
        calls = 0

        def cutting(original, cut=cut):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == cut:
                    raise OSError(28, "No space left on device")
                return original(*args, **kwargs)

            return call

        checkpoints, _, counters, _ = make(folder, example())
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", cutting(os.fsync))
            try:
                checkpoints.save(200)
            except OSError:
                pass
            else:
                break
        again, _, counters, said = make(folder)
        assert again.restore() and not said
        assert counters.env_steps in (0, 100)
        assert not list(folder.glob(".checkpoint-*"))
    else:
        raise AssertionError("never written")
    assert cut > 5


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    """A power cut: each file and the folder are synced, then renamed, then the parent is synced."""
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (events.append("rename"), rename(self, to))[1])
    written(tmp_path, (100,))
    new = str(tmp_path / ".checkpoint-000000100.new")
    files = ["agent.safetensors", "rng.safetensors", "state.json", "manifest.json"]
    assert events == [*(f"{new}/{name}" for name in files), new, "rename", str(tmp_path)]


def test_leftovers_are_swept_at_the_start(tmp_path):
    written(tmp_path)
    for name in (".checkpoint-000000300.new", ".checkpoint-000000100.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "agent.safetensors").write_bytes(b"part")
    make(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-000000100", "checkpoint-000000200"]


def test_what_is_not_finite_is_never_saved(tmp_path):
    folder = written(tmp_path)
    state = example()
    state["net"]["weight"][1, 2] = float("nan")
    checkpoints, *_ = make(folder, state)
    with pytest.raises(NonFiniteError, match=r"agent .*weight.* is NaN or infinite at step 300"):
        checkpoints.save(300)
    assert make(folder)[0].restore()


@pytest.mark.parametrize(
    "wrong",
    [{"env_steps": -5}, {"env_steps": float("nan")}, {"env_steps": 1e9}, {"updates": "3"}, {"macro_steps": 200_000}],
)
def test_counters_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "macro_steps" not in wrong else "macro steps"):
        Counters().load_state_dict(Counters().state_dict() | wrong)


def test_another_version_of_torch_is_said(tmp_path, monkeypatch):
    folder = written(tmp_path)
    from dsrl_torchrl.training import checkpoints as module

    here = module._versions()
    monkeypatch.setattr(module, "_versions", lambda: here | {"torch": "9.9"})
    checkpoints, _, _, said = make(folder)
    assert checkpoints.restore()
    assert said == [
        f"checkpoint-000000200 was written by torch {here['torch']} (here 9.9): the run goes on, but not bit for bit"
    ]


def test_state_that_does_not_fit_is_named(tmp_path):
    net = torch.nn.Linear(2, 2)
    Checkpoints(tmp_path, IDENTITY, {"agent": net}).save(1)
    said = []
    with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
        Checkpoints(tmp_path, IDENTITY, {"agent": torch.nn.Linear(3, 2)}, say=said.append).restore()
    assert "agent does not fit this run" in said[0] and "\n" not in said[0]


def test_a_manifest_edited_by_hand_is_refused(tmp_path):
    folder = written(tmp_path)
    path = checkpoints_in(folder)[-1] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + " \n")
    checkpoints, _, counters, said = make(folder)
    assert checkpoints.restore() and counters.env_steps == 100 and "manifest.json is damaged" in said[0]
