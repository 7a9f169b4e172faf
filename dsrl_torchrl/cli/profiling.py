"""``profile=true``: where a run's seconds go, by looking every few milliseconds at what each process is doing.

A thread in the main process, and one in every worker process, looks at the stack of the thread that does the work. The
innermost call that :data:`CATEGORIES` knows gets the time since the last look; what is looked at needs no timers.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from dsrl_torchrl.cli.profile_report import report
from dsrl_torchrl.collect.spawned_process import WorkerProcess

PERIOD = 0.005  # mean seconds between two looks; of equal ones a loop could hide the same call every time
WRITE_PERIOD = 1.0  # of a worker's file: one that is killed loses no more
#: A thread that wants the interpreter asks for it after this time. Python's 5 ms are too many: until then it is given
#: away only where torch or a system call lets it go, so nothing but these would ever be seen.
SWITCH_INTERVAL = 1e-5

START, REST = "imports, start", "rest"
WAITING = "waiting"
UPDATES, OPTIMISER = "updates, rest", "backward, optimiser, averages"
COLLECTING, FILES, LOGGING = "collecting, rest", "checkpoints, files", "logging, figures"
PHYSICS, KINEMATICS, SIMULATOR = "physics", "inverse kinematics", "simulator's Python"
DECODE, POLICY, REPLAY = "decode (base policy)", "latent policy", "replay"
#: Named after its module.
LOSS = "loss: {}"

#: Category, module or package, functions (none: all). The first line that fits a call counts. A category of ``None``
#: leaves it to the caller's.
CATEGORIES: tuple[tuple[str | None, str, tuple[str, ...]], ...] = (
    (START, "importlib", ()),
    (START, "multiprocessing.popen_spawn_posix", ()),
    (START, "torchrl.envs.batched_envs", ("_start_workers",)),
    (WAITING, "multiprocessing.connection", ("recv", "_recv", "recv_bytes", "_recv_bytes", "poll", "_poll", "wait")),
    (WAITING, "multiprocessing.popen_fork", ("poll", "wait")),
    (WAITING, "concurrent.futures._base", ("result",)),
    (WAITING, "torchrl.envs.batched_envs", ("_wait_for_workers",)),
    (PHYSICS, "dsrl_torchrl.envs.batched_physics", ("step",)),
    (PHYSICS, "mani_skill.envs.scene", ("step",)),
    (KINEMATICS, "dsrl_torchrl.envs.batched_maniskill", ("__call__",)),
    (KINEMATICS, "mani_skill.agents.controllers.utils.kinematics", ("compute_ik",)),
    *((SIMULATOR, package, ()) for package in ("dsrl_torchrl.envs", "mani_skill", "sapien", "mplib", "gymnasium")),
    (DECODE, "dsrl_torchrl.latent_env.noise_decoder", ("decode",)),
    (DECODE, "dsrl_torchrl.policies", ("decode",)),
    (POLICY, "dsrl_torchrl.networks.latent_actor", ("forward",)),
    (POLICY, "dsrl_torchrl.latent_env.prior_noise", ("forward",)),
    (POLICY, "dsrl_torchrl.agents.best_of_n", ("forward",)),
    (FILES, "dsrl_torchrl.data.replay", ("state_dict", "load_state_dict")),
    (FILES, "dsrl_torchrl.data.macro_transitions", ("save_transitions", "load_transitions")),
    (FILES, "dsrl_torchrl.agents.agent", ("save", "load")),
    *((FILES, f"dsrl_torchrl.{name}", ()) for name in ("training.checkpoints", "policies.storage", "cli.artifacts")),
    (REPLAY, "dsrl_torchrl.data.replay", ()),
    (REPLAY, "dsrl_torchrl.agents.dsrl_aw_mle", ("draw_decoded_pairs", "pick_decoded_pair")),
    (OPTIMISER, "torch.optim", ()),
    (OPTIMISER, "torch._tensor", ("backward",)),
    (OPTIMISER, "torch.autograd", ("backward", "grad", "_engine_run_backward")),
    (OPTIMISER, "torchrl.objectives.utils", ("step", "_step")),
    (OPTIMISER, "dsrl_torchrl.objectives.polyak", ()),
    (OPTIMISER, "dsrl_torchrl.agents", ("descend", "step", "move_targets", "move_target_encoder", "move_average")),
    *((None, f"torchrl.objectives.{name}", ()) for name in ("common", "utils", "value")),
    *((None, f"dsrl_torchrl.objectives.{name}", ()) for name in ("macro_discount", "latent_loss")),
    (LOSS, "dsrl_torchrl.objectives", ()),
    (LOSS, "torchrl.objectives", ()),
    (LOSS, "dsrl_torchrl.policies.cloning_loss", ()),
    ("compilation", "torch._dynamo.convert_frame", ()),
    (LOGGING, "dsrl_torchrl.training.update_rounds", ("check_metrics",)),
    (LOGGING, "dsrl_torchrl.training.offline", ("check_gain",)),
    (LOGGING, "dsrl_torchrl.training.metrics_log", ()),
    (LOGGING, "dsrl_torchrl.collect.episode_statistics", ()),
    *((LOGGING, f"dsrl_torchrl.evaluation.{name}", ()) for name in ("figures", "summary", "videos")),
    *((LOGGING, package, ()) for package in ("matplotlib", "tqdm")),
    *((UPDATES, f"dsrl_torchrl.training.{name}", ()) for name in ("update_rounds", "behaviour_cloning")),
    (UPDATES, "dsrl_torchrl.agents", ()),
    ("inversion", "dsrl_torchrl.inversion", ()),
    *((COLLECTING, f"dsrl_torchrl.{name}", ()) for name in ("collect", "latent_env", "data", "evaluation.evaluate")),
    *((COLLECTING, f"torchrl.{name}", ()) for name in ("collectors", "envs")),
)

#: A call on the stack: the name of its module, and of its function.
Call = tuple[str, str]


def attribute(stack: Iterable[Call]) -> str:
    """The category of a stack, innermost call first: all of an import is one, and so is all of a start of workers."""
    names = [name for call in stack if (name := _category(*call)) is not None]
    return START if START in names else next(iter(names), REST)


@functools.cache
def _category(module: str, function: str) -> str | None:
    if function == "<module>" and module != "__main__":
        return START  # what a module does when it is imported
    for name, package, functions in CATEGORIES:
        if (module == package or module.startswith(f"{package}.")) and (not functions or function in functions):
            return name and name.format(module.rpartition(".")[2])
    return None


def calls(frame: FrameType | None) -> Iterator[Call]:
    """The calls that a frame is in, its own first."""
    while frame is not None:
        yield frame.f_globals.get("__name__") or "", frame.f_code.co_name
        frame = frame.f_back


class Sampler:
    """Adds up the wall and CPU seconds of this process by category, from its start on.

    CPU seconds are those of all threads of the process; what the thread that is looked at does gets them.

    Args:
        clock: wall seconds.
        cpu_clock: CPU seconds of this process.
        age: wall seconds since it began; with its CPU seconds they are its start.

    Attributes:
        seconds: wall and CPU seconds by category.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
        age: float = 0.0,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._wall, self._cpu = clock(), cpu_clock()
        self.seconds: dict[str, tuple[float, float]] = {START: (age, self._cpu)}

    def add(self, stack: Iterable[Call]) -> None:
        """Counts the time since the last call for the category of ``stack``."""
        name, wall, cpu = attribute(stack), self._clock(), self._cpu_clock()
        before = self.seconds.get(name, (0.0, 0.0))
        self.seconds[name] = (before[0] + wall - self._wall, before[1] + cpu - self._cpu)
        self._wall, self._cpu = wall, cpu


@contextlib.contextmanager
def sampling(sampler: Sampler, write: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Looks at this thread from another one; ``write`` is called there now and then, and at the end.

    What fails there ends the looking, and nothing else.
    """
    looked_at, stop = threading.get_ident(), threading.Event()

    def look() -> None:
        with contextlib.suppress(Exception):
            _wait_exactly()
            written, generator = time.monotonic(), random.Random()  # its own: the run's numbers stay
            while not stop.wait(generator.uniform(0.0, 2 * PERIOD)):
                sampler.add(calls(sys._current_frames()[looked_at]))
                if time.monotonic() - written > WRITE_PERIOD:
                    write()
                    written = time.monotonic()
            write()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    thread = threading.Thread(target=look, name="profile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


@contextlib.contextmanager
def profiled(folder: Path, title: str, say: Callable[[str], None]) -> Iterator[None]:
    """Profiles this process and the worker processes that it starts.

    At the end it prints the table, writes ``profile.json`` and draws ``figures/profile.png``. Where it fails it says so
    in a line.

    Args:
        folder: of the run.
        title: of the figure.
        say: prints one line to the user.
    """
    parts = folder / "profile"
    sampler = Sampler(age=_age())
    with contextlib.ExitStack() as stack:
        with _failure_told(say):
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
            stack.enter_context(sampling(sampler))
            WorkerProcess.around = functools.partial(profiled_worker, parts)
        try:
            yield
        finally:
            WorkerProcess.around = contextlib.nullcontext
            stack.close()
            with _failure_told(say):
                workers = [json.loads(path.read_bytes()) for path in parts.glob("*.json")]
                shutil.rmtree(parts)
                report([sampler.seconds], workers, folder, title, say)


@contextlib.contextmanager
def profiled_worker(folder: Path) -> Iterator[None]:
    """Profiles a worker process into a file of ``folder``."""
    sampler, path = Sampler(age=_age()), folder / f"{os.getpid()}.json"

    def write() -> None:
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(sampler.seconds))
        os.replace(unfinished, path)

    with contextlib.ExitStack() as stack:
        with _failure_told(lambda line: None):
            stack.enter_context(sampling(sampler, write))
        yield


@contextlib.contextmanager
def _failure_told(say: Callable[[str], Any]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        with contextlib.suppress(Exception):
            say(f"warning: no profile: {type(error).__name__}: {' '.join(str(error).split())}")


def _wait_exactly() -> None:
    """Of this thread, on Linux: waits end on time, not up to 50 µs later, and so in the middle of shorter calls."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        pr_set_timerslack, nanoseconds = 29, 1
        prctl(pr_set_timerslack, nanoseconds)


def _age() -> float:
    """Wall seconds since this process began; elsewhere than on Linux its CPU seconds."""
    with contextlib.suppress(OSError, AttributeError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.process_time()
