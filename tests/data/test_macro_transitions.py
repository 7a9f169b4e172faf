from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from tensordict import TensorDict
from torchrl.collectors import Collector

from dsrl_torchrl.data.macro_transitions import (
    check_finite,
    load_transitions,
    macro_transition_keys,
    save_transitions,
    to_macro_transitions,
)
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import CheckpointError, NonFiniteError, UserError
from dsrl_torchrl.latent_env.macro_step import make_macro_env

KEYS = ["pixels", ("robot", "qpos"), "observation.state"]


def make_transitions(n=4):
    generator = torch.Generator().manual_seed(0)

    def observations():
        return {
            "pixels": torch.randint(256, (n, 3, 2, 2), dtype=torch.uint8, generator=generator),
            "robot": {"qpos": torch.randn(n, 2, generator=generator).double()},
            "observation.state": torch.randn(n, 3, generator=generator),
        }

    flag = torch.zeros(n, 1, dtype=torch.bool)
    outcome = {
        "reward": torch.randn(n, 1, generator=generator),
        "chunk_steps": torch.full((n, 1), 2),
        "action_chunk": torch.randn(n, 2, 1, generator=generator),
        "success": flag,
        **{key: flag.clone() for key in ("terminated", "truncated", "done")},
    }
    action = torch.randn(n, 5, generator=generator)
    return TensorDict({**observations(), "action": action, "next": observations() | outcome}, [n])


@pytest.mark.parametrize("key", ["observation", ("robot", "state")])
def test_the_schema_out_of_a_collector(key):
    env = make_macro_env(PointReachEnv(num_envs=2, seed=0, observation_key=key), act_horizon=3, gamma=0.9)
    collector = Collector(env, None, frames_per_batch=12, total_frames=12)
    for batch in collector:
        transitions = to_macro_transitions(batch, [key])
        assert transitions.batch_size == (12,)
        assert set(transitions.keys(True, True)) == set(macro_transition_keys([key]))
    collector.shutdown()


def test_only_the_named_observations_are_kept():
    kept = to_macro_transitions(make_transitions(), ["pixels"])
    assert set(kept.keys(True, True)) == set(macro_transition_keys(["pixels"]))


def test_offline_data_has_no_noise():
    assert "action" not in to_macro_transitions(make_transitions().exclude("action"), KEYS).keys()


def test_a_missing_observation_is_named_with_those_that_are_there():
    with pytest.raises(UserError, match=r"expected an entry 'robot\.qvel', the env has .*robot\.qpos"):
        to_macro_transitions(make_transitions(), [("robot", "qvel")])


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("next", "reward"), r"next\.reward"),
        (("next", "robot", "qpos"), r"next\.robot\.qpos"),
        (("next", "action_chunk"), r"next\.action_chunk"),
        (("robot", "qpos"), r"robot\.qpos"),
        ("action", "action"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_the_bad_entry_is_named(key, name, value):
    transitions = make_transitions()
    check_finite(transitions, 7)
    transitions.get(key)[1, 0] = value
    with pytest.raises(NonFiniteError, match=rf"^{name} is NaN or infinite at env step 7"):
        check_finite(transitions, 7)


def test_what_the_step_wrote_is_named_before_what_it_read():
    transitions = make_transitions()
    transitions["robot", "qpos"].fill_(torch.nan)
    transitions["next", "reward"].fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"^next\.reward"):
        check_finite(transitions, 7)


def test_a_file_keeps_keys_dtypes_and_values(tmp_path):
    transitions = make_transitions()
    save_transitions(transitions, tmp_path / "x.safetensors")
    again = load_transitions(tmp_path / "x.safetensors")
    assert again.batch_size == transitions.batch_size
    assert set(again.keys(True, True)) == set(transitions.keys(True, True))
    for key, value in transitions.items(True, True):
        assert torch.equal(again[key], value) and again[key].dtype == value.dtype


def test_a_file_that_is_not_transitions(tmp_path):
    (tmp_path / "damaged").write_bytes(b"no")
    for name in ("damaged", "missing"):
        with pytest.raises(CheckpointError, match="cannot read"):
            load_transitions(tmp_path / name)
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="does not hold macro transitions"):
        load_transitions(tmp_path / "foreign")
    save_file({'["next", "reward"]': torch.zeros(2, 1), "weight": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="does not hold macro transitions"):
        load_transitions(tmp_path / "foreign")


def test_what_no_env_gives_is_refused(tmp_path):
    """Zero-filled, edited, or of another program: whoever reads it must not learn from it."""
    changes = {
        "next.reward is NaN": (("next", "reward"), torch.full((4, 1), torch.nan)),
        "robot.qpos is NaN": (("robot", "qpos"), torch.full((4, 2), torch.inf).double()),
        r"next.chunk_steps should lie in 1\.\.2": (("next", "chunk_steps"), torch.zeros(4, 1).long()),
        r"next.success should be \[4, 1\], but is \[4\]": (("next", "success"), torch.zeros(4, dtype=torch.bool)),
        "next.done should be set where": (("next", "truncated"), torch.ones(4, 1, dtype=torch.bool)),
        "next.action_chunk should be floats": (("next", "action_chunk"), torch.zeros(4, 2)),
        "pixels and next.pixels should be alike": (("next", "pixels"), torch.zeros(4, 3, 2, 2)),
        "there is no next.truncated": (("next", "truncated"), None),
    }
    for match, (key, value) in changes.items():
        changed = make_transitions().exclude(key)
        save_transitions(changed if value is None else changed.set(key, value), tmp_path / "x")
        with pytest.raises(CheckpointError, match=match) as error:
            load_transitions(tmp_path / "x")
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_zero_filled_or_pickled_files_are_refused(tmp_path):
    path = tmp_path / "x"
    save_transitions(make_transitions(), path)
    whole = path.read_bytes()
    fired = tmp_path / "fired"
    bomb = pickle.dumps(type("Bomb", (), {"__reduce__": lambda self: (os.mkdir, (str(fired),))})())
    header = int.from_bytes(whole[:8], "little") + 8
    for data in (bytes(len(whole)), whole[:header] + bytes(len(whole) - header), whole[:-9], bomb):
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_transitions(path)
    assert not fired.exists()
