"""LeRobot data sets that LeRobot itself has written (lerobot/make.py), and what can be wrong with one."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dsrl_torchrl.data.readers.any_format import demonstration_files, read_any
from dsrl_torchrl.data.readers.lerobot import read_lerobot
from dsrl_torchrl.data.readers.lerobot_index import Info, recorded_episodes
from dsrl_torchrl.data.readers.lerobot_pictures import video_frames
from dsrl_torchrl.errors import NonFiniteError, UserError

WRITTEN = Path(__file__).parent / "lerobot"
ENTRIES = {"observation": "observation.state", "pixels": "observation.images.main"}
VIDEO = Path("videos", "observation.images.main", "chunk-000", "file-000.mp4")
ROWS = Path("data", "chunk-000", "file-000.parquet")

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'dsrl-torchrl[lerobot]'")
import pyarrow  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(WRITTEN / "video", tmp_path / "video"))


@pytest.mark.parametrize("kind", ["video", "pictures"])
def test_reads_what_lerobot_wrote(kind):
    shapes = {"observation": [3], "pixels": [3, 64, 64]}
    episodes = read_any(WRITTEN / kind, entries=ENTRIES, action_dim=2, shapes=shapes)
    assert [len(episode) for episode in episodes] == [5, 3]
    for e, episode in enumerate(episodes):
        t = torch.arange(len(episode))
        expected = torch.stack([100.0 * e + t, torch.full_like(t, e), t], -1)
        assert torch.equal(episode.observations["observation"][:-1], expected)
        torch.testing.assert_close(episode.action, torch.stack([torch.full(t.shape, e / 10), t / 10], -1))
        pixels = episode.observations["pixels"]
        assert pixels.dtype == torch.uint8
        grey = pixels[:-1].float().mean((1, 2, 3))
        torch.testing.assert_close(grey, 20.0 * (e + 1) + 10 * t, atol=1.5, rtol=0)  # AV1 is lossy
        assert torch.equal(pixels[-1], pixels[-2])
        assert episode.success.tolist() == [False] * (len(episode) - 1) + [True]


def test_vectors_are_joined():
    joined = read_lerobot(WRITTEN / "pictures", entries={"observation": "observation.state+action"})[1]
    assert joined.observations["observation"][1].tolist() == pytest.approx([101, 1, 1, 0.1, 0.1])


def test_max_episodes_ends_the_video_early():
    assert [len(e) for e in read_lerobot(WRITTEN / "video", entries=ENTRIES, max_episodes=1)] == [5]


def test_the_episodes_of_one_task():
    (second,) = read_lerobot(WRITTEN / "video", entries=ENTRIES, instruction="Task 1")
    assert len(second) == 3 and second.observations["observation"][0].tolist() == [100, 1, 0]
    assert second.observations["pixels"][0].float().mean() == pytest.approx(40, abs=1.5)
    with pytest.raises(UserError, match="has 2 tasks, none of which is the env's, 'fly': task 0; task 1"):
        read_lerobot(WRITTEN / "video", entries=ENTRIES, instruction="fly")


def test_its_hash_is_of_description_rows_and_videos(folder):
    assert {path.relative_to(folder) for path in demonstration_files(folder)} >= {VIDEO, ROWS, Path("meta/info.json")}


def as_version_2(folder):
    """The layout of v2.1: a parquet and an mp4 for each episode, and a line of json."""
    table, info = parquet.read_table(folder / ROWS), json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/episodes.jsonl").write_text('{"episode_index": 0, "tasks": ["t"], "length": 5}\n')
    mask = pyarrow.compute.equal(table["episode_index"], 0)
    parquet.write_table(table.filter(mask), folder / "data/chunk-000/episode_000000.parquet")
    (folder / "videos/chunk-000/observation.images.main").mkdir(parents=True)
    shutil.copy(folder / VIDEO, folder / "videos/chunk-000/observation.images.main/episode_000000.mp4")
    info["codebase_version"] = "v2.1"
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (folder / "meta/info.json").write_text(json.dumps(info))


def test_version_2(folder):
    new = read_lerobot(folder, entries=ENTRIES)[0]
    as_version_2(folder)
    (old,) = read_lerobot(folder, entries=ENTRIES)
    assert torch.equal(old.action, new.action) and (old.observations == new.observations).all()


def with_column(folder, name, values):
    table = parquet.read_table(folder / ROWS)
    table = table.drop([name]) if name in table.column_names else table
    parquet.write_table(table.append_column(name, pyarrow.array(values)), folder / ROWS)


@pytest.mark.parametrize("name", ["next.success", "next.reward"])
def test_success_where_it_is_told(folder, name):
    with_column(folder, name, [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    (kept,) = read_lerobot(folder, entries=ENTRIES)
    assert kept.success.tolist() == [False, False, False, True, True]


def edited(**changes):
    def edit(folder):
        path = folder / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def cut(name, kept):
    def edit(folder):
        (folder / name).write_bytes((folder / name).read_bytes()[:kept])

    return edit


def playlist(folder):
    (folder / VIDEO).write_text("#EXTM3U\n#EXTINF:1,\n/etc/hostname\n")


def with_steps(steps):
    return lambda folder: with_column(folder, "frame_index", steps)


def with_times(times):
    return lambda folder: with_column(folder, "timestamp", times)


BEGIN = "videos/observation.images.main/from_timestamp"


def described(**columns):
    def edit(folder):
        path = folder / "meta/episodes/chunk-000/file-000.parquet"
        table = parquet.read_table(path)
        for name, values in columns.items():
            table = table.drop([name]).append_column(name, pyarrow.array(values))
        parquet.write_table(table, path)

    return edit


DAMAGES = {
    "no description": (lambda folder: (folder / "meta/info.json").unlink(), "demonstrations not found"),
    "no json": (cut("meta/info.json", 40), "is not the description of a LeRobot data set"),
    "another version": (edited(codebase_version="v1.6"), "codebase_version"),
    "no rows": (lambda folder: (folder / ROWS).unlink(), "demonstrations not found"),
    "cut rows": (cut(ROWS, 900), "is damaged or not a LeRobot data set"),
    "no video": (lambda folder: (folder / VIDEO).unlink(), "demonstrations not found: the video"),
    "cut video": (cut(VIDEO, 700), "is damaged, or ends before"),
    "a playlist in place of a video": (playlist, "is damaged, or ends before"),
    "a path that leads out": (edited(data_path="../../{chunk_index}"), "outside of the data set"),
    "an unknown field in a path": (edited(data_path="{other}"), "is damaged or not"),
    "fewer rows": (lambda f: with_column(f, "episode_index", [0, 0, 0, 0, 0, 1, 1, 9]), "has 2 rows, .* says 3"),
    "a step twice": (with_steps([0, 1, 1, 3, 4, 0, 1, 2]), "frame_index 0, 1, ... 4, it skips or repeats"),
    "a step left out": (with_steps([0, 1, 2, 3, 5, 0, 1, 2]), "frame_index 0, 1, ... 4, it skips or repeats"),
    "times of another rate": (with_times([t / 5 for t in (0, 1, 2, 3, 4, 0, 1, 2)]), "timestamp of step 1 is not that"),
    "no time": (with_times([float("nan")] * 8), "timestamp of step 0 is not that"),
    "an episode twice": (described(episode_index=[0, 0]), "describes an episode twice"),
    "no place in the video": (described(**{BEGIN: [0.0, None]}), "begins at frame 0, which is another's"),
    "no flags": (lambda f: with_column(f, "next.success", [0.5] * 8), "next.success of .* should be 0 or 1"),
    "no rewards": (lambda f: with_column(f, "next.reward", [float("nan")] * 8), "next.reward of .* should be finite"),
    "words": (lambda f: with_column(f, "action", ["a"] * 8), "should be numbers or lists"),
    "ragged": (lambda f: with_column(f, "action", [[1.0]] * 7 + [[1.0, 2.0]]), "damaged|numbers or lists"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damages_are_one_line(folder, damage):
    edit, match = DAMAGES[damage]
    edit(folder)
    with pytest.raises(UserError, match=match) as error:
        read_lerobot(folder, entries=ENTRIES)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_what_is_not_finite_is_named(folder):
    with_column(folder, "action", [[0.0, 1.0]] * 6 + [[0.0, float("nan")]] * 2)
    with pytest.raises(NonFiniteError, match=r"action in episode 1 of .* at step 1"):
        read_lerobot(folder, entries=ENTRIES)


def test_an_unknown_feature_is_named_with_those_that_are_there():
    with pytest.raises(
        UserError, match=r"no feature 'obs', only observation\.state, action, observation\.images\.main"
    ):
        read_any(WRITTEN / "video", entries={"observation": "obs"})


def test_a_foreign_template_cannot_ask_for_frames_that_are_not_there():
    with pytest.raises(UserError, match="no frame 8"):
        list(video_frames(WRITTEN / "video" / VIDEO, [(0, 5), (5, 4)], 10))
    with pytest.raises(UserError, match="begins at frame 3, which is another's"):  # they would be left unwritten
        list(video_frames(WRITTEN / "video" / VIDEO, [(0, 5), (3, 4)], 10))


def test_a_video_of_another_rate_would_show_other_steps():
    with pytest.raises(UserError, match="has 10 frames a second, its data set 30"):
        list(video_frames(WRITTEN / "video" / VIDEO, [(0, 5)], 30))


def test_episodes_of_a_data_set_without_any(tmp_path):
    info = Info(codebase_version="v2.1", fps=10, features={}, data_path="")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/episodes.jsonl").touch()
    with pytest.raises(UserError, match="has no episodes"):
        recorded_episodes(tmp_path, info)
