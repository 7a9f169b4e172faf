"""The real simulation, one env on the CPU."""

import subprocess
import sys
from functools import partial
from zipfile import BadZipFile

import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import ParallelEnv, SerialEnv
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl import seeds
from dsrl_torchrl.envs.headless import rendering_available
from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.envs.maniskill_task import make_gym_env
from dsrl_torchrl.errors import UserError
from tests.processes import READY

pytestmark = pytest.mark.simulator

pytest.importorskip("mani_skill")

LIMIT = 12


@pytest.fixture(scope="module")
def env():
    env = ManiSkillEnv("PickCube-v1", "pd_ee_delta_pos", max_episode_steps=LIMIT, seed=0)
    yield env
    env.close()


def play(env, seed, actions):
    """Observations ``[T + 1, obs]`` of ``actions`` from episode ``seed``."""
    now = env.reset(seed=seed)
    observations = [now["observation"]]
    for action in actions:
        now = env.step(now.set("action", action.unsqueeze(0)))["next"]
        observations.append(now["observation"])
    return torch.cat(observations)


def test_specs(env):
    check_env_specs(env)
    assert env.observation_spec["observation"].shape == (1, 42)
    assert env.action_spec.shape == (1, 4)
    assert env.action_spec.space.low.eq(-1).all() and env.action_spec.space.high.eq(1).all()


def test_time_limit_truncates_and_never_terminates(env):
    rollout = env.rollout(2 * LIMIT, break_when_any_done=True)
    assert rollout.shape == (1, LIMIT)
    assert rollout["next", "truncated"][0, :, 0].tolist() == [False] * (LIMIT - 1) + [True]
    assert not rollout["next", "terminated"].any()
    assert rollout["next", "reward"].eq(-1).all()


def test_a_seed_and_actions_determine_the_trajectory(env):
    # Down onto the table: contacts are what earlier episodes would leak through.
    actions = torch.tensor([0.1, 0.0, -1.0, -1.0]).repeat(LIMIT, 1)
    first = play(env, 5, actions)
    play(env, 6, -actions)
    env.rollout(LIMIT)
    assert torch.equal(play(env, 5, actions), first)
    assert not torch.equal(play(env, 6, actions)[0], first[0])


def test_unseeded_starts_follow_set_seed(env):
    env.set_seed(1)
    first = [env.reset()["observation"] for _ in range(3)]
    env.set_seed(1)
    torch.rand(3)
    second = [env.reset()["observation"] for _ in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_the_simulator_starts_from_the_seeds_of_the_map(env):
    """What ManiSkill makes of a seed is the seed itself."""
    for run in (0, 1, 3_999):
        env.set_seed(seeds.segment_stream(run, 2))
        for _ in range(3):
            env.reset()
            assert all(int(seed) in seeds.TRAINING for seed in env._sim._episode_seed)
    for kind in (seeds.CHECKS, seeds.DIAGNOSIS, seeds.HELD_OUT):
        env.reset(seed=[kind[-1]])
        assert env._sim._episode_seed.tolist() == [kind[-1]]


def test_the_last_grasp_is_not_in_the_first_observation():
    from mani_skill.examples.motionplanning.panda.solutions import solvePickCube

    from dsrl_torchrl.envs.planned_episode import PLANNER_CONTROL_MODE

    env = ManiSkillEnv("PickCube-v1", PLANNER_CONTROL_MODE, max_episode_steps=100)
    solvePickCube(env._env, seed=0)
    assert env._sim.evaluate()["is_grasped"].all()
    env.reset()
    assert not env._sim.evaluate()["is_grasped"].any()
    env.close()


def test_dense_reward():
    env = ManiSkillEnv("PickCube-v1", reward="dense", max_episode_steps=5, seed=0)
    reward = env.rollout(5)["next", "reward"]
    assert reward.gt(0).all() and reward.lt(1).all()
    env.close()


def test_several_in_one_process():
    env = SerialEnv(2, partial(ManiSkillEnv, max_episode_steps=5))
    env.set_seed(0)
    rollout = env.rollout(7, break_when_any_done=False)
    assert rollout.shape == (2, 1, 7)
    assert rollout["next", "truncated"][..., 4, 0].all() and not rollout["next", "truncated"][..., 5:, 0].any()
    env.close()


def test_parallel_processes():
    env = ParallelEnv(2, partial(ManiSkillEnv, max_episode_steps=5), mp_start_method=READY)
    try:
        check_env_specs(env)
        starts = env.reset(list_of_kwargs=[{"seed": [3]}, {"seed": [4]}])["observation"]
        again = env.reset(list_of_kwargs=[{"seed": [4]}, {"seed": [3]}])["observation"]
        assert torch.equal(starts[0], again[1]) and torch.equal(starts[1], again[0])
    finally:
        env.close()


def test_collector():
    collector = Collector(partial(ManiSkillEnv, max_episode_steps=5), None, frames_per_batch=12, total_frames=12)
    (batch,) = list(collector)
    assert batch["next", "truncated"].sum() == 2
    collector.shutdown()


def test_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown ManiSkill task 'PickCub-v1'; near it: PickCube-v1"):
        ManiSkillEnv("PickCub-v1")


def test_unknown_control_mode_lists_the_allowed():
    with pytest.raises(UserError, match=r"teleport not in supported modes.*pd_ee_delta_pose"):
        ManiSkillEnv(control_mode="teleport")


def test_an_env_that_resets_itself_is_refused():
    """Its last observations and successes would be those of the next episode."""
    from mani_skill.vector.wrappers.gymnasium import ManiSkillVectorEnv

    sim = make_gym_env(
        "PickCube-v1", control_mode="pd_ee_delta_pos", num_envs=1, max_episode_steps=3, reward_mode="none"
    )
    with pytest.raises(
        UserError, match="ManiSkillVectorEnv resets itself where an episode ends: give it auto_reset=False"
    ):
        ManiSkillEnv(env=ManiSkillVectorEnv(sim))
    env = ManiSkillEnv(env=ManiSkillVectorEnv(sim, auto_reset=False))
    assert env.rollout(3)["next", "truncated"].flatten().tolist() == [False, False, True]


def test_missing_assets_do_not_ask_on_the_terminal():
    with pytest.raises(UserError, match=r"needs assets: python -m mani_skill.utils.download_asset"):
        ManiSkillEnv("OpenCabinetDrawer-v1")


def test_frames():
    if not rendering_available()[0]:
        with pytest.raises(UserError, match="no Vulkan device"):
            ManiSkillEnv(render_mode="rgb_array")
        return
    env = ManiSkillEnv(render_mode="rgb_array")
    env.reset()
    assert env.render().shape[0] == 1 and env.render().shape[-1] == 3
    env.close()


def test_nothing_is_written_beside_a_progress_bar():
    code = "from dsrl_torchrl.envs.maniskill import ManiSkillEnv; env = ManiSkillEnv(); env.rollout(3); env.close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "" and done.stderr == ""


@pytest.mark.parametrize("error", [ConnectionError("no route to github.com"), BadZipFile("File is not a zip file")])
@pytest.mark.parametrize("sim_backend", ["physx_cuda", "auto"])
def test_a_gpu_simulation_that_cannot_be_fetched_is_one_line(monkeypatch, error, sim_backend):
    """As on a cluster's node without a network: seen there, with the traceback of a download."""
    physx = pytest.importorskip("sapien.physx")

    def enable_gpu():
        raise error

    monkeypatch.setattr(physx, "enable_gpu", enable_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=f"sim_backend=physx_cuda: SAPIEN fetches .* It says: {error}"):
        make_gym_env("PickCube-v1", control_mode="pd_ee_delta_pos", num_envs=2, sim_backend=sim_backend)


def test_the_renderer_stays_open(monkeypatch):
    """Of envs that nobody sees, too: they rebuild their scenes."""
    calls = []
    monkeypatch.setattr("dsrl_torchrl.envs.maniskill_task.keep_renderer_open", lambda: calls.append(None))
    make_gym_env("PickCube-v1", control_mode="pd_ee_delta_pos").close()
    assert calls
