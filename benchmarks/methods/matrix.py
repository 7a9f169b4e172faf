"""What a suite runs: tasks × methods × seeds, and the words of ``dsrl`` that each cell is."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml

from dsrl_torchrl.cli.checks import check_together
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.schema import build
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import Options, option, shown

HERE = Path(__file__).parent
DEMONSTRATIONS = Path("demos", "trajectory.h5")
FAMILIES = ("no learning", "DSRL", "successors", "latent env", "raw actions", "offline")


class Method(Options):
    """One entry of ``methods.yaml``."""

    what: str = option(..., "one line")
    source: str = option(..., "paper, or the file that says what it is")
    family: Literal[FAMILIES] = option(..., "rows of the issue's table")  # type: ignore[valid-type]
    overrides: tuple[str, ...] = option((), "words of dsrl")
    steps: tuple[Literal["stage1", "run", "eval"], ...] = option(("run",), "of dsrl, one after the other")
    policies: tuple[str, str] = option(
        ("stage2_stochastic", "stage2_deterministic"), "in summary.json: the method's, sampled and by its mode"
    )


class Task(Options):
    """One task of a suite."""

    overrides: tuple[str, ...] = option(..., "words of dsrl, of the frozen base policy and of every cell")
    env_steps: int = option(..., "of every method, in total: its offline rollouts are among them", ge=1)
    methods: tuple[str, ...] | None = option(None, "names; null: all of methods.yaml")


class SuiteFile(Options):
    """``suites/<name>.yaml``."""

    what: str = option(..., "one line")
    seeds: tuple[int, ...] = option(..., "of the runs", min_length=1)
    overrides: tuple[str, ...] = option((), "words of dsrl, of every cell of every task")
    diagnose: bool = option(False, "measure how the learned critics rank noises, after each method that learns")
    tasks: dict[str, Any] = option(..., "by name, in the order in which they run")


@dataclass(frozen=True)
class Shared:
    """What all methods of a task and seed begin from: one checkpoint, its demonstrations, its rollouts."""

    task: str
    seed: int
    folder: Path
    words: tuple[str, ...]
    rollouts: bool  #: whether some method learns from them

    @property
    def name(self) -> str:
        return f"{self.task}/frozen/seed{self.seed}"

    @property
    def base(self) -> Path:
        """The checkpoint."""
        return self.folder / "base"


@dataclass(frozen=True)
class Cell:
    """One run: a method on a task with a seed.

    Attributes:
        options: its words but for paths, which may be others on another machine.
        rollouts: whether it learns from offline rollouts, whose env steps are among its own.
    """

    task: str
    method: str
    seed: int
    spec: Method
    shared: Shared
    folder: Path
    options: tuple[str, ...]
    steps: tuple[str, ...]
    rollouts: bool

    @property
    def name(self) -> str:
        return f"{self.task}/{self.method}/seed{self.seed}"

    @property
    def words(self) -> list[str]:
        """The whole command line of ``dsrl <step>``."""
        return [
            *self.options,
            *frozen_words(self.shared.folder),
            f"output={self.folder.parents[2]}",
            f"name={self.name}",
            "resume=true",
        ]


@dataclass(frozen=True)
class Suite:
    """A suite that has been checked.

    Attributes:
        cells: in the order in which they run: by seed, then task, then as ``methods.yaml`` lists the methods. So what
            a sitting leaves is a whole table of few seeds, not one method with many.
    """

    name: str
    what: str
    tasks: dict[str, Task]
    methods: dict[str, Method]
    cells: tuple[Cell, ...]

    def select(self, patterns: str) -> list[Cell]:
        """The cells that one of the ``task/method/seed`` patterns names, with shell wildcards; short ones end in ``*``.

        Raises:
            UserError: a pattern that names none.
        """
        chosen: set[str] = set()
        for pattern in patterns.split(","):
            parts = [*pattern.split("/"), "*", "*"][:3]
            found = [
                cell.name
                for cell in self.cells
                if fnmatchcase(cell.task, parts[0])
                and fnmatchcase(cell.method, parts[1])
                and (fnmatchcase(f"seed{cell.seed}", parts[2]) or fnmatchcase(str(cell.seed), parts[2]))
            ]
            if not found or pattern.count("/") > 2:
                raise UserError(
                    f"only={shown(pattern)} names no cell of suite={self.name}: <task>/<method>/<seed>, of the tasks "
                    f"{', '.join(self.tasks)}, the methods {', '.join(self.methods)} and the seeds "
                    f"{', '.join(sorted({str(cell.seed) for cell in self.cells}))}"
                )
            chosen.update(found)
        return [cell for cell in self.cells if cell.name in chosen]


def frozen_words(folder: Path) -> tuple[str, ...]:
    """How whatever runs beside it gets the frozen policy and the demonstrations in ``folder``."""
    return (
        "base_policy=checkpoint",
        f"base_policy.load.folder={folder / 'base'}",
        f"task.demonstrations.path={folder / DEMONSTRATIONS}",
    )


def suite_names(folder: Path = HERE) -> list[str]:
    """The suites that there are."""
    return sorted(path.stem for path in (folder / "suites").glob("*.yaml"))


def read_suite(name: str, output: Path, folder: Path = HERE) -> Suite:
    """Reads ``suites/<name>.yaml`` and ``methods.yaml`` in ``folder``, and composes every configuration once.

    Raises:
        UserError: a name, key or word that is none, found before any work.
    """
    check_choice("suite", name, suite_names(folder))
    file = _build(SuiteFile, _read(folder / "suites" / f"{name}.yaml"), f"suites/{name}.yaml")
    tasks = {str(task): _build(Task, spec, f"suites/{name}.yaml: tasks.{task}") for task, spec in file.tasks.items()}
    entries = _read(folder / "methods.yaml")
    methods = {str(method): _build(Method, spec, f"methods.yaml: {method}") for method, spec in entries.items()}
    for task in tasks.values():
        for method in task.methods or ():
            check_choice(f"suites/{name}.yaml: methods", method, list(methods))
    plans = {
        (task, method): _plan(file, tasks[task], methods[method], f"{task}/{method}")
        for task in tasks
        for method in methods
        if tasks[task].methods is None or method in tasks[task].methods
    }
    root = output / name
    cells = []
    for seed in file.seeds:
        for task, spec in tasks.items():
            mine = {method: plan for (where, method), plan in plans.items() if where == task}
            words = (*file.overrides, *spec.overrides, _online(spec.env_steps), *_alone(seed))
            rollouts = any(rolls for _, rolls in mine.values())
            shared = Shared(task, seed, root / task / "frozen" / f"seed{seed}", words, rollouts)
            for method, (options, rolls) in mine.items():
                steps = methods[method].steps
                if file.diagnose and steps != ("eval",):
                    steps = (*steps, "diagnose")
                cell_folder = root / task / method / f"seed{seed}"
                options = (*options, *_alone(seed))
                cells.append(Cell(task, method, seed, methods[method], shared, cell_folder, options, steps, rolls))
    used = {method for _, method in plans}
    return Suite(name, file.what, tasks, {k: v for k, v in methods.items() if k in used}, tuple(cells))


def check_choice(what: str, name: str, known: Sequence[str]) -> None:
    """Raises :class:`UserError` for a name that is not one of ``known``."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{what} should be one of {', '.join(known)}; got {shown(name)}{hint}")


def _plan(file: SuiteFile, task: Task, method: Method, where: str) -> tuple[tuple[str, ...], bool]:
    """The options of a method on a task, its online env steps among them, and whether it learns from rollouts.

    Equal env steps in total: who takes no offline rollouts, and searches for no noise, gets as many more online.
    """
    words = (*file.overrides, *task.overrides, *method.overrides)

    try:
        config = compose([*words, *frozen_words(Path("frozen")), _online(task.env_steps)])
        offline = "stage1" in method.steps or bool(config.stage2.from_stage1) or config.needs_offline_data
        rolls = method.steps != ("eval",) and offline
        if "run" not in method.steps:
            return (*words, _online(task.env_steps)), rolls
        before = config.latent.centre_env_steps + (config.stage1.rollout_env_steps if rolls else 0)
        online = task.env_steps - before
        if online < 1:
            raise UserError(
                f"stage1.rollout_env_steps and latent.centre_env_steps ({before}) leave none of env_steps "
                f"({task.env_steps}): lower them in the suite"
            )
        check_together(config.replace(stage2=config.stage2.replace(total_env_steps=online)), str)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return (*words, _online(online)), rolls


def _online(env_steps: int) -> str:
    return f"stage2.total_env_steps={env_steps}"


def _alone(seed: int) -> tuple[str, ...]:
    """One core a cell: they run side by side."""
    return (f"seed={seed}", "collector.num_workers=1", "collector.threads=1", "progress=false", "evaluation.videos=0")


def _build(cls: type[Options], values: Any, where: str) -> Any:
    known: Callable[[str], str] = lambda name: f"; the keys are {', '.join(cls.model_fields)}"  # noqa: E731
    try:
        return build(cls, values, "", known)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path.name} should map names to entries, got {shown(values)}")
    return values
