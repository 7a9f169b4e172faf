from __future__ import annotations

import pytest

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.cli.artifacts import Artifact, config_hash


def test_an_artifact_exists_once_finished(tmp_path):
    artifact = Artifact(tmp_path / "base", {"a": 1})
    assert not artifact.exists
    artifact.begin()
    assert not artifact.exists
    artifact.finish(loss=0.5)
    assert Artifact(tmp_path / "base", {"a": 1}).exists
    assert artifact.facts == {"loss": 0.5}


def test_another_configuration_is_named(tmp_path):
    Artifact(tmp_path, {"a": {"b": 1, "c": 2}}).begin()
    with pytest.raises(UserError, match=r"a\.b \(1 there, 3 here\)") as caught:
        Artifact(tmp_path, {"a": {"b": 3, "c": 2}}).begin()
    assert "\n" not in str(caught.value)


def test_a_foreign_marker_is_refused(tmp_path):
    (tmp_path / "artifact.json").write_text("{}")
    with pytest.raises(UserError, match="not a record"):
        _ = Artifact(tmp_path, {}).exists


def test_hash_ignores_key_order():
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 2, "b": 1})
