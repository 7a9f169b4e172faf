import h5py
import numpy as np
import pytest
import torch

from dsrl_torchrl.data.readers.maniskill import read_maniskill
from dsrl_torchrl.errors import NonFiniteError, UserError
from tests.data.maniskill_trajectory import MODE, write


def test_reads_every_array(tmp_path):
    first, second = read_maniskill(write(tmp_path / "d.h5"), control_mode=MODE, action_dim=2)
    assert (len(first), len(second)) == (3, 2)
    assert first.observations.batch_size == (4,)
    assert first.observations["observation"].shape == (4, 5)
    assert first.observations["observation"].dtype == torch.float32
    assert first.action.shape == (3, 2) and second.action[0, 0] == 1.0
    assert first.success.tolist() == [False, False, True] == first.terminated.tolist()
    assert not first.truncated.any()


def test_only_successes(tmp_path):
    (kept,) = read_maniskill(write(tmp_path / "d.h5", success=(False, True)))
    assert len(kept) == 2


def test_success_from_the_arrays_if_the_json_is_silent(tmp_path):
    path = write(tmp_path / "d.h5", success=(False, True), episodes=[{"episode_id": 0}, {"episode_id": 1}])
    assert len(read_maniskill(path)) == 1


def test_flags_are_optional(tmp_path):
    def remove(file):
        for key in ("success", "terminated", "truncated"):
            del file["traj_0"][key]

    episode = read_maniskill(write(tmp_path / "d.h5", edit=remove))[0]
    assert not episode.terminated.any() and episode.truncated.shape == (3,)


def test_max_episodes(tmp_path):
    path = write(tmp_path / "d.h5", lengths=(3, 2, 4), success=(False, True, True))
    assert [len(episode) for episode in read_maniskill(path, max_episodes=1)] == [2]


def add_camera(file):
    for group in file.values():
        steps = len(group["actions"]) + 1
        observation = group["obs"][:]
        del group["obs"]
        group["obs/agent/qpos"] = observation.astype(np.float64)
        image = np.arange(steps * 6 * 4 * 3, dtype=np.uint8).reshape(steps, 6, 4, 3)
        group["obs/sensor_data/base_camera/rgb"] = image


def test_a_plus_joins_data_sets_and_numbers_count_as_vectors(tmp_path):
    def split(file):
        for group in file.values():
            whole = group["obs"][:]
            del group["obs"]
            group["obs/agent/qpos"], group["obs/extra/is_grasped"] = whole[:, :3], whole[:, 3] > 0
            group["obs/rgb"] = np.zeros((len(whole), 2, 2, 3), np.uint8)

    path, whole = write(tmp_path / "d.h5", edit=split), write(tmp_path / "whole.h5")
    entries = {"observation": "obs/extra/is_grasped+obs/agent/qpos"}
    for joined, expected in zip(read_maniskill(path, entries=entries), read_maniskill(whole), strict=True):
        state = expected.observations["observation"]
        assert torch.equal(
            joined.observations["observation"], torch.cat([(state[:, 3:4] > 0).float(), state[:, :3]], -1)
        )
    with pytest.raises(UserError, match="that are not all vectors"):
        read_maniskill(path, entries={"observation": "obs/agent/qpos+obs/rgb"})


CAMERA = {("robot", "qpos"): "obs/agent/qpos", "pixels": "obs/sensor_data/base_camera/rgb"}


def test_entries_name_datasets(tmp_path):
    path = write(tmp_path / "d.h5", edit=add_camera)
    first = read_maniskill(path, entries=CAMERA, shapes={("robot", "qpos"): [5], "pixels": [3, 6, 4]})[0]
    assert set(first.observations.keys(True, True)) == {("robot", "qpos"), "pixels"}
    assert first.observations["robot", "qpos"].dtype == torch.float32
    pixels = first.observations["pixels"]
    assert pixels.dtype == torch.uint8 and pixels.shape == (4, 3, 6, 4)
    with h5py.File(path) as file:
        stored = file["traj_0/obs/sensor_data/base_camera/rgb"][:]
    assert torch.equal(pixels[2, 1], torch.from_numpy(stored[2, :, :, 1]))


def test_images_are_uint8(tmp_path):
    def add_depth(file):
        file["traj_0"]["depth"] = np.zeros((4, 6, 4, 1), dtype=np.int16)

    path = write(tmp_path / "d.h5", edit=add_depth)
    with pytest.raises(UserError, match=r"no vectors \[T \+ 1, d\] or uint8 images \[T \+ 1, H, W, C\] in 'depth'"):
        read_maniskill(path, entries={"depth": "depth"})


def test_a_missing_dataset_is_named_with_those_that_are_there(tmp_path):
    path = write(tmp_path / "d.h5", edit=add_camera)
    with pytest.raises(UserError, match=r"in 'obs/wrist'; its datasets are .*obs/sensor_data/base_camera/rgb"):
        read_maniskill(path, entries={"pixels": "obs/wrist"})
    with pytest.raises(UserError, match="no flat state observations"):
        read_maniskill(path)


def set_to(key, value):
    def edit(file):
        del file["traj_1"][key]
        if value is not None:
            file["traj_1"][key] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            set_to("obs", None),
            "no flat state observations: python -m dsrl_torchrl.envs.headless mani_skill.* -o state",
        ),
        (set_to("obs", np.zeros((3, 8, 8))), "no flat state observations"),
        (set_to("actions", None), "truncated or not a ManiSkill trajectory"),
        (set_to("actions", np.zeros((5, 2))), "3 observations for 5 actions"),
        (set_to("success", np.zeros(7, dtype=bool)), r"success of shape \[7\], expected \[2\]"),
        (lambda file: file.pop("traj_1"), "its json lists traj_1, which the h5 has not"),
    ],
)
def test_malformed_files_are_one_line(tmp_path, edit, message):
    path = write(tmp_path / "d.h5", edit=edit)
    with pytest.raises(UserError, match=message) as error:
        read_maniskill(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"control_mode": "pd_joint_pos"}, f"holds {MODE} actions, the task wants pd_joint_pos"),
        ({"action_dim": 7}, "has 2-d actions, the task has 7-d"),
        ({"shapes": {"observation": [42]}}, r"has observation of shape \[5\], the task has \[42\]"),
    ],
)
def test_mismatches_say_both_sides(tmp_path, wanted, message):
    with pytest.raises(UserError, match=message):
        read_maniskill(write(tmp_path / "d.h5"), **wanted)


@pytest.mark.parametrize(("key", "quantity"), [("obs", "observation"), ("actions", "action")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_names_quantity_episode_and_step(tmp_path, key, quantity, value):
    def spoil(file):
        file["traj_0"][key][2, 1] = value

    with pytest.raises(NonFiniteError, match=rf"{quantity} in traj_0 of .* is NaN or infinite at step 2"):
        read_maniskill(write(tmp_path / "d.h5", edit=spoil))


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"not found: .*nowhere\.h5"):
        read_maniskill(tmp_path / "nowhere.h5")
    path = write(tmp_path / "d.h5")
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"not found: .*d\.json"):
        read_maniskill(path)


def test_truncated_files(tmp_path):
    path = write(tmp_path / "d.h5")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match="truncated or not a ManiSkill"):
        read_maniskill(path)
    path = write(tmp_path / "e.h5")
    path.with_suffix(".json").write_text('{"episodes": [')
    with pytest.raises(UserError, match="truncated or not json"):
        read_maniskill(path)


def test_no_success(tmp_path):
    with pytest.raises(UserError, match="no successful episode among 2"):
        read_maniskill(write(tmp_path / "d.h5", success=(False, False)))
