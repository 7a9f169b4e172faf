from __future__ import annotations

import pytest

from dsrl_torchrl.cli.artifacts import Artifact, config_hash, differing, filled
from dsrl_torchrl.errors import UserError


def test_an_artifact_exists_once_finished(tmp_path):
    artifact = Artifact(tmp_path / "base", {"a": 1})
    assert not artifact.exists
    artifact.begin()
    assert not artifact.exists
    artifact.finish(loss=0.5)
    assert Artifact(tmp_path / "base", {"a": 1}).exists
    assert artifact.facts == {"loss": 0.5}


def test_another_configuration_is_named(tmp_path):
    Artifact(tmp_path, {"a": {"b": 1, "c": 2}}).finish()
    with pytest.raises(UserError, match=r"a\.b \(1 there, 3 here\)") as caught:
        Artifact(tmp_path, {"a": {"b": 3, "c": 2}}).begin()
    assert "\n" not in str(caught.value)


def test_what_failed_at_once_claims_nothing(tmp_path):
    Artifact(tmp_path, {"a": 1}).begin()
    corrected = Artifact(tmp_path, {"a": 2})
    assert not corrected.exists
    corrected.begin()
    corrected.finish()
    assert corrected.exists


def test_a_checkpoint_belongs_to_its_configuration(tmp_path):
    Artifact(tmp_path, {"a": 1}).begin()
    (tmp_path / "checkpoints" / "checkpoint-100").mkdir(parents=True)
    assert not Artifact(tmp_path, {"a": 1}).exists
    with pytest.raises(UserError, match=r"a \(1 there, 2 here\)"):
        Artifact(tmp_path, {"a": 2}).begin()


def test_a_folder_survives_a_new_option_at_its_default(tmp_path):
    Artifact(tmp_path, {"a": {"b": 1}}).finish()
    default = {"a": {"b": 7, "new": 2}, "more": {"c": 3}}
    assert Artifact(tmp_path, {"a": {"b": 1, "new": 2}, "more": {"c": 3}}, default).exists
    with pytest.raises(UserError, match=r"a\.new \(2 there, 5 here\)"):
        _ = Artifact(tmp_path, {"a": {"b": 1, "new": 5}, "more": {"c": 3}}, default).exists


def test_a_default_that_changed_is_noticed(tmp_path):
    Artifact(tmp_path, {"a": 1}, {"a": 1}).finish()
    with pytest.raises(UserError, match=r"a \(1 there, 2 here\)"):
        _ = Artifact(tmp_path, {"a": 2}, {"a": 2}).exists


@pytest.mark.parametrize("content", ["{}", "{", '{"finished": true, "config": 3, "facts": {}}'])
def test_a_foreign_marker_is_refused(tmp_path, content):
    (tmp_path / "artifact.json").write_text(content)
    with pytest.raises(UserError, match="not a record"):
        _ = Artifact(tmp_path, {}).exists


def test_two_artifacts_in_one_folder(tmp_path):
    Artifact(tmp_path, {"a": 1}).finish()
    assert not Artifact(tmp_path, {"b": 1}, marker="rollouts.json").exists


def test_hash_ignores_key_order():
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 2, "b": 1})


def test_what_differs_and_what_is_filled_in():
    default = {"a": 1, "b": {"c": 2, "d": 3}}
    assert differing({"a": 1, "b": {"c": 5, "d": 3}, "e": 6}, default) == {"b": {"c": 5}, "e": 6}
    assert filled({"b": {"c": 5}}, default) == {"a": 1, "b": {"c": 5, "d": 3}}
