"""Recording with the real planner; a few episodes."""

import json
import shlex
import shutil
import subprocess
import sys

import h5py
import pytest
import torch

from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.envs import planned_episode
from dsrl_torchrl.envs.demonstrations import make_demonstrations
from dsrl_torchrl.envs.maniskill import ManiSkillEnv
from dsrl_torchrl.envs.planned_episode import record_episode
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.seeds import demonstration_seeds

pytestmark = pytest.mark.simulator

pytest.importorskip("mani_skill")

TASK = ("PickCube-v1", "pd_ee_delta_pos")


def record(path, count=2, **kwargs):
    return make_demonstrations(path, *TASK, count, max_episode_steps=100, progress=False, **kwargs)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    return record(tmp_path_factory.mktemp("demos") / "noisy.h5", seed=3, action_noise=0.25)


def test_exactly_count_successful_episodes(noisy):
    episodes = read_maniskill(noisy, control_mode=TASK[1], action_dim=4, shapes={"observation": [42]})
    assert len(episodes) == 2
    for episode in episodes:
        assert episode.success[-1] and len(episode) <= 100
        assert episode.action.abs().max() <= 1
    described = json.loads(noisy.with_suffix(".json").read_text())
    assert described["env_info"]["env_id"] == TASK[0]
    assert described["dsrl_torchrl"]["action_noise"] == 0.25
    assert all(episode["episode_seed"] in demonstration_seeds(3) for episode in described["episodes"])
    assert sorted(p.name for p in noisy.parent.iterdir()) == ["noisy.h5", "noisy.json"]


def test_recorded_actions_are_the_executed_ones(noisy):
    seed = json.loads(noisy.with_suffix(".json").read_text())["episodes"][1]["episode_seed"]
    episode = read_maniskill(noisy)[1]
    env = ManiSkillEnv(*TASK, max_episode_steps=100, terminate_on_success=False)
    now = env.reset(seed=seed)
    observations = [now["observation"]]
    for action in episode.action:
        now = env.step(now.set("action", action.unsqueeze(0)))["next"]
        observations.append(now["observation"])
    assert torch.equal(torch.cat(observations), episode.observations["observation"])
    env.close()


def test_same_arguments_same_file_whatever_the_number_of_processes(noisy, tmp_path):
    again = record(tmp_path / "again.h5", seed=3, action_noise=0.25, processes=2)
    assert again.read_bytes() == noisy.read_bytes()
    assert again.with_suffix(".json").read_text() == noisy.with_suffix(".json").read_text()


def test_an_attempt_alone_is_the_attempt_after_others(noisy, tmp_path):
    """Nothing of the first, no contact and no noise drawn, is in the second: here it comes first."""
    seed = json.loads(noisy.with_suffix(".json").read_text())["episodes"][1]["episode_seed"]
    assert seed > demonstration_seeds(3)[0]
    outcome = record_episode(tmp_path, *TASK, 3, 0.25, 100, None, "full", seed)
    with h5py.File(outcome.part) as alone, h5py.File(noisy) as file:
        compared = []

        def compare(name, item):
            if isinstance(item, h5py.Dataset):
                assert item[()].tobytes() == file["traj_1"][name][()].tobytes(), name
                compared.append(name)

        alone["traj_0"].visititems(compare)
        assert {"actions", "obs", "success"} < set(compared)


@pytest.mark.parametrize("control_mode", ["pd_ee_delta_pos", "pd_ee_delta_pose", "pd_joint_delta_pos"])
def test_the_conversion_reads_only_targets_of_the_planner_env(control_mode, monkeypatch, tmp_path):
    """It gives the same where that env simulates along, as ManiSkill means it to."""
    arguments = (TASK[0], control_mode, 0, 0.1, 200, None, "full", 1)
    quick = record_episode(tmp_path / "quick", *arguments)

    def simulated(env):
        env.reset(seed=1)
        return env

    monkeypatch.setattr(planned_episode, "_TargetsOnly", simulated)
    full = record_episode(tmp_path / "full", *arguments)
    assert quick.part is not None and full.part is not None
    for name in ("actions", "obs"):
        with h5py.File(quick.part) as a, h5py.File(full.part) as b:
            assert a["traj_0"][name][()].tobytes() == b["traj_0"][name][()].tobytes()


def test_noise_is_on_the_arm_only(noisy, tmp_path):
    clean = read_maniskill(record(tmp_path / "clean.h5", count=1, seed=3))[0]
    roughness = [(e.action[1:] - e.action[:-1]).std(0) for e in (clean, read_maniskill(noisy)[0])]
    assert (roughness[1][:3] > 2 * roughness[0][:3]).all()
    assert torch.isclose(roughness[1][3], roughness[0][3], rtol=0.2)


def test_the_advice_for_files_without_states_works_here(noisy, tmp_path):
    """On a machine without a renderer, too."""
    path = tmp_path / "no states.h5"
    shutil.copy(noisy, path)
    shutil.copy(noisy.with_suffix(".json"), path.with_suffix(".json"))
    with h5py.File(path, "a") as file:
        for group in file.values():
            del group["obs"]
    with pytest.raises(UserError, match="no flat state observations: python -m ") as error:
        read_maniskill(path)
    command = shlex.split(str(error.value).split("observations: python ")[1])
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (replayed,) = tmp_path.glob("no states.state.*.h5")
    assert all(episode.observations["observation"].shape[-1] == 42 for episode in read_maniskill(replayed))


def test_too_few_successes_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"only 0 of 1 .* in 2 attempts: 2 were planned.*lower action_noise"):
        record(tmp_path / "demos.h5", count=1, action_noise=5.0, max_attempts=2)
    assert not list(tmp_path.iterdir())


def test_task_without_a_solution(tmp_path):
    with pytest.raises(UserError, match=r"no solution for PokeCube-v1, only for .*PickCube-v1"):
        make_demonstrations(tmp_path / "demos.h5", "PokeCube-v1", TASK[1], 1, progress=False)


def test_noise_needs_a_normalised_controller(tmp_path):
    with pytest.raises(UserError, match=r"needs a controller with actions in \[-1, 1\]"):
        make_demonstrations(tmp_path / "demos.h5", TASK[0], "pd_joint_pos", 1, action_noise=0.1, progress=False)


def test_the_path_is_an_h5(tmp_path):
    with pytest.raises(UserError, match=r"written to a \.h5 file"):
        record(tmp_path / "demos.hdf")
