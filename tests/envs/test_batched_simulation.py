"""N CPU simulations under one run of ManiSkill's Python: the numbers of N separate envs, bit for bit."""

import pytest
import torch

from dsrl_torchrl.envs import maniskill_task
from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.envs.serial_maniskill import SerialTasks

pytestmark = pytest.mark.simulator

pytest.importorskip("mani_skill")

#: Those of conf/task, with their controllers.
TASKS = {
    "PickCube-v1": "pd_ee_delta_pos",
    "PushCube-v1": "pd_ee_delta_pos",
    "PullCube-v1": "pd_ee_delta_pos",
    "StackCube-v1": "pd_ee_delta_pos",
    "LiftPegUpright-v1": "pd_ee_delta_pose",
}


def both(env_id="PickCube-v1", control_mode="pd_ee_delta_pos", num_envs=2, **kwargs):
    """The batched env, and the one that steps its envs one by one."""
    return [
        ManiSkillEnv(env_id, control_mode, num_envs, sim_backend="physx_cpu", batched=batched, seed=3, **kwargs)
        for batched in (True, False)
    ]


def step(env, td, action):
    return env.step(td.set("action", action))["next"]


def towards_the_objects(env, generator):
    """Actions ``[N, action_dim]`` that press the gripper onto each env's first movable object, with noise."""
    action = 0.6 * torch.randn(env.action_spec.shape, generator=generator)
    for i, task in enumerate(env._sim.envs):
        task = task.unwrapped
        movable = next(actor for actor in task.scene.actors.values() if actor.px_body_type == "dynamic")
        action[i, :3] += (8 * (movable.pose.p - task.agent.tcp.pose.p)[0]).clamp(-1, 1)
    return action.clamp(-1, 1)


def check_equal(batched, serial, what):
    for key, value in serial.items(True, True):
        # A dense reward is a sum of many terms, whose vectorised functions round otherwise at another batch size.
        tolerance = 1e-6 if key == "reward" else 0.0
        torch.testing.assert_close(batched[key], value, rtol=0.0, atol=tolerance, msg=f"{what}: {key}")


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_twenty_episodes_equal_those_of_separate_envs(task):
    fast, plain = both(task, TASKS[task], num_envs=5, max_episode_steps=25)
    generator = torch.Generator().manual_seed(0)
    for episode in range(4):
        seeds = list(range(100 * episode, 100 * episode + 5))
        one, other = fast.reset(seed=seeds), plain.reset(seed=seeds)
        check_equal(one, other, "start")
        for t in range(25):
            action = towards_the_objects(plain, generator)
            one, other = step(fast, one, action), step(plain, other, action)
            check_equal(one, other, (episode, t))
        assert one["truncated"].all()
    fast.close(), plain.close()


def test_dense_rewards_too():
    fast, plain = both("StackCube-v1", reward="dense")
    generator = torch.Generator().manual_seed(0)
    one, other = fast.reset(seed=[1, 2]), plain.reset(seed=[1, 2])
    for t in range(12):
        action = towards_the_objects(plain, generator)
        one, other = step(fast, one, action), step(plain, other, action)
        check_equal(one, other, t)
    fast.close(), plain.close()


def test_each_env_has_its_own_ground():
    fast, plain = both()
    for sub_scenes in ([plain._sim.envs[0].unwrapped.scene.sub_scenes[0]], fast._sim.scene.sub_scenes):
        for scene in sub_scenes:
            ground = next(entity for entity in scene.entities if entity.name.endswith("_ground"))
            assert sum(len(getattr(part, "collision_shapes", ())) for part in ground.components) == 1
    fast.close(), plain.close()


@pytest.mark.parametrize(
    "control_mode", ["pd_joint_pos", "pd_joint_delta_pos", "pd_joint_vel", "pd_ee_target_delta_pose"]
)
def test_other_controllers_too(control_mode):
    fast, plain = both(control_mode=control_mode)
    generator = torch.Generator().manual_seed(0)
    one, other = fast.reset(seed=[1, 2]), plain.reset(seed=[1, 2])
    low, high = fast.action_spec.space.low, fast.action_spec.space.high
    for t in range(8):
        action = low + (high - low) * (0.3 + 0.4 * torch.rand(low.shape, generator=generator))
        one, other = step(fast, one, action), step(plain, other, action)
        check_equal(one, other, t)
    fast.close(), plain.close()


@pytest.mark.parametrize("control_mode", ["pd_ee_delta_pos", "pd_ee_target_delta_pos"])
def test_a_reset_of_one_env_leaves_the_others_alone(control_mode):
    fast, plain = both(control_mode=control_mode)
    generator = torch.Generator().manual_seed(0)
    one, other = fast.reset(seed=[5, 6]), plain.reset(seed=[5, 6])
    for t in range(16):
        if t == 8:
            one, other = (td.set("_reset", torch.tensor([[False], [True]])) for td in (one, other))
            one, other = fast.reset(one), plain.reset(other)
            check_equal(one, other, "start")
        action = towards_the_objects(plain, generator)
        one, other = step(fast, one, action), step(plain, other, action)
        assert torch.equal(one["observation"][0], other["observation"][0]), t
    fast.close(), plain.close()


def test_the_next_episode_starts_where_its_seed_says_whatever_happened():
    fast, plain = both()
    generator = torch.Generator().manual_seed(0)
    now = fast.reset(seed=[5, 6])
    plain.reset(seed=[5, 6])
    for _ in range(12):
        now = step(fast, now, towards_the_objects(plain, generator))
    fast.set_seed(11), plain.set_seed(11)
    fast._anew = plain._anew = False  # without rebuilding the scenes
    check_equal(fast.reset(), plain.reset(), "start")
    fast.close(), plain.close()


def test_tasks_that_change_their_objects_are_stepped_one_by_one():
    with pytest.warns(UserWarning, match="PegInsertionSide-v1: .* one by one here, slowly .it changes its objects"):
        env = ManiSkillEnv("PegInsertionSide-v1", "pd_joint_delta_pos", 2, sim_backend="physx_cpu")
    assert isinstance(env._sim, SerialTasks)
    env.close()


def test_another_version_is_stepped_one_by_one(monkeypatch):
    monkeypatch.setattr(maniskill_task, "BATCHED_VERSION", "3.7")
    with pytest.warns(UserWarning, match=r"one by one here, slowly \(mani_skill 3.0.1, not 3.7\)"):
        env = ManiSkillEnv(num_envs=2, sim_backend="physx_cpu")
    assert isinstance(env._sim, SerialTasks)
    env.close()


def test_a_nan_action_is_refused_as_by_one_env():
    for env in both():
        td = env.reset()
        with pytest.raises(ValueError, match="Action cannot be NaN"):
            step(env, td, torch.full(env.action_spec.shape, torch.nan))
        env.close()
