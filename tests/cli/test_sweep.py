"""``dsrl <step> -m``: a run each, checked together, one failure named and no other run harmed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsrl_torchrl.cli import sweep
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.cli.sweep import combinations

from ..processes import children, wait_until, wait_until_gone
from .pipeline_run import ENDLESS, SMOKE, fails, start

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

#: In place of a run: notes its words in a file, and fails or dies where the test says so.
FAKE = """
import os, pathlib, sys
step, *words = sys.argv[1:]
options = dict(word.split("=", 1) for word in words)
pathlib.Path(f"{options['task']}-{options['seed']}").write_text(" ".join([step, *words]))
if "FAIL":
    if options["seed"] == "1":
        sys.exit(3)
    if options["seed"] == "2":
        os.kill(os.getpid(), 9)
"""
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"),
}


@pytest.fixture(params=["basic", "joblib", pytest.param("submitit", marks=pytest.mark.slow)])
def launcher(request):
    if request.param != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{request.param}_launcher")
    yield LAUNCHERS[request.param]
    if request.param == "joblib":
        # Its processes wait for more work as long as this one lives; other tests look whether there are any.
        loky = pytest.importorskip("joblib.externals.loky")
        loky.get_reusable_executor(max_workers=2).shutdown(wait=True, kill_workers=True)


@pytest.fixture
def fake_run(monkeypatch):
    monkeypatch.setattr(sweep, "RUN", FAKE.replace("FAIL", ""))


@pytest.fixture
def run_that_fails(monkeypatch):
    monkeypatch.setattr(sweep, "RUN", FAKE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=0"], [["seed=0"]]),
        (["a=0,2", "b=x,y"], [["a=0", "b=x"], ["a=0", "b=y"], ["a=2", "b=x"], ["a=2", "b=y"]]),
        (["seed=range(1,4)"], [["seed=1"], ["seed=2"], ["seed=3"]]),
        (["seed=choice(5,7)"], [["seed=5"], ["seed=7"]]),
        (["networks.num_cells=[8,8],[16]"], [["networks.num_cells=[8,8]"], ["networks.num_cells=[16]"]]),
        (["stage2.from_stage1=[actor,critics]"], [["stage2.from_stage1=[actor,critics]"]]),
        (["name='a,b'"], [["name='a,b'"]]),
        (["name=a=b,c"], [["name=a=b,c"]]),  # no value of Hydra's grammar
        (["hydra.launcher.x=1,2", "flag"], [["hydra.launcher.x=1,2", "flag"]]),
    ],
)  # fmt: skip
def test_the_product_of_the_listed_values(words, expected):
    assert combinations(words) == expected


def test_each_combination_is_a_run(fake_run, launcher, capfd):
    main(["demos", "-m", "task=toy,push_cube", "seed=0,2", "stage2.utd=3", *launcher])
    ran = {path.name: path.read_text() for path in Path().iterdir() if path.is_file()}
    quiet = "progress=false " if launcher else ""
    assert ran == {
        f"{task}-{seed}": f"demos {quiet}task={task} seed={seed} stage2.utd=3"
        for task in ("toy", "push_cube")
        for seed in (0, 2)
    }
    assert capfd.readouterr().out.strip().endswith("sweep: 4 runs done")


def test_a_run_that_fails_is_named_and_the_others_go_on(run_that_fails, launcher, capsys):
    error = fails(capsys, "demos", "--multirun", "task=toy", "seed=0,1,2,4", *launcher)
    ends = "runs/toy-seed1 (exit code 3), runs/toy-seed2 (killed by SIGKILL)"
    assert error == f"dsrl: error: 2 of 4 runs failed: {ends}"
    assert {path.name for path in Path().glob("toy-*")} == {f"toy-{seed}" for seed in (0, 1, 2, 4)}


@pytest.mark.parametrize("options", [[], ["-P"]])
def test_a_run_imports_nothing_from_the_current_folder(options):
    """``python -c`` would; ``-P`` already does not."""
    Path("tqdm.py").write_text("raise SystemExit('shadowed')")
    run = [sys.executable, *options, "-c", sweep.RUN.replace(sweep.PARENT, str(os.getpid())), "demos", "--help"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("dsrl demos"), done.stderr


def test_a_run_whose_sweep_is_gone_does_nothing(monkeypatch, launcher):
    """It was killed while the run still imported: the kernel was asked too late."""
    orphan = [sys.executable, "-c", sweep.RUN.replace(sweep.PARENT, str(os.getppid())), "demos", "--help"]
    done = subprocess.run(orphan, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    monkeypatch.setattr(sweep, "RUN", f"import os, sys; sys.exit(os.getppid() != {sweep.PARENT})")
    main(["demos", "-m", "task=toy", "seed=0,1", *launcher])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=0,x"], "seed should be a valid integer, got 'x'"),
        (["task=toy,toi"], "did you mean toy?"),
        (["seed=interval(0,1)"], "a sweep needs a list of values"),
        (["stage2.utd=1,2"], "share the folder runs/toy-seed0 (stage2.utd=1 and stage2.utd=2)"),
        (["seed=0,0"], "share the folder runs/toy-seed0 (the same twice)"),
        (["output=runs,./runs"], "share the folder"),
        (["seed=0,1", "hydra/launcher=nope"], "is not one of basic, "),
        (["seed=0,1", "hydra.launcher.nope=1"], "hydra.launcher.nope"),
        (["seed=0,1", "hydra.sweep.dir=x"], "unknown option 'hydra.sweep.dir'"),
        (["seed=0,1", "hydra/sweeper=basic"], "unknown option 'hydra/sweeper'"),
    ],
)
def test_a_mistake_anywhere_is_one_line_before_any_work(fake_run, capsys, words, message):
    assert message in fails(capsys, "demos", "-m", "task=toy", *words)
    assert not os.listdir()


def test_names_made_of_what_differs(fake_run, capsys):
    main(["demos", "-m", "task=toy", "seed=0", "stage2.utd=1,2", "name='${task.name}-utd${stage2.utd}'"])
    out = capsys.readouterr().out
    assert "sweep: 2 runs done" in out


def test_without_the_flag_a_list_is_a_text(capsys):
    assert "seed should be a valid integer, got '0,1'" in fails(capsys, "demos", "task=toy", "seed=0,1")
    assert "unknown option 'hydra/launcher'" in fails(capsys, "demos", "task=toy", "hydra/launcher=joblib")


def test_help_of_a_sweep(capsys):
    main(["demos", "-m", "task=toy", "seed=3,4", "--help"])
    assert "seed=3" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_of_a_sweep_is_the_run_alone(capfd):
    main(["stage1", "-m", *SMOKE, "seed=0,1"])
    main(["stage1", *SMOKE, "seed=1", "output=alone"])
    for name in ("actor", "q_noise", "rollouts"):
        file = f"toy-seed1/stage1/{name}.safetensors"
        assert Path("runs", file).read_bytes() == Path("alone", file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_its_runs_end_with_the_sweep(how):
    process = start("run", "-m", *ENDLESS, "seed=0,1")
    wait_until(lambda: list(Path("runs").glob("*/demos/artifact.json")), process)
    (run,) = children(process.pid)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    wait_until_gone([run])
    assert process.returncode == (-9 if how == signal.SIGKILL else 130), error
    assert not Path("runs/toy-seed1").exists()
