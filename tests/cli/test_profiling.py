"""``profile=true``: what gets the seconds, by hand; and that it changes nothing and ends nothing."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from dsrl_torchrl.cli import profiling
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.cli.profile_report import table, total
from dsrl_torchrl.cli.profiling import CATEGORIES, Sampler, attribute, calls, profiled, profiled_worker, sampling
from dsrl_torchrl.collect.spawned_process import WorkerProcess

from .pipeline_run import TINY, loaded

OURS = "dsrl_torchrl"
DECODED, OPTIMISER = "decode (base policy)", "backward, optimiser, averages"
#: Calls by the file and function that make them, innermost first.
BELOW = [(f"{OURS}.training.online", "train_online"), (f"{OURS}.cli.run", "stage2"), ("__main__", "<module>")]
UPDATE = [(f"{OURS}.agents.dsrl_na", "update"), (f"{OURS}.training.update_rounds", "make_updates"), *BELOW]
TD = [(f"{OURS}.objectives.q_action", "forward"), (f"{OURS}.agents.dsrl_na", "learn_q_action"), *UPDATE]
DECODE = [(f"{OURS}.policies.flow", "decode"), (f"{OURS}.latent_env.noise_decoder", "decode")]
WORKER = [("torchrl.envs.batched_envs", "_run_worker_pipe_direct"), ("multiprocessing.process", "run")]
STEP = [("mani_skill.envs.sapien_env", "_step_action"), (f"{OURS}.envs.maniskill", "_step"), *WORKER]
CHECKPOINT = [(f"{OURS}.training.checkpoints", "save"), *BELOW]
RECV = [("multiprocessing.connection", "_recv"), ("multiprocessing.connection", "recv")]


@pytest.mark.parametrize(
    ("stack", "category"),
    [
        ([(f"{OURS}.envs.batched_physics", "step"), ("mani_skill.envs.scene", "step"), *STEP], "physics"),
        ([("mani_skill.envs.scene", "step"), *STEP], "physics"),
        ([(f"{OURS}.envs.batched_physics", "forget"), *STEP], "simulator's Python"),
        ([("torch._tensor", "__rsub__"), *STEP], "simulator's Python"),
        ([(f"{OURS}.envs.batched_maniskill", "__call__"), *STEP], "inverse kinematics"),
        ([("torch.nn.modules.linear", "forward"), *DECODE, ("torchrl.envs.common", "step"), *BELOW], DECODED),
        ([*DECODE, (f"{OURS}.objectives.q_action", "draw_next_chunks"), *UPDATE], DECODED),
        ([("somebody.policy", "decode"), DECODE[1], *BELOW], DECODED),
        (
            [("torch.nn.modules.linear", "forward"), (f"{OURS}.networks.latent_actor", "forward"), *BELOW],
            "latent policy",
        ),
        ([("torchrl.data.replay_buffers.storages", "get"), (f"{OURS}.data.replay", "_sample"), *UPDATE[1:]], "replay"),
        ([(f"{OURS}.data.replay", "state_dict"), *CHECKPOINT], "checkpoints, files"),
        ([("torch.nn.modules.linear", "forward"), *TD], "loss: q_action"),
        # What the losses share is the loss's that it works for.
        ([(f"{OURS}.objectives.macro_discount", "value_estimate"), *TD], "loss: q_action"),
        ([("torchrl.objectives.common", "_forward_wrapper"), *TD], "loss: q_action"),
        ([(f"{OURS}.objectives.sac", "actor_loss"), *UPDATE], "loss: sac"),
        ([("torchrl.objectives.td3", "forward"), *UPDATE], "loss: td3"),
        # An actor within a loss is that loss's, not the policy that acts.
        ([(f"{OURS}.networks.latent_actor", "get_dist"), (f"{OURS}.objectives.aw_mle", "forward")], "loss: aw_mle"),
        ([("torch._tensor", "backward"), (f"{OURS}.agents.agent", "descend"), *UPDATE], OPTIMISER),
        ([("torch.optim.adam", "step"), (f"{OURS}.agents.agent", "descend"), *UPDATE], OPTIMISER),
        # no_grad is in torch.autograd, too
        ([("torch.autograd.grad_mode", "__enter__"), *UPDATE], "updates, rest"),
        ([("csv", "writerow"), (f"{OURS}.training.metrics_log", "__call__"), *BELOW], "logging, figures"),
        ([*RECV, ("torchrl.envs.batched_envs", "_step"), *BELOW], "waiting"),
        ([*RECV, *WORKER], "waiting"),
        ([*RECV, ("torchrl.envs.batched_envs", "_start_workers"), *BELOW], "imports, start"),
        # Updates that are made while the workers simulate.
        ([*UPDATE[:2], (f"{OURS}.collect.worker_processes", "_wait_for_workers"), *BELOW], "updates, rest"),
        ([("mani_skill.agents", "<module>"), ("importlib._bootstrap", "_load"), *WORKER], "imports, start"),
        ([("tqdm.std", "__new__"), ("mani_skill.agents", "<module>"), *WORKER], "imports, start"),
        ([(f"{OURS}.objectives.polyak", "_step"), (f"{OURS}.agents.encoding", "move_targets"), *UPDATE], OPTIMISER),
        (BELOW, "rest"),
        ([], "rest"),
    ],
)  # fmt: skip
def test_a_stack_has_a_category(stack, category):
    assert attribute(stack) == category


@pytest.mark.parametrize(("module", "functions"), sorted({(module, functions) for _, module, functions in CATEGORIES}))
def test_what_the_table_names_exists(module, functions):
    """What is renamed would silently count elsewhere."""
    top, *below = module.replace(f"{OURS}.envs", "envs").split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        pytest.skip(f"{top} is not installed")
    place = Path(spec.origin).parent.joinpath(*below)  # by its path: to import it would start simulators
    files = [file for file in (place.with_suffix(".py"), *place.rglob("*.py")) if file.exists()]
    assert files
    assert set(functions) <= {name for file in files for name in re.findall(r"def (\w+)\(", file.read_text())}


class Clock:
    """Shows what it is set to."""

    now = 0.0

    def __call__(self):
        return self.now


def test_the_time_since_the_last_look_counts():
    """70 % in one category and 30 % in another, although the second is looked at more often."""
    wall, cpu = Clock(), Clock()
    wall.now, cpu.now = 100.0, 2.0
    sampler = Sampler(wall, cpu, age=3.0)
    for seconds, stack in [(6.0, STEP), (1.0, DECODE), (1.0, DECODE), (1.0, STEP), (1.0, DECODE)]:
        wall.now += seconds
        cpu.now += seconds / 2
        sampler.add(stack)
    assert sampler.seconds == {
        "imports, start": (3.0, 2.0),
        "simulator's Python": (7.0, 3.5),
        DECODED: (3.0, 1.5),
    }


def test_the_calls_of_a_frame():
    def inner():
        return list(calls(sys._getframe()))

    found = inner()
    assert found[0] == (__name__, "inner")
    assert found[1] == (__name__, "test_the_calls_of_a_frame")


def test_a_thread_looks(monkeypatch):
    """At calls into C that keep the interpreter, too: with Python's switch interval it would see none of them."""
    names = {"hold": "physics", "let_go": "replay"}
    monkeypatch.setattr(profiling, "_category", lambda module, function: names.get(function))
    true = dict.fromkeys(names.values(), 0.0)
    numbers, text = list(range(30_000, 0, -1)) + list(range(20_000)), bytes(500_000)

    def hold():
        sorted(numbers)

    def let_go():
        hashlib.sha256(text)

    sampler = Sampler()
    with sampling(sampler):
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            for work in (hold, let_go):
                began = time.perf_counter()
                work()
                true[names[work.__name__]] += time.perf_counter() - began
    for name, seconds in true.items():
        assert sampler.seconds[name][0] > seconds / 5


def test_the_switch_interval_is_given_back():
    before = sys.getswitchinterval()
    with pytest.raises(KeyError), sampling(Sampler()):
        raise KeyError
    assert sys.getswitchinterval() == before


def test_an_error_of_the_profiler_ends_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken")

    said = []
    monkeypatch.setattr(Sampler, "add", fail)
    monkeypatch.setattr(profiling, "report", fail)
    with profiled(tmp_path, "a title", said.append):
        time.sleep(5 * profiling.PERIOD)
    assert said == ["warning: no profile: RuntimeError: broken"]
    (tmp_path / "file").touch()
    with profiled(tmp_path / "file", "a title", said.append):  # no folder can be made there
        pass
    assert WorkerProcess.around is nullcontext
    with profiled_worker(tmp_path / "nowhere"):
        pass


def test_processes_of_a_kind_add_up():
    workers = [{"physics": [1.0, 0.5], "rest": [1.0, 1.0]}, {"physics": [2.0, 1.5]}]
    seconds = total(workers)
    assert seconds == {"physics": (3.0, 2.0), "rest": (1.0, 1.0)}
    lines = list(
        table(
            {"main process": {"rest": (2.0, 0.5)}, "worker processes": seconds},
            {"main process": 1, "worker processes": 2},
        )
    )
    assert [line.split() for line in lines[2:]] == [
        ["rest", "2.0", "100.0%", "0.5", "1.0", "25.0%", "1.0"],
        ["physics", "0.0", "0.0%", "0.0", "3.0", "75.0%", "2.0"],
        ["all", "2.0", "100.0%", "0.5", "4.0", "100.0%", "3.0"],
    ]
    assert "2 worker processes" in lines[0]


def test_a_worker_that_is_killed_leaves_its_seconds(tmp_path):
    with profiled(tmp_path, "a title", print):
        process = WorkerProcess(target=time.sleep, args=(600,))
        process.start()
        while not list((tmp_path / "profile").glob("*.json")):
            assert process.is_alive()
            time.sleep(0.05)
        process.kill()
        process.join()
        process.close()
    seconds = json.loads((tmp_path / "profile.json").read_text())["worker processes"]
    assert seconds["processes"] == 1
    assert sum(seconds["wall_seconds"].values()) > profiling.WRITE_PERIOD
    assert not (tmp_path / "profile").exists()


def test_a_profiled_run_is_the_same_run(finished, capsys, tmp_path):
    """Same files, same artifacts: what was made with a profile is found without."""
    words = ["stage2", *TINY, *loaded(finished / "a" / "base"), "algorithm=dsrl_sac", f"output={tmp_path}"]
    main([*words, "name=plain"])
    plain = capsys.readouterr().out
    assert "main process" not in plain
    assert re.search(r"stage 2: \d+ env steps \([\d.]+/s\), \d+ updates \([\d.]+/s\), in ", plain)
    main([*words, "name=looked_at", "profile=true"])
    out = capsys.readouterr().out
    assert "main process" in out
    assert (tmp_path / "looked_at" / "figures" / "profile.png").stat().st_size > 1_000
    learned = [path.name for path in (tmp_path / "plain" / "stage2").glob("*.safetensors")]
    assert learned
    for file in learned:
        one, other = (tmp_path / name / "stage2" / file for name in ("plain", "looked_at"))
        assert one.read_bytes() == other.read_bytes()
    main([*words, "name=looked_at"])
    assert "(exists)" in capsys.readouterr().out


def test_without_a_profile_nothing_of_it_is_imported():
    code = (
        "import sys, dsrl_torchrl.cli.run; assert not any('profil' in name for name in sys.modules if 'dsrl' in name)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
