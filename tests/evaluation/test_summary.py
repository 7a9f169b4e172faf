from __future__ import annotations

import json

import pytest

from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.evaluation.evaluate import Evaluation
from dsrl_torchrl.evaluation.rates import make_rate
from dsrl_torchrl.evaluation.summary import format_table, logged_rows, rows_hash, write_summary
from dsrl_torchrl.training.metrics_log import MetricsLog


def evaluation(successes, n=10):
    rate = make_rate([True] * successes + [False] * (n - successes))
    return Evaluation(rate, rate, -20.0, 25.0)


def write(folder, results, stage2):
    said = []
    options = {"panels": [], "stage1": {}, "config_hash": "abc", "title": "title"}
    return write_summary(folder, results, centre={}, stage2=stage2, say=said.append, **options), said


def test_any_policies_in_the_table():
    results = {"base_prior": evaluation(5), "a_policy_with_quite_a_long_name": evaluation(7)}
    head, rule, *lines, footer = format_table(results).splitlines()
    assert len({len(line) for line in (head, rule, *lines)}) == 1
    assert "0.70 [0.40, 0.89]" in lines[1]
    assert footer == "10 held-out resets, the same for every policy; Wilson 95 % intervals"


def test_before_online_training_there_is_no_curve(tmp_path):
    summary, said = write(tmp_path, {"base_prior": evaluation(5)}, {})
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert (summary["env_steps"], summary["longest_dip_env_steps"]) == (0, 0.0)
    assert len(said) == 1 and not (tmp_path / "learning_curve.png").exists()


def test_online_training_is_measured_against_where_it_started(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    for step, success in ((100, 0.8), (200, 0.6), (300, 0.6), (400, 0.8)):
        log(step, {"env/success_running": success})
    log(400, {"eval/success_once": 0.8, "eval/success_at_end_mode": 0.4, "eval/episodes": 5})
    stage2 = {"env_steps": 400, "updates": 100, "wall_seconds": 3.0}
    results = {"base_prior": evaluation(5), "stage1": evaluation(8), "best_of_n": evaluation(9)}
    summary, said = write(tmp_path, results, stage2)
    assert (summary["longest_dip_below"], summary["longest_dip_env_steps"]) == ("stage 1", 200)
    assert summary["env_steps_to_success"] == {
        "eval/success_once": {"0.5": 400, "0.75": 400, "0.9": None},
        "eval/success_at_end_mode": {"0.5": None, "0.75": None, "0.9": None},
    }
    assert said[1] == ("400 env steps, 100 updates, 3 s; longest stretch over 10 points below stage 1: 200 env steps")
    del results["stage1"]
    summary, _ = write(tmp_path, results, stage2)
    assert (summary["longest_dip_below"], summary["longest_dip_env_steps"]) == ("base policy, prior noise", 0)
    assert (tmp_path / "learning_curve.png").stat().st_size > 1000


def test_a_stage_2_that_is_worse_is_named_where_the_intervals_are_apart(tmp_path):
    before = {"base_prior": evaluation(60, 100), "stage1": evaluation(91, 100)}
    results = before | {"stage2_stochastic": evaluation(73, 100), "stage2_deterministic": evaluation(69, 100)}
    _, said = write(tmp_path, results, {})
    assert said[1] == (
        "warning: stage1 succeeds more often (0.91 [0.84, 0.95]) than stage 2 (0.73 [0.64, 0.81]): keep that policy, "
        "which is in stage1/"
    )
    for stage2 in (evaluation(85, 100), evaluation(95, 100)):
        assert len(write(tmp_path, before | {"stage2_stochastic": stage2}, {})[1]) == 1


@pytest.mark.parametrize("damage", [b"", bytes(40), b"env_steps,a\n100,0.5\n", b"env_steps,a\n100,0.5\n400,0.8\n"])
def test_a_log_that_was_changed_is_damaged(tmp_path, damage):
    """Emptied, zero-filled by a crash, half of it, or another digit."""
    stage2 = {"env_steps": 400, "updates": 100, "wall_seconds": 3.0}
    log = tmp_path / "metrics.csv"
    log.write_bytes(b"env_steps,a\n100,0.5\n400,0.7\n")
    stage2["logged"] = rows_hash(logged_rows(tmp_path, 400))
    log.write_bytes(log.read_bytes() + b"500,0.1\n")  # more than the stage made is an extension's
    write(tmp_path, {"base_prior": evaluation(5)}, stage2)
    log.write_bytes(damage)
    with pytest.raises(CheckpointError, match=r"metrics\.csv is damaged"):
        write(tmp_path, {"base_prior": evaluation(5)}, stage2)
