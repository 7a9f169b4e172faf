"""Stage 2 goes on where it was killed: the same run, its counts and statistics, and nobody else's."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl import LatentActionEnv, seeds
from dsrl_torchrl.agents import PPO
from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.training import online
from tests.scripted_env import ScriptedCameraEnv
from tests.training.toy import (
    AGENTS,
    DSRLAWMLE,
    DSRLNA,
    DSRLSAC,
    Killed,
    assert_same_state,
    make_agent,
    make_env,
    tiny,
)


@pytest.mark.parametrize("utd", [0.1, 0.5])  # fewer updates in a round than the actor's interval, and more
@pytest.mark.parametrize("kind", AGENTS)
def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path, offline, kind, utd):
    options = {"offline": offline, "utd": utd, "log_env_steps": 1}
    small = {"batch_size": 8, "critic_only_updates": 1, "actor_interval": 4}
    whole, killed, resumed = (make_agent(kind, **small) for _ in range(3))
    result, rows = tiny(whole, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        tiny(killed, tmp_path / "killed", **options, kill_at=140)
    again, resumed_rows = tiny(resumed, tmp_path / "killed", **options, resume=True)
    counts = ("env_steps", "macro_steps", "updates")
    assert [getattr(again, name) for name in counts] == [getattr(result, name) for name in counts]
    assert_same_state(resumed, whole)
    assert resumed_rows == rows[-len(resumed_rows) :]
    assert 0 < len(resumed_rows) < len(rows)


@pytest.mark.parametrize("utd", [0.02, 0.5])  # rounds without an update, and several epochs
def test_kill_and_resume_equals_the_uninterrupted_run_on_policy(tmp_path, utd):
    options = {"utd": utd, "log_env_steps": 1, "offline_fraction": 0.0, "macro_steps_per_round": 24}
    whole, killed, resumed = (make_agent(PPO, batch_size=8) for _ in range(3))
    result, rows = tiny(whole, tmp_path / "whole", **options)
    with pytest.raises(Killed):
        tiny(killed, tmp_path / "killed", **options, kill_at=140)
    again, resumed_rows = tiny(resumed, tmp_path / "killed", **options, resume=True)
    assert (again.env_steps, again.macro_steps, again.updates) == (result.env_steps, result.macro_steps, result.updates)
    assert result.updates == int(utd * result.macro_steps)
    assert_same_state(resumed, whole)
    assert resumed_rows == rows[-len(resumed_rows) :]
    assert 0 < len(resumed_rows) < len(rows)


@pytest.mark.parametrize("utd", [0.25, 1.5])
def test_utd_is_counted_exactly_through_a_kill(tmp_path, utd):
    with pytest.raises(Killed):
        tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, utd=utd, kill_at=140)
    result, rows = tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, utd=utd, resume=True)
    assert result.updates == int(utd * result.macro_steps) > 0
    for _, row in rows:
        assert row["train/updates"] == int(utd * row["replay_buffer/size"])
        assert row["train/utd"] == pytest.approx(utd, abs=1 / row["replay_buffer/size"])


def test_every_segment_begins_with_resets_of_its_own(tmp_path, monkeypatch):
    """Otherwise a run trains on the starts after its first reset, over and over."""
    streams, collect = [], online.macro_steps_of

    def watched(env, policy, stream, meanwhile):
        streams.append(stream)
        return collect(env, policy, stream, meanwhile)

    monkeypatch.setattr(online, "macro_steps_of", watched)
    with pytest.raises(Killed):
        tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, kill_at=140)
    tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, resume=True)
    assert streams == [seeds.segment_stream(3, segment) for segment in (0, 1, 2, 2, 3)]


def test_a_run_of_other_options_is_not_gone_on_with(tmp_path, recwarn):
    with pytest.raises(Killed):
        tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, kill_at=140)
    others = ({"seed": 4}, {"utd": 0.5}, {"key": "other"}, {"critic_lr": 1e-5})
    for other in others:
        agent = make_agent(DSRLSAC, batch_size=8, **{name: other[name] for name in other if name == "critic_lr"})
        with pytest.raises(CheckpointError, match="no checkpoint of this run is left"):
            tiny(agent, tmp_path, resume=True, **{name: other[name] for name in other if name != "critic_lr"})
    tiny(make_agent(DSRLSAC, batch_size=8), tmp_path, resume=True, log_env_steps=7)


def test_running_statistics_survive_a_kill(tmp_path):
    """Of episodes that end in so short a run."""
    options = {"log_env_steps": 1}
    runs = {"whole": {}, "killed": {"kill_at": 140}}
    rows = {}
    for name, kill in runs.items():
        env = make_env(max_episode_steps=6)
        if kill:
            with pytest.raises(Killed):
                tiny(make_agent(DSRLSAC, batch_size=8), tmp_path / name, env=env, **options, **kill)
            env, kill = make_env(max_episode_steps=6), {"resume": True}
        _, rows[name] = tiny(make_agent(DSRLSAC, batch_size=8), tmp_path / name, env=env, **options, **kill)
    assert "env/success_running" in rows["killed"][0][1]
    assert rows["killed"] == rows["whole"][-len(rows["killed"]) :]


class Watcher(BasePolicy):
    """Reads a nested state and an image; chunk = tanh(noise + state + brightness)."""

    def __init__(self):
        super().__init__(action_dim=1, pred_horizon=2, in_keys=[("agent", "state"), "pixels"])
        self.freeze()

    def forward(self, state, pixels, noise):
        assert pixels.dtype == torch.uint8
        return torch.tanh(noise + state[..., None, :1] + pixels.float().mean((-3, -2, -1))[..., None, None])


@pytest.mark.parametrize("kind", [DSRLNA, DSRLAWMLE])
def test_nested_entries_and_images_are_learned_from_and_survive_a_kill(tmp_path, monkeypatch, kind):
    replays = []

    class Watched(online.Replay):
        def __init__(self, *args):
            super().__init__(*args)
            replays.append(self)

    monkeypatch.setattr(online, "Replay", Watched)

    def make():
        env = LatentActionEnv(ScriptedCameraEnv([5, 7], [True, False]), Watcher(), gamma=0.9)
        return env, make_agent(kind, env=env, batch_size=8, critic_only_updates=4)

    env, agent = make()
    data = to_macro_transitions(env.rollout(10, break_when_any_done=False), agent.in_keys).exclude("action")
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    options = {"offline": data, "total_env_steps": 100, "warmup_env_steps": 30}
    result, rows = tiny(agent, tmp_path / "whole", env=env, **options)
    assert result.updates > 0
    stored = replays[0]._pool.give(replays[0]._online[:])
    assert stored["pixels"].dtype == stored["next", "pixels"].dtype == torch.uint8
    assert stored["agent", "state"].shape == (result.macro_steps, 2)
    assert "observation" not in stored.keys()
    assert "features" not in stored.keys()
    moved = {name for name, value in agent.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("encoder.encoders.1") for name in moved)
    assert any(name.startswith("target_encoder.encoders.1") for name in moved)
    assert any(name.startswith("policy.actor") for name in moved)

    env, killed = make()
    with pytest.raises(Killed):
        tiny(killed, tmp_path / "killed", env=env, kill_at=90, **options)
    env, resumed = make()
    _, resumed_rows = tiny(resumed, tmp_path / "killed", env=env, resume=True, **options)
    assert_same_state(resumed, agent)
    assert resumed_rows == rows[-len(resumed_rows) :]
