"""``dsrl <step> -m``: every combination of the listed values, a run each, started by a launcher of Hydra's."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

from hydra import initialize_config_module
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dsrl_torchrl.collect.spawned_process import ask_to_end_with_parent
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import shown

# No torch up here: a launcher's processes import this file to start a run, and wait for it.

FLAGS = ("-m", "--multirun")
#: What a sweep reads itself: `hydra/launcher=joblib`, `hydra.launcher.n_jobs=2`.
LAUNCHER = re.compile(r"\+{0,2}hydra(/launcher=(?P<name>.*)|\.launcher\..+)", re.DOTALL)
#: One after the other, in this process's place.
IN_TURN = "basic"
#: Stands for the number of the process that waits for a run.
PARENT = "PARENT"
#: A run of a sweep: the command, which ends with that process, and like `dsrl` imports nothing from the current folder.
RUN = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    f"from dsrl_torchrl.cli.sweep import run_with_parent; run_with_parent({PARENT})"
)


def combinations(words: Sequence[str]) -> list[list[str]]:
    """The command line of each run: the product of what Hydra's syntax lists, ``seed=0,1``, ``seed=range(3)``.

    Raises:
        UserError: values that cannot be listed.
    """
    return [list(choice) for choice in product(*map(_alternatives, words))]


def _alternatives(word: str) -> list[str]:
    name, separator, value = word.partition("=")
    try:
        # The name is judged later: by Hydra's grammar here, what is wrong with a word would not be told.
        override = OverridesParser.create().parse_override(f"x={value}")
        if not separator or LAUNCHER.fullmatch(word) or not override.is_sweep_override():
            return [word]
        if not override.is_discrete_sweep() or isinstance(override.value(), Glob):
            raise UserError(f"a sweep needs a list of values, {name}=a,b; got {shown(word)}")
        return [f"{name}={text}" for text in override.sweep_string_iterator()]
    except (HydraException, RecursionError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        return [word]  # no value of Hydra's grammar: a text


class Sweep:
    """The runs of one command line, checked.

    Args:
        step: what each of them does.
        words: the command line without the flag.

    Raises:
        UserError: a mistake in any of the configurations, two runs in one folder, or a launcher that is not there.
    """

    def __init__(self, step: str, words: Sequence[str]) -> None:
        from dsrl_torchrl.cli.compose import compose
        from dsrl_torchrl.cli.overrides import read_words
        from dsrl_torchrl.cli.search_path import is_search_path

        self.step = step
        self.launcher_words = [word for word in words if LAUNCHER.fullmatch(word)]
        self.launcher_name = launcher_name(self.launcher_words)
        words = [word for word in words if word not in self.launcher_words]
        if self.launcher_name != IN_TURN:  # bars of several runs in one terminal, or in log files
            words = ["progress=false", *words]
        lines = combinations(words)
        configs = [compose(line) for line in lines]
        self.search_words = [word for word in read_words(lines[0]) if is_search_path(word)]
        self.runs = [[word for word in read_words(line) if not is_search_path(word)] for line in lines]
        self.folders = [config.folder for config in configs]
        self._refuse_shared_folders(lines)
        task = partial(run_once, [sys.executable, "-c", RUN, self.step, *self.search_words], os.getcwd())
        output = os.path.abspath(os.path.expanduser(configs[0].output))
        self._launcher = make_launcher(self.launcher_words, task, output, self.search_words)

    def run(self) -> None:
        """Does them all, and says which of them failed.

        Raises:
            UserError: some have.
        """
        print(f"sweep: {len(self.runs)} runs, launcher {self.launcher_name}", flush=True)
        try:
            codes = [done.return_value for done in self._launcher.launch(self.runs, initial_job_idx=0)]
        except Exception as error:
            # The launcher's own processes were killed, or its cluster refused. A run that fails is a number.
            what = " ".join(str(error).split()) or "it said nothing"
            raise UserError(
                f"hydra/launcher={self.launcher_name} failed ({type(error).__name__}: {what[:500]}); "
                "runs that it had started may go on: look there, then sweep again with resume=true"
            ) from error
        failed = [f"{folder} ({_end(code)})" for folder, code in zip(self.folders, codes, strict=True) if code]
        if failed:
            raise UserError(f"{len(failed)} of {len(codes)} runs failed: {', '.join(failed)}")
        print(f"sweep: {len(codes)} runs done")

    def _refuse_shared_folders(self, lines: Sequence[Sequence[str]]) -> None:
        first: dict[str, int] = {}
        for index, folder in enumerate(self.folders):
            other = first.setdefault(os.path.realpath(folder), index)
            if other != index:
                pairs = [(a, b) for a, b in zip(lines[other], lines[index], strict=True) if a != b]
                sides = (" ".join(side) for side in zip(*pairs, strict=True)) if pairs else ("the same twice",)
                raise UserError(
                    f"two runs of the sweep share the folder {folder} ({' and '.join(sides)}): put what differs into "
                    "name=, e.g. name='${task.name}-utd${stage2.utd}-seed${seed}'"
                )


def make_launcher(
    words: Sequence[str], task: Callable[[Any], Any], output: str, search_words: Sequence[str] = ()
) -> Launcher:
    """Hydra's launcher that ``words`` name; ``launch(lines)`` composes each line and calls ``task`` with it.

    Nothing of Hydra's own lies in a run folder, or is printed; what a launcher leaves is in ``output``.

    Args:
        words: those of :data:`LAUNCHER`.
        task: pickled; what it is called with is not of use, :func:`launched_line` tells the line.
        output: an absolute path.
        search_words: of the user's own configuration folders.

    Raises:
        UserError: a launcher that is not there, or a wrong option of it.
    """
    from dsrl_torchrl.cli.compose import CONF, hydra_message

    name = launcher_name(words)
    quoted = output.replace("\\", "\\\\").replace("'", "\\'")
    quiet = ["hydra/hydra_logging=none", "hydra/job_logging=none", "hydra.output_subdir=null"]
    line = [f"hydra.sweep.dir='{quoted}'", "hydra.sweep.subdir=.", *quiet, *search_words, *words]
    plugins = Plugins.instance()
    try:
        with initialize_config_module(CONF, job_name="dsrl", version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            known = hydra.config_loader.get_group_options("hydra/launcher")
            if name not in known:
                raise UserError(
                    f"hydra/launcher={shown(name)} is not one of {', '.join(known)}; joblib and "
                    "submitit come with pip install 'dsrl-torchrl[sweep]'"
                )
            config = hydra.compose_config("config", line, run_mode=RunMode.MULTIRUN)
            return plugins.instantiate_launcher(
                hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks()),
                task_function=task,
                config=config,
            )
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(hydra_message(error)) from None


def launcher_name(words: Sequence[str]) -> str:
    """The last ``hydra/launcher=<name>`` of ``words``."""
    names = [match["name"] for word in words if (match := LAUNCHER.fullmatch(word)) and match["name"] is not None]
    return names[-1] if names else IN_TURN


def launched_line() -> list[str]:
    """In a launched task: its line, as it was given."""
    words = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    assert isinstance(words, list)
    return [str(word).lstrip("+") for word in words]


def run_once(command: list[str], cwd: str, _: Any) -> int:
    """Does one run in a process of its own, as ``dsrl`` does; what Hydra composes for it is composed again there.

    So one that crashes, or is killed for its memory, leaves the others alone; and no run inherits a simulator, threads
    or random numbers from the one before. It has no part in the terminal's Ctrl-C: it ends with this process.

    Args:
        command: Python, ``-c``, its code, and what the options are appended to, from the step on.
        cwd: where the sweep was started; joblib's processes outlive a sweep, and may be elsewhere.

    Returns:
        Its exit code.
    """
    words = launched_line()
    python, flag, code, *step = command
    code = code.replace(PARENT, str(os.getpid()))
    print(f"sweep: {shlex.join(['dsrl', *step, *words])}", flush=True)
    return subprocess.run([python, flag, code, *step, *words], cwd=cwd, start_new_session=True).returncode


def run_with_parent(parent: int) -> None:
    """In that process: the command, unless the process ``parent`` that started it is gone already."""
    from dsrl_torchrl.cli.main import main

    ask_to_end_with_parent()
    if os.getppid() != parent:
        raise SystemExit(1)  # it ended before this process had asked
    main()


def _end(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
