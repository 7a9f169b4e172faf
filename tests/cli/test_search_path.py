"""``hydra.searchpath``: a user's own YAML files beside ours."""

from __future__ import annotations

import re

import pytest

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.overrides import read_words
from dsrl_torchrl.cli.sweep import Sweep
from dsrl_torchrl.errors import UserError

MINE = """
defaults: [suite/gym, _self_]
name: mine
env: {env_id: Pendulum-v1, success_key: null, reward: env}
demonstrations: {path: mine.h5}
"""


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A folder whose name has to be quoted, in the working directory."""
    (tmp_path / "it's mine, conf" / "task").mkdir(parents=True)
    (tmp_path / "it's mine, conf" / "task" / "mine.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return 'hydra.searchpath=["it\'s mine, conf"]'


def test_a_task_of_the_users_own_in_a_few_lines(conf):
    config = compose([conf, "task=mine", "stage1.use_demonstrations=false"])
    assert config.task.name == "mine" and config.task.env["env_id"] == "Pendulum-v1"
    assert config.task.env["_target_"].endswith("GymnasiumEnv")
    assert compose([conf, "task=toy"]).task.name == "toy"


def test_what_a_sweep_starts_finds_it_too(conf, monkeypatch, tmp_path):
    sweep = Sweep("stage2", [conf, "task=mine", "stage1.use_demonstrations=false", "seed=0,1"])
    assert [run[-1] for run in sweep.runs] == ["++seed=0", "++seed=1"]
    assert not any(word.startswith("hydra.") for run in sweep.runs for word in run)
    (word,) = sweep.search_words
    monkeypatch.chdir("/")
    assert read_words([word, "task=mine"]) == [word, "task=mine"]
    assert str(tmp_path) in word


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: mine\n\tenv: {}\n", r"line 2: found character '\\t' that cannot start any token"),
        (b"name: [mine\n", "line 2: expected ',' or ']'"),
        (b"name: mine\nname: yours\n", "line 2: found duplicate key name"),
        (b"name: mine\n# \xff\n", "line 2: .*no UTF-8"),
        (b"name: mine\n# \x01\n", "line 2: .*character"),
    ],
)
def test_a_mistake_in_the_users_file_is_named_with_its_line(conf, tmp_path, content, message):
    file = tmp_path / "it's mine, conf" / "task" / "mine.yaml"
    file.write_bytes(content)
    for read in (compose, lambda words: Sweep("stage2", words)):
        with pytest.raises(UserError, match=f"^{re.escape(str(file))}, {message}") as caught:
            read([conf, "task=mine"])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=min"], "one of .*mine.*; got 'min'; did you mean mine"),
        (["hydra.searchpath=[nowhere]"], " is no folder; expected one like conf/"),
        (["hydra.searchpath=nowhere"], "needs a list of folders"),
        (["hydra.searchpath=[]"], "needs a list of folders"),
        (["hydra.searchpath"], "needs a list of folders"),
    ],
)
def test_mistakes_are_one_line(conf, words, message):
    with pytest.raises(UserError, match=message):
        compose([conf, *words])
