"""``auto`` in the collector's options: from the machine, or as the run began."""

from __future__ import annotations

import os

import pytest
from omegaconf import OmegaConf

from dsrl_torchrl.cli.main import compose
from dsrl_torchrl.cli.collector_counts import settle_collector_counts
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.cli.run import Run


def settle(tmp_path, *, overlap=False, num_workers="auto", threads="auto"):
    options = OmegaConf.create({"num_workers": num_workers, "threads": threads, "overlap": overlap})
    said = settle_collector_counts(options, tmp_path / "config.yaml")
    return options.num_workers, options.threads, said


@pytest.mark.parametrize(("cores", "counts"), [(1, (1, 1)), (2, (2, 1)), (8, (8, 1)), (16, (8, 4))])
def test_auto_comes_from_the_cores_of_this_process(tmp_path, monkeypatch, cores, counts):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    workers, threads, said = settle(tmp_path)
    assert (workers, threads) == counts
    assert f"num_workers={workers}, threads={threads}" in said


def test_integers_stay_and_nothing_is_said(tmp_path):
    assert settle(tmp_path, num_workers=3, threads=5) == (3, 5, None)
    assert settle(tmp_path, num_workers=3, threads=None) == (3, None, None)  # torch's own number of threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "num_workers"),
        ({"num_workers": "many"}, "num_workers"),
        ({"num_workers": True}, "num_workers"),
        ({"threads": 0}, "threads"),
        ({"threads": "all"}, "threads"),
        ({"overlap": "sometimes"}, "overlap"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(UserError, match=f"collector.{message}"):
        settle(tmp_path, **options)


def test_a_run_that_moves_to_another_machine_keeps_its_counts(tmp_path, monkeypatch):
    """The rollouts depend on the number of envs: ``auto`` must not make a run refuse its own folder."""
    overrides = ["task=toy", "experiment=smoke", f"output={tmp_path}", "name=a"]
    said = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(2)))
    begun = Run(compose(overrides), said.append)
    begun.save_config()
    stored = OmegaConf.load(tmp_path / "a" / "config.yaml")
    assert (stored.collector.num_workers, stored.collector.threads) == (2, 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    moved = Run(compose(overrides), said.append)
    assert moved.stage2_artifact.config == begun.stage2_artifact.config
    assert moved.stage1_artifact.config == begun.stage1_artifact.config
    assert "2 cores" in said[0]
    assert "as this run began" in said[1]
    assert Run(compose([*overrides, "collector.num_workers=4"]), said.append).cfg.collector.num_workers == 4
