"""Any gymnasium env behind our interface, on small ones that are registered here."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.envs import check_env_specs

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.targets import make
from dsrl_torchrl.envs.gymnasium_env import GymnasiumEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import make_macro_env


class Line(gymnasium.Env):
    """A point on a line: solved beyond 1, lost below -1; stepping on from there is refused."""

    action_space = spaces.Box(-0.5, 0.5, (1,), np.float32)

    def __init__(self, flat=False, key="is_success"):
        parts = {
            "z": spaces.Box(-9, 9, (1,)),
            "a": spaces.Dict({"goal": spaces.Box(-9, 9, (2,), np.float64)}),
            "camera": spaces.Box(0, 255, (4, 6, 3), np.uint8),
        }
        self.observation_space = parts["z"] if flat else spaces.Dict(parts)
        self.flat, self.key = flat, key

    def _see(self):
        if self.flat:
            return self.at.copy()
        picture = np.full((4, 6, 3), 100 + 50 * self.at[0], np.uint8)
        return {"z": self.at.copy(), "a": {"goal": np.array([1.0, 2.0])}, "camera": picture}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.over = self.np_random.uniform(-0.2, 0.2, 1).astype(np.float32), False
        return self._see(), {}

    def step(self, action):
        assert not self.over and self.action_space.contains(action)
        self.at = self.at + action
        self.over = bool(self.at < -1)
        return self._see(), float(self.at[0]), self.over, False, {self.key: float(self.at[0] > 1)}


THEIRS = {"reward": "env", "success_key": None}


@pytest.fixture(autouse=True)
def registered():
    gymnasium.register("Line-v0", Line, max_episode_steps=6)
    gymnasium.register("Endless-v0", Line)
    yield
    for name in ("Line-v0", "Endless-v0"):
        del gymnasium.registry[name]


def forward(env, now, *actions):
    return env.step(now.set("action", torch.tensor([[a] for a in actions])))["next"]


@pytest.mark.parametrize("kwargs", [{"flat": True}, {}])
def test_specs(kwargs):
    check_env_specs(GymnasiumEnv("Line-v0", num_envs=3, kwargs=kwargs), seed=0)


def test_a_dict_observation_is_flattened_in_the_named_order():
    now = GymnasiumEnv("Line-v0", observation_keys=["a.goal", "z"]).reset(seed=0)
    assert now["observation"].shape == (1, 3) and now["observation"][0, :2].tolist() == [1.0, 2.0]
    assert GymnasiumEnv("Line-v0", observation_keys=["z"]).reset(seed=0)["observation"].shape == (1, 1)
    every = GymnasiumEnv("Line-v0").reset(seed=0)["observation"]
    assert sorted(every[0].tolist()) == sorted(now["observation"][0].tolist())


class Maps(Line):
    """The same, with what is neither a vector nor a picture with its channels last."""

    def __init__(self):
        super().__init__()
        more = {
            "depth": spaces.Box(0, 9, (4, 6, 1), np.float32),
            "grey": spaces.Box(0, 255, (4, 6), np.uint8),
            "first": spaces.Box(0, 255, (3, 8, 6), np.uint8),
        }
        self.observation_space = spaces.Dict(self.observation_space.spaces | more)

    def _see(self):
        return super()._see() | {name: self.observation_space[name].sample() for name in ("depth", "grey", "first")}


class Dotted(Line):
    """The same under names with dots, as LeRobot's envs and data sets have them, one of them inside of a dict."""

    def __init__(self):
        super().__init__()
        parts = self.observation_space.spaces
        inner = spaces.Dict({"agent.pos": parts["a"]["goal"]})
        named = {"observation.state": parts["z"], "observation": inner, "observation.image": parts["camera"]}
        self.observation_space = spaces.Dict(named)

    def _see(self):
        seen = super()._see()
        inner = {"agent.pos": seen["a"]["goal"]}
        return {"observation.state": seen["z"], "observation": inner, "observation.image": seen["camera"]}


@pytest.mark.parametrize("keys", [None, ["observation.agent.pos", "observation.state"]])
def test_names_with_dots_are_found(keys):
    gymnasium.register("Dotted-v0", Dotted, max_episode_steps=6)
    try:
        env = GymnasiumEnv("Dotted-v0", observation_keys=keys, images={"pixels": "observation.image"})
        now = env.reset(seed=0)
        assert {1.0, 2.0} < set(now["observation"][0].tolist())
        assert now["observation"].shape == (1, 3) and now["pixels"].shape == (1, 3, 4, 6)
        with pytest.raises(UserError, match=r"named 'observation\.state'; it has observation\.image"):
            GymnasiumEnv("Dotted-v0", images={"pixels": "observation.state"})
    finally:
        del gymnasium.registry["Dotted-v0"]


def test_maps_are_no_part_of_the_state_unless_they_are_named():
    gymnasium.register("Maps-v0", Maps, max_episode_steps=6)
    try:
        assert GymnasiumEnv("Maps-v0").reset(seed=0)["observation"].shape == (1, 3)
        named = GymnasiumEnv("Maps-v0", observation_keys=["z", "grey"]).reset(seed=0)
        assert named["observation"].shape == (1, 25)
        with pytest.raises(
            UserError, match=r"first should be a picture \[H, W, C\] of 1, 3 or 4 channels, is \[3, 8, 6\]"
        ):
            GymnasiumEnv("Maps-v0", images={"pixels": "first"})
    finally:
        del gymnasium.registry["Maps-v0"]


def test_a_module_before_the_name_is_imported_and_the_time_limit_its_own(tmp_path, monkeypatch):
    register = (
        "import gymnasium; gymnasium.register('Far-v0', 'tests.envs.test_gymnasium_env:Line', max_episode_steps=5)"
    )
    (tmp_path / "my_far_package.py").write_text(register)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert GymnasiumEnv("my_far_package:Far-v0").max_episode_steps == 5
    finally:
        del gymnasium.registry["Far-v0"]


def test_pictures_of_a_dict_observation():
    env = GymnasiumEnv("Line-v0", num_envs=2, observation_keys=["z"], images={"pixels": "camera"})
    check_env_specs(env, seed=0)
    now = env.reset(seed=0)
    assert now["pixels"].shape == (2, 3, 4, 6) and now["pixels"].dtype == torch.uint8
    expected = (100 + 50 * now["observation"]).to(torch.uint8)
    assert (now["pixels"].flatten(1) == expected).all()


def test_success_failure_and_time_limit_are_kept_apart():
    env = GymnasiumEnv("Line-v0", num_envs=3, observation_keys=["z"])
    now = env.reset(seed=0)
    for _ in range(6):
        now = forward(env, now, 0.5, -0.5, 0.0)
    assert now["success"].flatten().tolist() == [True, False, False]
    assert now["terminated"].flatten().tolist() == [True, True, False]
    assert now["truncated"].flatten().tolist() == [False, False, True]


def test_rewards():
    ours, theirs = (GymnasiumEnv("Line-v0", observation_keys=["z"], **more) for more in ({}, THEIRS))
    now, other = ours.reset(seed=0), theirs.reset(seed=0)
    while not now["done"].any():
        now, other = forward(ours, now, 0.5), forward(theirs, other, 0.5)
        assert now["reward"].item() == now["success"].item() - 1
        assert torch.equal(other["reward"], other["observation"]) and not other["done"].any()
    assert now["success"].any() and not other["success"].any()


def test_an_evaluation_runs_on_after_success_and_not_after_failure():
    env = GymnasiumEnv("Line-v0", num_envs=2, terminate_on_success=False)
    now, ended = env.reset(seed=0), []
    for _ in range(6):
        now = forward(env, now, 0.5, -0.5)
        ended.append(now["done"].flatten().tolist())
    assert not now["terminated"].any() and now["success"].flatten().tolist() == [True, False]
    assert [one for one, _ in ended] == [False] * 5 + [True] and ended[2][1]


def test_an_env_that_has_ended_waits_for_its_reset_inside_of_a_macro_step():
    macro = make_macro_env(GymnasiumEnv("Line-v0", num_envs=2), act_horizon=5, gamma=1.0)
    now = macro.step(macro.reset(seed=0).set("action", torch.tensor([0.5, -0.5]).view(2, 1, 1).expand(2, 5, 1)))["next"]
    assert now["done"].all() and (now["chunk_steps"] <= 3).all()


def test_a_seed_is_a_start():
    env = GymnasiumEnv("Line-v0", num_envs=2)
    first = env.reset(seed=[3, 4])["observation"]
    assert torch.equal(GymnasiumEnv("Line-v0").reset(seed=[4])["observation"][0], first[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"env_id": "Line-v1"}, "unknown gymnasium env 'Line-v1'; near it: Line-v0"),
        ({"env_id": "Endless-v0"}, "no time limit of its own: set max_episode_steps"),
        ({"env_id": "CartPole-v1"}, "should take bounded action vectors, it takes Discrete"),
        ({"env_id": "Line-v0", "observation_keys": ["y"]}, "no observation 'y'; it has a.goal, z"),
        ({"env_id": "Line-v0", "observation_keys": ["z"], "kwargs": {"flat": True}}, "no dict observation"),
        ({"env_id": "Line-v0", "images": {"pixels": "z"}}, "no uint8 picture"),
        ({"env_id": "Line-v0", "kwargs": {"nope": 1}}, "Line-v0 cannot be made: TypeError"),
        ({"env_id": "Line-v0", "success_key": None}, "needs reward=env"),
        ({"env_id": "no_such_module:Line-v0"}, "cannot be made: ModuleNotFoundError"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        GymnasiumEnv(**arguments)
    assert "\n" not in str(raised.value)


def test_a_success_that_info_never_has_is_named():
    env = GymnasiumEnv("Line-v0", kwargs={"key": "won"})
    now = env.reset(seed=0)
    with pytest.raises(UserError, match="info never had 'is_success', it has won"):
        for _ in range(6):
            now = forward(env, now, 0.0)


class OnlyYes(Line):
    """Says its success when there is one, and nothing else."""

    def step(self, action):
        observation, reward, over, cut, info = super().step(action)
        return observation, reward, over, cut, {name: 1.0 for name, value in info.items() if value} | {"force": 0.0}


def test_an_env_may_say_its_success_on_success_alone():
    gymnasium.register("OnlyYes-v0", OnlyYes, max_episode_steps=6)
    try:
        env = GymnasiumEnv("OnlyYes-v0", num_envs=2, observation_keys=["z"])
        for actions, warns in ((0.0, 0.0), True), ((0.5, 0.0), False):
            now = env.reset(seed=0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for _ in range(6):
                    now = forward(env, now, *actions)
            assert now["success"].flatten().tolist() == [actions[0] > 0, False]
            lines = [str(warning.message) for warning in caught]
            assert len(lines) == warns and all("info never had 'is_success', it has force" in line for line in lines)
    finally:
        del gymnasium.registry["OnlyYes-v0"]


@pytest.mark.parametrize(
    ("name", "sizes"), [("Hopper-v4", (11, 3)), ("Walker2d-v4", (17, 6)), ("HalfCheetah-v4", (17, 6))]
)
def test_the_locomotion_suite_has_the_sizes_of_d4rl(name, sizes):
    pytest.importorskip("mujoco")
    words = ["suite=locomotion", f"task={name}", "base_policy=load", "base_policy.load._target_=builtins.dict"]
    env = make(compose(words).task.env)
    assert (env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]) == sizes
    assert env.max_episode_steps == 1000
    now = env.step(env.rand_action(env.reset(seed=0)))["next"]
    assert not now["success"].any() and now["reward"].ne(0).all()
    env.close()
