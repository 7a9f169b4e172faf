from __future__ import annotations

import pytest

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.training.metrics_log import LoggerConfig, MetricsLog, read_metrics


def test_columns_that_come_later(tmp_path):
    log = MetricsLog(tmp_path / "metrics.csv")
    log(10, {"a": 1.0})
    log(20, {"a": 2.0, "b": 3.0})
    assert read_metrics(tmp_path / "metrics.csv") == [
        {"env_steps": 10, "a": 1.0},
        {"env_steps": 20, "a": 2.0, "b": 3.0},
    ]


def test_resuming_drops_what_the_checkpoint_does_not_know(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    for step in (10, 20, 30):
        log(step, {"a": step})
    log = MetricsLog(path, keep_until=20)
    log(30, {"a": -1.0})
    assert [row["a"] for row in read_metrics(path)] == [10, 20, -1]


def test_a_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsLog(path)(10, {"a": 1.0, "b": 2.0})
    with path.open("a") as file:
        file.write("20,3")
    assert [row["env_steps"] for row in read_metrics(path)] == [10]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"type": "mlflow"}, "type should be .*'mlflow'"), ({"type": "wandb", "mode": "on"}, "mode")],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        LoggerConfig(**options)


@pytest.mark.parametrize("options", [{"type": "tensorboard"}, {"type": "wandb", "mode": "offline"}])
def test_other_loggers(tmp_path, options):
    log = MetricsLog(tmp_path / "run" / "metrics.csv", logger=LoggerConfig(**options))
    log(10, {"a": 1.0})
    log.close()
    assert len(list((tmp_path / "run").rglob("*"))) > 1
