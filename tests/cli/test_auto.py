"""``auto``: from the machine, or as the run began."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
import yaml

from dsrl_torchrl.cli.auto import settle_machine
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.run import Run
from dsrl_torchrl.collect.spawned_process import LONGEST_TEMPORARY_FOLDER
from dsrl_torchrl.errors import UserError

from .pipeline_run import TINY


@pytest.fixture(autouse=True)
def no_control_group(monkeypatch):
    """Whatever limits the container of these tests."""
    monkeypatch.setattr("dsrl_torchrl.collect.spawned_process.cores_of_group", lambda: None)


def settle(tmp_path, *words):
    config, said = settle_machine(compose(["task=toy", *words]), tmp_path / "config.yaml")
    return config.collector.num_workers, config.collector.threads, said


@pytest.mark.parametrize(("cores", "counts"), [(1, (1, 1)), (2, (2, 1)), (8, (8, 1)), (16, (8, 4))])
def test_auto_comes_from_the_cores_of_this_process(tmp_path, monkeypatch, cores, counts):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    workers, threads, said = settle(tmp_path)
    assert (workers, threads) == counts
    assert f"num_workers={workers}, threads={threads}" in said


@pytest.mark.parametrize(
    ("words", "cuda", "workers"),
    [
        (["task=toy", "task.env.num_envs=4"], True, 8),
        (["task=pick_cube"], True, 8),
        (["task=pick_cube", "task.env.sim_backend=auto"], False, 8),
        (["task=pick_cube", "task.env.sim_backend=auto"], True, 1),
        (["task=pick_cube", "task.env.sim_backend=physx_cuda"], True, 1),
        (["task=pick_cube", "task.env.sim_backend=physx_cuda", "task.env.num_envs=1"], True, 8),
    ],
)
def test_one_process_where_the_env_is_batched_on_the_gpu(tmp_path, monkeypatch, words, cuda, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    config, _ = settle_machine(compose([*words, "device=cpu"]), tmp_path / "none.yaml")
    assert config.collector.num_workers == workers


def test_outside_of_a_run_folder_nothing_was_begun(monkeypatch):
    """As in the benchmarks."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert settle_machine(compose(["task=toy"]), None)[0].collector.num_workers == 2


def test_where_affinity_is_unknown_all_cores_count(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS, Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert settle(tmp_path)[0] == 6


def test_integers_stay_and_nothing_is_said(tmp_path):
    assert settle(tmp_path, "collector.num_workers=3", "collector.threads=5") == (3, 5, None)
    # Torch's own number of threads.
    assert settle(tmp_path, "collector.num_workers=3", "collector.threads=null") == (3, None, None)


def test_a_run_that_moves_to_another_machine_keeps_its_counts(tmp_path, monkeypatch):
    """The rollouts depend on the number of envs: ``auto`` must not make a run refuse its own folder."""
    words = ["task=toy", "experiment=smoke", f"output={tmp_path}", "name=a"]
    said = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(2)), raising=False)
    begun = Run(compose(words), said.append)
    begun.folder.save_config(begun.config)
    stored = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert (stored["collector"]["num_workers"], stored["collector"]["threads"]) == (2, 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    moved = Run(compose(words), said.append)
    assert moved.folder.stage2.config == begun.folder.stage2.config
    assert moved.folder.stage1.config == begun.folder.stage1.config
    assert "2 cores" in said[0]
    assert "as this run began" in said[1]
    assert Run(compose([*words, "collector.num_workers=4"]), said.append).config.collector.num_workers == 4


def test_a_damaged_config_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_text("collector: [")
    with pytest.raises(UserError, match="is damaged"):
        settle(tmp_path)


def test_the_device_is_this_machines(monkeypatch, tmp_path):
    def device(*words):
        return settle_machine(compose(["task=toy", *words]), tmp_path / "none.yaml")[0].device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device() == "cpu"
    with pytest.raises(UserError, match=r"device=cuda:1, but torch sees 0 CUDA devices"):
        device("device=cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device() == "cuda"
    assert device("device=cuda:1") == "cuda:1"


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_those_of_the_configuration(tmp_path, threads):
    """Env workers leave them alone: see tests of `WorkerEnvs`."""
    before = torch.get_num_threads()
    try:
        words = [*TINY, f"output={tmp_path}", f"collector.threads={threads}", "collector.num_workers=3"]
        run = Run(compose(words), say=lambda line: None)
        assert torch.get_num_threads() == threads
        with run.offline():  # while the workers wait
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("limit", "workers"), [(2.0, 2), (1.5, 2), (0.5, 1), (64.0, 8)])
def test_a_container_may_have_fewer_cores_than_its_machine(tmp_path, monkeypatch, limit, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr("dsrl_torchrl.collect.spawned_process.cores_of_group", lambda: limit)
    assert settle(tmp_path)[0] == workers


@pytest.mark.parametrize("step", ["run", "stage1", "stage2"])
def test_compilation_without_a_compiler_is_one_line(monkeypatch, tmp_path, step):
    """Not the traceback of the first update, after the rollouts; what learns nothing needs none."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with Run(compose([*TINY, f"output={tmp_path}", "device=cpu", "algorithm.compile=true"]), print) as run:
        with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and there is no 'no-such-compiler': .*CXX"):
            getattr(run, step)()
        assert not run.folder.demos.begun
        run.demos()


def test_workers_need_room_for_their_sockets(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * LONGEST_TEMPORARY_FOLDER)
    words = [*TINY, f"output={tmp_path}"]
    Run(compose([*words, "collector.num_workers=1"]), print)
    with pytest.raises(UserError, match=r"collector\.num_workers=1"):
        Run(compose([*words, "collector.num_workers=2"]), print)
