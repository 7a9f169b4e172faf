from __future__ import annotations

import pytest

from dsrl_torchrl.cli.artifacts import Artifact
from dsrl_torchrl.cli.config_differences import config_hash, differing, filled
from dsrl_torchrl.errors import CheckpointError, UserError


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


def test_a_copy_of_a_checkpoint_is_the_users(tmp_path):
    (tmp_path / "checkpoints" / "checkpoint-100-backup").mkdir(parents=True)
    assert not Artifact(tmp_path, {}).has_checkpoint


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
    with pytest.raises(UserError, match=r"is damaged: its content is not what was written; move .* away"):
        _ = Artifact(tmp_path, {}).exists


def finished(folder, **options):
    artifact = Artifact(folder, {"a": 1, "stage2": {"steps": 100}}, **options)
    artifact.begin()
    (folder / "actor.safetensors").write_bytes(b"weights")
    artifact.finish(folder / "actor.safetensors", steps=104)
    return artifact


@pytest.mark.parametrize("damage", [b"", b"weight", b"weighs!", b"\0" * 7])
def test_a_damaged_result_is_named(tmp_path, damage):
    finished(tmp_path)
    (tmp_path / "actor.safetensors").write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"actor.safetensors is damaged.*; restore it, or remove .*artifact.json"):
        _ = Artifact(tmp_path, {"a": 1, "stage2": {"steps": 100}}).exists
    (tmp_path / "actor.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*actor.safetensors"):
        _ = Artifact(tmp_path, {"a": 1, "stage2": {"steps": 100}}).exists


def test_what_it_was_made_from_must_be_what_is_there_now(tmp_path):
    artifact = Artifact(tmp_path, {"a": 1})
    artifact.inputs["base_policy"] = "abc"
    artifact.begin()
    artifact.finish()
    again = Artifact(tmp_path, {"a": 1})
    assert again.exists  # not known yet
    again.inputs["base_policy"] = "def"
    with pytest.raises(UserError, match="was made from other base policy than what is there now"):
        _ = again.exists


def test_a_larger_budget_is_no_way_around_that(tmp_path):
    artifact = grown(tmp_path, steps=100)
    artifact.inputs["rollouts"] = "abc"
    artifact.begin()
    artifact.finish()
    (tmp_path / "checkpoints" / "checkpoint-100").mkdir(parents=True)
    again = grown(tmp_path)
    again.inputs["rollouts"] = "def"
    with pytest.raises(UserError, match="was made from other rollouts"):
        _ = again.exists


BUDGET = ("stage2", "steps")


def grown(folder, steps=150, resume=True, a=1):
    return Artifact(folder, {"a": a, "stage2": {"steps": steps}}, budget=BUDGET, resume=resume)


def test_a_finished_result_goes_on_with_a_larger_budget(tmp_path):
    finished(tmp_path, budget=BUDGET)
    with pytest.raises(UserError, match="has no checkpoint to go on from"):
        _ = grown(tmp_path).exists
    (tmp_path / "checkpoints" / "checkpoint-100").mkdir(parents=True)
    with pytest.raises(UserError, match=r"was finished with stage2.steps 100: resume=true goes on to 150"):
        _ = grown(tmp_path, resume=False).exists
    for other in (grown(tmp_path, steps=50), grown(tmp_path, a=2)):
        with pytest.raises(UserError, match="belongs to another configuration"):
            _ = other.exists
    artifact = grown(tmp_path)
    assert not artifact.exists
    artifact.begin()
    assert Artifact(tmp_path, {"a": 1, "stage2": {"steps": 100}}).exists  # what is there stays what it is
    artifact = grown(tmp_path)  # interrupted, and resumed
    assert not artifact.exists
    artifact.begin()
    artifact.finish(steps=152)
    assert artifact.exists and artifact.facts == {"steps": 152, "extended_from": [100]}
    more = grown(tmp_path, steps=200)
    more.begin()
    more.finish(steps=200)
    assert more.facts["extended_from"] == [100, 150]
    assert more.key == artifact.key != grown(tmp_path, a=2).key


def test_two_artifacts_in_one_folder(tmp_path):
    Artifact(tmp_path, {"a": 1}).finish()
    assert not Artifact(tmp_path, {"b": 1}, marker="rollouts.json").exists


def test_hash_ignores_key_order():
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 2, "b": 1})


def test_what_differs_and_what_is_filled_in():
    default = {"a": 1, "b": {"c": 2, "d": 3}}
    assert differing({"a": 1, "b": {"c": 5, "d": 3}, "e": 6}, default) == {"b": {"c": 5}, "e": 6}
    assert filled({"b": {"c": 5}}, default) == {"a": 1, "b": {"c": 5, "d": 3}}
