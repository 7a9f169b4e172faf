"""Checkpoints: complete, bit-equal, and every damage is one line."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load, save

from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.files import bytes_record, seal
from dsrl_torchrl.policies import BasePolicy, load_policy, save_policy

from .conftest import make_policy, random_inputs


def test_round_trip_is_bit_equal(policy, tmp_path):
    save_policy(policy, tmp_path / "base")
    random_state = torch.get_rng_state()
    loaded = load_policy(tmp_path / "base")
    assert torch.equal(random_state, torch.get_rng_state())
    assert type(loaded) is type(policy)
    assert loaded.config == policy.config
    assert loaded.control_mode == "pd_ee_delta_pos"
    observation, noise = random_inputs(policy, 7)
    assert torch.equal(loaded(observation, noise), policy(observation, noise))


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_policy(make_policy("flow"), tmp_path / "base")
    assert load_policy("~/base").policy_type == "flow"


@pytest.mark.parametrize("in_key", ["observation", "state", ("robot", "state")])
@pytest.mark.parametrize("policy_type", ["flow", "diffusion", "shortcut"])
def test_everything_that_is_not_a_default_comes_back(policy_type, in_key, tmp_path):
    policy = make_policy(policy_type, "unet", in_key=in_key, sampler_steps=4, control_mode="pd_ee_delta_pos").freeze()
    loaded = load_policy(save_policy(policy, tmp_path))
    assert loaded.in_keys == [in_key]
    assert (loaded.obs_horizon, loaded.sampler_steps, loaded.control_mode) == (2, 4, "pd_ee_delta_pos")
    assert loaded.content_hash() == policy.content_hash()
    for loaded_value, value in zip(
        loaded.observation_statistics(in_key), policy.observation_statistics(in_key), strict=True
    ):
        assert torch.equal(loaded_value, value)


def test_loaded_policy_is_frozen(policy, tmp_path):
    loaded = load_policy(save_policy(policy, tmp_path))
    assert loaded.frozen
    assert not loaded.train().training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_save_leaves_two_files_and_overwrites(tmp_path):
    save_policy(make_policy("flow"), tmp_path)
    save_policy(make_policy("diffusion"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_policy(tmp_path).policy_type == "diffusion"


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    del config["sha256"]
    path.write_bytes(seal(config))


def edit_arguments(folder, **changes):
    arguments = json.loads((folder / "config.json").read_text())["arguments"]
    edit_config(folder, arguments={**arguments, **changes})


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def replace_weights(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    edit_config(folder, files={"model.safetensors": bytes_record(data)})


def swap(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def with_nan(folder):
    state = load((folder / "model.safetensors").read_bytes())
    state["action_high"][1] = torch.nan
    return save(state)


DAMAGES = {
    "no model": (lambda f: (f / "model.safetensors").unlink(), "cannot read"),
    "no config": (lambda f: (f / "config.json").unlink(), "cannot read"),
    "truncated model": (lambda f: truncate(f / "model.safetensors"), "is damaged: it has"),
    "truncated config": (lambda f: truncate(f / "config.json"), "not valid JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "foreign json": (lambda f: (f / "config.json").write_text('{"type": "act"}'), "does not describe a base policy"),
    "deep json": (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "json list": (lambda f: (f / "config.json").write_text("[1]"), "does not describe a base policy"),
    "other version": (lambda f: edit_config(f, version=99), "version 99"),
    "unknown type": (lambda f: edit_config(f, type="vla"), "type 'vla', allowed are flow, diffusion, shortcut"),
    "unhashable type": (lambda f: edit_config(f, type=[]), "allowed are flow, diffusion"),
    "changed config": (lambda f: swap(f / "config.json", b'"sampler_steps": 5', b'"sampler_steps": 4'), "is damaged"),
    "version before the hashes": (lambda f: swap(f / "config.json", b'"version": 3', b'"version": 2'), "has version 2"),
    "no weights' hash": (lambda f: edit_config(f, files={}), "it has no model"),
    "NaN": (lambda f: replace_weights(f, with_nan(f)), r"tensor 'action_high' holds NaN"),
    "no arguments": (lambda f: edit_config(f, arguments=None), "no 'arguments'"),
    "unknown argument": (lambda f: edit_arguments(f, depth=3), "do not fit"),
    "bad argument": (lambda f: edit_arguments(f, action_dim=-1), "do not fit"),
    "bad network": (lambda f: edit_arguments(f, network=3), "do not fit"),
    "other shapes": (lambda f: edit_arguments(f, action_dim=4), "should be"),
    "foreign tensors": (lambda f: replace_weights(f, save({"weight": torch.zeros(2)})), "should be"),
    "not safetensors": (lambda f: replace_weights(f, b"PK\x03\x04 a pickle"), "cannot read .*model.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_one_line(damage, tmp_path):
    save_policy(make_policy("flow"), tmp_path)
    break_it, match = DAMAGES[damage]
    break_it(tmp_path)
    with pytest.raises(CheckpointError, match=match) as error:
        load_policy(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_policy(tmp_path / "nowhere")


def test_weights_of_another_save_are_noticed(tmp_path):
    save_policy(make_policy("flow"), tmp_path / "old")
    other = make_policy("flow")
    torch.nn.init.zeros_(other.network.layers[0].weight)
    save_policy(other, tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").replace(tmp_path / "old" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256"):
        load_policy(tmp_path / "old")


def test_interrupted_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    save_policy(make_policy("flow"), tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_policy(make_policy("diffusion"), tmp_path)
    monkeypatch.undo()
    assert load_policy(tmp_path).policy_type == "flow"
    assert len(list(tmp_path.iterdir())) == 2


def test_foreign_policy_cannot_be_saved(tmp_path):
    with pytest.raises(UserError, match="cannot save a BasePolicy"):
        save_policy(BasePolicy(3, 4), tmp_path)


def test_a_policy_that_is_not_finite_is_not_saved(tmp_path):
    policy = make_policy("flow")
    policy.network.layers[0].weight.data[0, 0] = torch.inf
    with pytest.raises(CheckpointError, match=r"tensor 'network\.layers\.0\.weight' holds NaN or infinity"):
        save_policy(policy, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["flipped bit", "truncated", "zeroed"])
def test_every_changed_byte_is_refused(tmp_path, name, kind):
    save_policy(make_policy("flow", sampler_steps=3), tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(whole), (40,), generator=generator).tolist():
        if kind == "flipped bit":
            new = bytes([whole[place] ^ (1 << place % 8)])
        else:
            new = b"" if kind == "truncated" else bytes(min(64, len(whole) - place))
        damaged = whole[:place] + new + (b"" if kind == "truncated" else whole[place + len(new) :])
        if damaged == whole:
            continue  # zeros on zeros
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError) as error:
            load_policy(tmp_path)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_nothing_is_unpickled(tmp_path, name):
    folder, fired = save_policy(make_policy("flow"), tmp_path / "base"), tmp_path / "fired"
    bomb = pickle.dumps(Bomb(fired))
    (folder / name).write_bytes(bomb)
    with pytest.raises(CheckpointError):
        load_policy(folder)
    save_policy(make_policy("flow"), folder)
    torch.save(Bomb(fired), folder / name)
    if name == "model.safetensors":
        replace_weights(folder, (folder / name).read_bytes())  # with a hash that fits
    with pytest.raises(CheckpointError):
        load_policy(folder)
    assert not fired.exists()
