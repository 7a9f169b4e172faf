"""The cache of inverted noise: resumable, keyed by everything that matters, and distrustful of its files."""

from __future__ import annotations

import json
import os

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.inversion import cache as inversion_cache
from dsrl_torchrl.inversion.cache import InversionCache, invert_transitions
from dsrl_torchrl.inversion.search import NoiseOptimisation, NoiseRetrieval, invert_noise
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from tests.policies.conftest import make_policy, random_inputs

ACT_HORIZON, N, SHARD = 3, 20, 8  # two full shards and a part of one
METHOD = NoiseOptimisation(steps=4, starts=2)


class CountingDecoder(NoiseDecoder):
    """Counts its calls, and dies after ``limit`` of them."""

    calls, limit = 0, 10**9

    def decode(self, observations, latent_action):
        if self.calls == self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        return super().decode(observations, latent_action)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(inversion_cache, "SHARD_SIZE", SHARD)


def make_decoder(policy_type: str = "flow", **kwargs) -> CountingDecoder:
    return CountingDecoder(make_policy(policy_type).freeze(), **{"act_horizon": ACT_HORIZON, **kwargs})


def make_transitions(n: int = N) -> TensorDict:
    policy = make_policy("flow").freeze()
    torch.manual_seed(1)
    observation, noise = random_inputs(policy, n)
    following = {
        "action_chunk": policy(observation, noise)[:, :ACT_HORIZON],
        "chunk_steps": torch.randint(1, ACT_HORIZON + 1, (n, 1)),
    }
    return TensorDict({"observation": observation, "next": TensorDict(following, [n])}, [n])


def make_cache(folder, decoder=None, method=METHOD, transitions=None, **kwargs) -> InversionCache:
    data = make_transitions() if transitions is None else transitions
    following = data["next"]
    args = data, following["action_chunk"], following["chunk_steps"]
    return InversionCache(folder, decoder or make_decoder(), method, *args, **kwargs)


def shards(folder):
    return sorted(folder.glob("*/shard-*.safetensors"))


def equal(a, b) -> bool:
    return torch.equal(a.noise, b.noise) and torch.equal(a.error, b.error)


def test_shards_hold_what_the_inversion_finds(tmp_path):
    data, decoder = make_transitions(), make_decoder()
    found = make_cache(tmp_path, decoder).load_or_compute()
    following = data["next"]
    whole = invert_noise(decoder, data, following["action_chunk"], METHOD, following["chunk_steps"])
    torch.testing.assert_close(tuple(found), tuple(whole), atol=1e-4, rtol=1e-4)
    assert len(shards(tmp_path)) == 3


def test_a_finished_cache_decodes_nothing(tmp_path):
    found = make_cache(tmp_path).load_or_compute()
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/*"))]
    decoder = make_decoder()
    assert equal(make_cache(tmp_path, decoder).load_or_compute(), found)
    assert decoder.calls == 0
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/*"))]


@pytest.mark.parametrize("method", [METHOD, NoiseRetrieval(samples=4)])
def test_a_killed_run_goes_on_at_the_first_missing_shard(tmp_path, method):
    decoder = make_decoder()
    whole = make_cache(tmp_path / "whole", decoder, method).load_or_compute()
    per_shard = decoder.calls // 3
    killed = make_decoder()
    killed.limit = 2 * per_shard - 1  # in the last decode of the second shard
    with pytest.raises(KeyboardInterrupt):
        make_cache(tmp_path / "killed", killed, method).load_or_compute()
    assert len(shards(tmp_path / "killed")) == 1
    resumed = make_decoder()
    assert equal(make_cache(tmp_path / "killed", resumed, method).load_or_compute(), whole)
    assert resumed.calls == 2 * per_shard


def flip_last_byte(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a shard"),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.write_bytes((path.parent / "shard-00000.safetensors").read_bytes()),
    ],
    ids=["bit flip", "truncated", "empty", "foreign", "zeroed", "another shard"],
)
def test_a_damaged_shard_is_computed_again(tmp_path, damage):
    first = make_decoder()
    whole = make_cache(tmp_path, first).load_or_compute()
    damage(shards(tmp_path)[1])
    decoder = make_decoder()
    said: list[str] = []
    assert equal(make_cache(tmp_path, decoder).load_or_compute(say=said.append), whole)
    assert said == [f"{shards(tmp_path)[1]} is damaged: computing it again"]
    assert decoder.calls == first.calls // 3
    assert equal(make_cache(tmp_path, decoder).load_or_compute(), whole)


def test_no_changed_byte_is_taken_for_noise(tmp_path):
    cache = make_cache(tmp_path)
    cache.load_or_compute()
    path = shards(tmp_path)[1]
    whole, said = path.read_bytes(), []
    places = torch.randint(len(whole), (200,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in places:
        flipped = bytes([whole[place] ^ (1 << place % 8)])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        assert cache._read(1, said.append) is None
    assert len(said) == len(places)


def test_a_pickle_is_damage_and_is_never_run(tmp_path):
    whole = make_cache(tmp_path).load_or_compute()
    fired = tmp_path / "fired"
    torch.save(type("Bomb", (), {"__reduce__": lambda self: (os.mkdir, (str(fired),))})(), shards(tmp_path)[0])
    with pytest.warns(UserWarning, match=r"shard-00000.safetensors is damaged: computing it again"):
        assert equal(make_cache(tmp_path).load_or_compute(), whole)
    assert not fired.exists()


def change_one(key, n=N):
    data = make_transitions(n)
    value = data.get(key)
    value[0] = value[0] * 1.01 if value.is_floating_point() else ACT_HORIZON + 1 - value[0]
    return data


def test_everything_that_matters_is_in_the_key(tmp_path):
    renormalised, retrained = make_decoder(), make_decoder()
    renormalised.base_policy.action_high.mul_(2)
    next(retrained.base_policy.parameters()).data.add_(1e-3)
    keys = [
        make_cache(tmp_path, **changed).key
        for changed in (
            {},
            {"decoder": retrained},
            {"decoder": renormalised},
            {"decoder": CountingDecoder(make_policy("flow", sampler_steps=3).freeze(), act_horizon=ACT_HORIZON)},
            {"decoder": make_decoder("diffusion")},
            {"decoder": make_decoder(action_magnitude=2.0)},
            {"decoder": make_decoder(noise_layout="repeat")},
            {"method": NoiseOptimisation(steps=5, starts=2)},
            {"method": NoiseRetrieval()},
            {"seed": 1},
            {"transitions": change_one("observation")},
            {"transitions": change_one(("next", "action_chunk"))},
            {"transitions": make_transitions()[:-1]},
        )
    ]
    assert len(set(keys)) == len(keys)


def test_what_does_not_matter_is_not(tmp_path):
    data = make_transitions()
    data["next", "chunk_steps"].fill_(2)
    key = make_cache(tmp_path, transitions=data).key
    data["next", "action_chunk"][:, 2] = torch.nan  # never executed
    assert make_cache(tmp_path, transitions=data).key == key
    data["next", "chunk_steps"][0] = 1
    assert make_cache(tmp_path, transitions=data).key != key


def test_a_policy_without_a_hash_is_refused(tmp_path):
    decoder = make_decoder()
    decoder.base_policy.content_hash = lambda: None
    with pytest.raises(UserError, match="FlowPolicy has no content hash") as error:
        invert_transitions(make_transitions(), decoder, METHOD, tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_description_says_what_it_is_of(tmp_path):
    decoder = make_decoder()
    cache = make_cache(tmp_path, decoder)
    cache.load_or_compute()
    described = json.loads((tmp_path / cache.key / "inversion.json").read_text())
    assert described == cache.description
    assert described["base_policy"] == decoder.base_policy.content_hash()
    assert described["method"] == {"name": "NoiseOptimisation", "steps": 4, "lr": 0.1, "starts": 2}


def test_transitions_get_their_action(tmp_path, capsys):
    data, decoder = make_transitions(), make_decoder()
    filled, report = invert_transitions(data, decoder, METHOD, tmp_path, tolerance=0.5, progress=True)
    assert "invert noise" in capsys.readouterr().err
    assert "action" not in data.keys()
    assert filled["action"].shape == (N, decoder.layout.dim)
    assert filled["next", "action_chunk"] is data["next", "action_chunk"]
    error = make_cache(tmp_path).load_or_compute().error
    assert report.count == N
    assert report.mean == pytest.approx(float(error.mean()))
    assert report.median <= report.p90
    assert report.within_tolerance == pytest.approx(float((error < 0.5).float().mean()))
    assert str(report).startswith("NoiseOptimisation(steps=4, lr=0.1, starts=2): reconstruction error mean 0.")
    assert "\n" not in str(report)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data.exclude(("next", "chunk_steps")), r"without next\.chunk_steps"),
        (lambda data: data.reshape(4, 5), r"flat, non-empty batch of macro transitions; got batch size \[4, 5\]"),
        (lambda data: data[:0], r"got batch size \[0\]"),
        (lambda data: data.set("action", torch.zeros(N, 15)), "hold their noise already"),
    ],
)
def test_bad_transitions_are_one_line(tmp_path, change, match):
    with pytest.raises(UserError, match=match) as error:
        invert_transitions(change(make_transitions()), make_decoder(), METHOD, tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_is_written_for_data_that_cannot_be_used(tmp_path):
    data = make_transitions()
    data["observation"][3] = torch.inf
    with pytest.raises(NonFiniteError, match="observation is NaN or infinite at element 3"):
        invert_transitions(data, make_decoder(), METHOD, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_known_before_any_decode(tmp_path):
    (tmp_path / "cache").write_text("a file")
    decoder = make_decoder()
    with pytest.raises(UserError, match=r"cannot write the inversion cache to .*: Not a directory"):
        invert_transitions(make_transitions(), decoder, METHOD, tmp_path / "cache")
    assert decoder.calls == 0
