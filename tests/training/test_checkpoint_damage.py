"""Every byte of a checkpoint is accounted for, whatever is damaged, cut, swapped or put there to be executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import torch

from dsrl_torchrl.training.checkpoints import checkpoints_in

from .checkpoint_cases import assert_example, example, make, written


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


def test_a_manifest_edited_by_hand_is_refused(tmp_path):
    folder = written(tmp_path)
    path = checkpoints_in(folder)[-1] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2, sort_keys=True) + " \n")
    checkpoints, _, counters, said = make(folder)
    assert checkpoints.restore() and counters.env_steps == 100 and "manifest.json is damaged" in said[0]


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
    torch.save({"a": Bomb(burst)}, tmp_path / "zip.pt")
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
        counters.env_steps = 200
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
        assert counters.env_steps in (100, 200)
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
    files = ["agent.safetensors", "manifest.json", "rng.safetensors", "state.json"]
    assert events == [*(f"{new}/{name}" for name in files), new, "rename", str(tmp_path)]


def test_leftovers_are_swept_at_the_start(tmp_path):
    written(tmp_path)
    for name in (".checkpoint-000000300.new", ".checkpoint-000000100.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "agent.safetensors").write_bytes(b"part")
    make(tmp_path)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-000000100", "checkpoint-000000200"]
