"""Wrong command lines, drawn from the schema: each is wrong by the rule of :mod:`tests.cli.settings`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsrl_torchrl.cli.help import choices
from dsrl_torchrl.cli.overrides import GROUPS

from .settings import LONG, NOPE, VALUES, fits, settings

#: Together they have every option of every algorithm, and every argument of what we ship.
CHOICES = [
    *[(f"algorithm={name}",) for name in choices("algorithm")],
    ("task=pick_cube", "base_policy=diffusion"),
    ("base_policy=shortcut",),
    ("base_policy=checkpoint", "base_policy.load.folder=nowhere"),
]
SECTIONS = (
    "task", "base_policy", "base_policy.training", "latent", "networks", "algorithm", "stage1", "stage2", "collector",
    "logger", "diagnosis", "evaluation", "task.demonstrations", "task.env",
)  # fmt: skip
WORDS = [
    "a b", "=x", "=", "+", "++", "~", "-", "--x", "--seed=1", "${nope}", "$(", "'", '"', "[", "]", "{", "}", "é", "é=1",
    "seed", "+seed", "~seed", "~latent", "~task=toy", "+=1", "~=1", "task@x=toy", "seed@x=1", "task/x=1", "hydra=null",
    "hydra.run.dir=x", "hydra/launcher=basic", "seed:1", "seed==1=", "seed =1", "0seed=1", "stage2..utd=1",
    "stage2.=1", ".seed=1", "seed\n=1", "name=a\nb", "name=a\0b", "name=\udcff", LONG, f"{LONG}=1", f"seed.{LONG}=1",
    "agent=x", "stage2.utd.x=1", "name=a/../../b", "name=/tmp/x", "output=~nobody-of-this-name/x",
]  # fmt: skip


def all_wrong() -> dict[str, list[tuple[str, ...]]]:
    """Wrong command lines by kind."""
    found: dict[str, list[tuple[str, ...]]] = {"word": [(word,) for word in WORDS]}
    seen: set[str] = set()  # what every choice has is tried once, but for the algorithms' options
    for words in CHOICES:
        known = settings(*words)
        names = {setting.name for setting in known}
        for setting in known:
            if setting.name in seen and not setting.name.startswith(("algorithm", "stage1.algorithm")):
                continue
            seen.add(setting.name)
            for text, value in VALUES:
                if not fits(setting, value):
                    found.setdefault(kind(value), []).append((*words, f"{setting.name}={text}"))
            for name in misspelt(setting.name):
                if not any(other.startswith(name) for other in names):
                    found.setdefault("misspelt", []).append((*words, f"{name}=1"))
    for section in SECTIONS:
        found.setdefault("section", []).extend([(f"{section}={text}",) for text in ("5", "abc", "[]", "[1]", "{x: 1}")])
    for group in GROUPS:
        wrong = [name for choice in choices(group) for name in (*misspelt(choice), f"{choice},x", f"[{choice},x]")]
        wrong += ["", "???", "5", "true", "[]", "{}", "_", "../x", "${nope}", LONG] + ["null"] * (group != "experiment")
        found.setdefault("choice", []).extend((f"{group}={name}",) for name in wrong if name not in choices(group))
    return found


def kind(value: Any) -> str:
    """What is wrong about a value that does not fit."""
    if value is NOPE:
        return "missing"
    if value is None:
        return "null"
    if value != value or value in (float("inf"), -float("inf")):
        return "not finite"
    if isinstance(value, (list, dict)):
        return "container"
    if isinstance(value, (int, float)):
        return "number"
    return "empty" if value == "" else "text"


def misspelt(name: str) -> Iterator[str]:
    """A letter too few, too many, and two in the wrong order."""
    yield name[:-1]
    yield name + name[-1]
    yield name[:-2] + name[-1] + name[-2]
