from __future__ import annotations

import json
import shutil

import pytest

from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.training.metrics_log import LoggerConfig, MetricsLog, read_metrics


def test_columns_that_come_later(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    log(10, {"a": 1.0})
    log(20, {"a": 2.0, "b": 3.0})
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"env_steps": 10, "a": 1.0},
        {"env_steps": 20, "a": 2.0, "b": 3.0},
    ]


def test_a_resumed_log_goes_on_from_the_checkpoints_rows(tmp_path):
    """Whatever happened to the file since."""
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    for step in (10, 20):
        log(step, {"a": step})
    state = json.loads(json.dumps(log.state_dict()))
    log(30, {"a": 30.0, "b": 1.0})
    path.write_bytes(b"\0" * 100)
    log = MetricsLog(path)
    log.load_state_dict(state)
    log(30, {"a": -1.0})
    assert [row["a"] for row in read_metrics(path)] == [10, 20, -1]
    assert read_metrics(path) == log.rows


def test_a_log_without_new_rows_is_completed_when_it_is_closed(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    log(10, {"a": 1.0})
    whole = path.read_bytes()
    again = MetricsLog(path)
    again.load_state_dict(log.state_dict())
    path.unlink()
    again.close()
    assert path.read_bytes() == whole


def test_a_resumed_wandb_run_is_the_same_one(tmp_path):
    offline = LoggerConfig(type="wandb", mode="offline")
    log = MetricsLog(tmp_path / "metrics.csv", logger=offline, title="toy-stage1", hyper_parameters={"a": {"b": 1}})
    log(10, {"a": 1.0})
    run = log._logger.experiment
    assert (run.name, run.config["a"]) == ("toy-stage1", {"b": 1})
    state = log.state_dict()
    log.close()
    again = MetricsLog(tmp_path / "metrics.csv", logger=offline, title="toy-stage1")
    again.load_state_dict(state)
    again(20, {"a": 2.0})
    assert again._logger.experiment.id == run.id
    again.close()


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsLog(path)(10, {"a": 1.0, "b": 2.0})
    with path.open("a") as file:
        file.write("20,3.0,2.0")  # of 2.05
    assert [row["env_steps"] for row in read_metrics(path)] == [10]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"type": "mlflow"}, "type should be .*'mlflow'"), ({"type": "wandb", "mode": "on"}, "mode")],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        LoggerConfig(**options)


@pytest.mark.parametrize(("told", "mode"), [(None, "dryrun"), ("offline", "offline")])
def test_wandb_has_the_environments_mode_unless_told_and_a_refusal_is_one_line(tmp_path, monkeypatch, told, mode):
    """As without a network."""
    import wandb

    def init(**options):
        raise wandb.errors.CommError(f"{options['mode']}: network is unreachable")

    monkeypatch.setenv("WANDB_MODE", "dryrun")
    monkeypatch.setattr(wandb, "init", init)
    log = MetricsLog(tmp_path / "metrics.csv", logger=LoggerConfig(type="wandb", mode=told))
    with pytest.raises(UserError, match=rf"wandb does not begin a run \({mode}: network is unreachable\): resume=true"):
        log(10, {"a": 1.0})


@pytest.mark.parametrize("options", [{"type": "tensorboard"}, {"type": "wandb", "mode": "offline"}])
def test_other_loggers(tmp_path, options):
    log = MetricsLog(tmp_path / "run" / "metrics.csv", logger=LoggerConfig(**options))
    log(10, {"a": 1.0})
    log.close()
    assert len(list((tmp_path / "run").rglob("*"))) > 1


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\n1\n", b"env_steps,a\n10,x\n", b"env_steps\n10,1,2\n", b"a,b\n1,2\n", b"\0\n\0\n"]
)
def test_another_content_is_one_line(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"metrics\.csv is damaged"):
        read_metrics(tmp_path / "metrics.csv")


def test_a_folder_that_is_removed_during_the_run_is_one_line(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.csv")
    log(10, {"a": 1.0})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"run is gone: .*resume=true"):
        log(20, {"a": 1.0})
