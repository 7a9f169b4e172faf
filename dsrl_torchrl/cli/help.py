"""What ``dsrl --help`` and ``dsrl <step> --help`` print."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `dsrl --help` is quick: it imports no torch
    from dsrl_torchrl.cli.config import RunConfig

STEPS = {
    "demos": "make demonstrations with the task's generator",
    "base": "clone the base policy from them (makes them first if need be)",
    "stage1": "steer it offline, from demonstrations and its own rollouts",
    "stage2": "steer it online, from there",
    "eval": "compare all policies of the run on the same held-out resets (makes the base policy first if need be)",
    "diagnose": "can the base be steered here, and with which noise: a page of figures and advice",
    "run": "demos to eval, skipping what exists",
}

USAGE = """usage: dsrl {step} [option ...]

{steps}

An option is `name=value` in Hydra's syntax, e.g.

  dsrl run task=push_cube seed=1            # another task, another seed
  dsrl run suite=metaworld task=push-v3     # a task of a simulator by its own name; suites: {suites}
  dsrl run algorithm=dsrl_na                # another algorithm: {algorithms}
  dsrl stage2 name=try2 stage2.utd=3        # another run folder, another hyper-parameter
  dsrl run resume=true                      # go on after an interruption
  dsrl run logger=wandb logger.mode=offline
  dsrl base task.demonstrations.path=my.h5  # your own ManiSkill demonstrations
  dsrl run base_policy=checkpoint base_policy.load.folder=runs/demo/base   # the base policy of another run
  dsrl run base_policy=load base_policy.load._target_=my_pkg.load_mine     # your own base policy
  dsrl run hydra.searchpath=[my_conf] task=mine                            # a task of your own, my_conf/task/mine.yaml
  dsrl run -m task=push_cube,pick_cube seed=0,1,2                          # every combination, a run each

A policy that has an environment of its own (SmolVLA, pi0.5, openpi) is served from there:

  dsrl serve-policy --lerobot <folder> --task "pick up ..."    # or --callable module:function; see --help
  dsrl serve-policy --print > serve_policy.py                  # the same as one file, where dsrl is not installed
  dsrl run base_policy=server base_policy.load.url=ws://127.0.0.1:8000

Results go to runs/<name>/. `dsrl <step> --help` lists every option with its value and meaning."""

COMMON = ("name", "output", "seed", "resume", "progress", "device", "profile")
#: The options that each step reads.
SECTIONS = {
    "demos": ("task",),
    "base": ("task", "base_policy"),
    "stage1": ("task", "base_policy", "latent", "networks", "algorithm", "stage1", "collector", "logger"),
    "stage2": ("task", "base_policy", "latent", "networks", "algorithm", "stage1", "stage2", "collector", "logger"),
    "eval": ("task", "base_policy", "latent", "networks", "algorithm", "collector", "evaluation"),
    "diagnose": ("task", "base_policy", "latent", "networks", "algorithm", "collector", "diagnosis"),
}
SECTIONS["run"] = (*SECTIONS["stage2"], "evaluation")


def usage() -> str:
    """The page of the command."""
    steps = "\n".join(f"  {name:<10}{text}" for name, text in STEPS.items())
    shown = {"algorithms": ", ".join(choices("algorithm")), "suites": ", ".join(choices("task/suite"))}
    return USAGE.format(step="{" + "|".join(STEPS) + "}", steps=steps, **shown)


def choices(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """The files of a group in ``conf/``, and in the user's own ``folders``."""
    from importlib import resources

    own = (folder / group for folder in folders if (folder / group).is_dir())
    places = (resources.files("dsrl_torchrl.conf").joinpath(group), *own)
    names = {entry.name for place in places for entry in place.iterdir()}
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and not name.startswith("_"))


def step_usage(step: str, config: RunConfig) -> str:
    """Every option of a step: its value, and what it means."""
    from dsrl_torchrl.cli.schema import leaves

    wanted = (*COMMON, *SECTIONS[step])
    shown = [leaf for leaf in leaves(config) if leaf.name.split(".")[0] in wanted]
    meanings = {f"stage1.{leaf.name}": f"offline: {leaf.meaning}" for leaf in shown}
    rows = [(f"{leaf.name}={_yaml(leaf.value)}", meanings.get(leaf.name, leaf.meaning)) for leaf in shown]
    width = min(48, max(len(setting) for setting, _ in rows)) + 2
    columns = max(80, shutil.get_terminal_size((120, 24)).columns)
    lines = [f"dsrl {step}: {STEPS[step]}", "", "Options and their values (override with name=value):", ""]
    for setting, meaning in rows:
        parts = textwrap.wrap(meaning, columns - width - 2, break_on_hyphens=False) or [""]
        if len(setting) > width - 2 and meaning:
            lines.append(f"  {setting}")
            setting = ""
        lines.append(f"  {setting:<{width}}{parts[0]}".rstrip())
        lines += [f"  {'':<{width}}{part}" for part in parts[1:]]
    return "\n".join(lines)


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
