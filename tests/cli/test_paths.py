"""``name``, ``output`` and ``task.demonstrations.path``: what a folder's name may be, and how words become paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.errors import UserError


def folder(*words):
    return compose(["task=toy", *words]).folder


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["name=a"], "runs/a"),
        (["name=a/b"], "runs/a/b"),
        (["name=a/"], "runs/a"),
        (["name=a b"], "runs/a b"),
        (["name=5"], "runs/5"),
        (["name=2024_01_15"], "runs/2024_01_15"),
        (["name=+5"], "runs/+5"),
        (["seed=7", "name=${seed}"], "runs/7"),
        (["name=été"], "runs/été"),
        (["name=null"], "runs/toy-seed0"),
        (["name=a", "output=/tmp/x"], "/tmp/x/a"),
        (["name=a", "output=."], "a"),
        (["name=a", "output=../x"], "../x/a"),
        (["name=a", "output=it's"], "it's/a"),
        (["name=a", "output=a=b"], "a=b/a"),
        (["name=a", r"output=a\b=c"], r"a\b=c/a"),
        (["name=a", "output=a\\'b"], "a\\'b/a"),
        (["name=a", "output=a=b\\"], "a=b\\/a"),
        (["name=a", "output='a, b'"], "a, b/a"),
        (["name=" + "x" * 255], "runs/" + "x" * 255),
    ],
)
def test_where_a_run_goes(words, path):
    assert str(folder(*words)) == path


def test_a_tilde_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert folder("name=a", "output=~/x") == Path("/home/me/x/a")
    assert folder("name=a", "output=~") == Path("/home/me/a")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        *[
            (f"name={name}", "should be that of a folder inside of output")
            for name in ("..", ".", "", "''", "/", "/tmp")
        ],
        *[(f"name={name}", "should be that of a folder inside") for name in ("a/..", "a/../../b", "~", "~root", "~/x")],
        *[(f"name={name!s}", "expected readable text") for name in ("a\0b", "a\nb", "a\x1b[31m", "a\tb", "\udcff")],
        ("name=" + "x" * 256, "name should have at most 2000 bytes, and 255 in each folder's name"),
        ("name=" + "é" * 128, "name should have at most 2000 bytes"),
        ("name=" + "x/" * 1_000, "name should have at most 2000 bytes"),
        ("task.name=" + "x" * 250, "task.name should have at most"),
        ("name=[a]", "name should be a valid string"),
        ("name=1.5", "name should be a valid string, got 1.5"),
        ("output=" + "x" * 256, "output: should have at most"),
        ("output=", "output should have at least 1 character"),
        ("output=~nobody-of-this-name/x", "output: names a home that does not exist"),
        ("output=a\0b", "expected readable text"),
        ("task.demonstrations.path=", "path should have at least 1 character"),
        ("task.demonstrations.path=~nobody-of-this-name/x.h5", "names a home that does not exist"),
        ("task.demonstrations.path=" + "x" * 10_000, "should have at most"),
        ("task.demonstrations.path=5", "should be a valid string, got 5"),
    ],
)
def test_what_cannot_be_a_path(word, message):
    with pytest.raises(UserError) as refused:
        folder(word)
    assert message in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "path", ["~/a=b.h5", "/x/a b.h5", "a'b.h5", "a~/b.h5", "a,b.h5", "a:b.h5", "(a).h5", "[a.h5", "a{b}.h5", "$a.h5"]
)
def test_a_path_of_demonstrations_is_taken_as_it_is(path):
    assert compose(["task=toy", f"task.demonstrations.path={path}"]).task.demonstrations.path == path
