"""The words of a command line: which are overrides, and how Hydra has to read them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dsrl_torchrl.cli import search_path
from dsrl_torchrl.cli.help import choices
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import SHOWN, shown

#: One decision each: a folder in ``conf/``.
GROUPS = ("task", "base_policy", "algorithm", "networks", "collector", "logger", "experiment")
#: A suite is a file of this folder in ``conf/task/``: what its tasks have in common.
SUITE = "suite"
#: How the task of a suite is named.
TASK_NAMES = ("task", "env_id")
INTEGER = re.compile(r"[+-]?\d[\d_]*", re.ASCII)
#: The name of an option: ``task.env.goal``.
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)


def read_words(words: Sequence[str]) -> list[str]:
    """A command line as Hydra is to read it.

    Raises:
        UserError: as :func:`read_word`, a task without its suite, or a search path that is none.
    """
    found = search_path.folders(words)
    options = expand_suite([word for word in words if not search_path.is_search_path(word)])
    read = [override for word in options if (override := read_word(word, found)) is not None]
    return [search_path.override(found), *read] if found else read


def expand_suite(words: Sequence[str]) -> list[str]:
    """A command line in which ``suite=S task=T`` has become ``task=suite/S task.env.env_id=T``.

    ``env_id=T`` says the same as ``task=T``. Without a suite the words are left as they are.

    Raises:
        UserError: a task without its suite, or a suite without a task.
    """
    pairs = [word.partition("=")[::2] for word in words]
    suite = {name: value for name, value in pairs}.get("suite")
    if suite is None:
        for name, value in pairs:
            if name == "env_id":
                raise UserError(f"env_id={value} needs its suite: suite=<name> env_id={value}")
        return list(words)
    if not {"task", "env_id", "task.env.env_id", "experiment"} & {name.lstrip("+") for name, _ in pairs}:
        raise UserError(f"suite={suite} needs a task: suite={suite} task=<name>")
    expanded = [f"task={SUITE}/{suite}"]
    for word, (name, value) in zip(words, pairs, strict=True):
        if name != "suite":
            expanded.append(f"task.env.env_id={value}" if name in TASK_NAMES else word)
    return expanded


def read_word(word: str, folders: Sequence[Path] = ()) -> str | None:
    """One word as Hydra is to read it: ``a.b=c`` sets an option, whether or not YAML lists it.

    ``folders`` are the user's own, beside ``conf/``.

    Raises:
        UserError: it is no override, or names a choice that does not exist.
    """
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in word):
        raise UserError(f"expected readable text, got {shown(word)}")
    if word.startswith("-"):
        raise UserError(f"unknown flag {shown(word)}; options are Hydra overrides like seed=1, see dsrl --help")
    if word.startswith("~"):
        raise UserError(f"an option cannot be deleted, got {shown(word)}; give it another value, e.g. null")
    key, separator, value = word.lstrip("+").partition("=")  # Hydra's + and ++: no difference where a schema judges
    if not separator or not key:
        raise UserError(f"expected name=value, got {shown(word)}")
    if not NAME.fullmatch(key) or len(key) > SHOWN or key.partition(".")[0] == "hydra":
        raise UserError(f"unknown option {shown(key)}; dsrl <step> --help lists a step's options")
    if key in GROUPS:
        choice = _choice(key, value.strip(" '\""), folders)
        return None if choice is None else f"{key}={choice}"
    override = f"++{key}={value}"
    number = key == "name" and INTEGER.fullmatch(value)  # to Hydra `2024_01_15` is 20240115
    try:
        if not (number or OverridesParser.create().parse_override(override).is_sweep_override()):
            return override
    except (HydraException, RecursionError, ValueError):  # ValueError: Python's, for a number of thousands of digits
        pass
    # A path with `=`, `~` or a comma in it, for one: no value of Hydra's grammar, so the text as it is.
    quoted = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + match[2].replace("'", "\\'"), value)
    return f"++{key}='{quoted}'"


def _choice(group: str, name: str, folders: Sequence[Path]) -> str | None:
    if group == "task" and name.startswith(f"{SUITE}/"):
        return f"{SUITE}/{_choice(SUITE, name.removeprefix(f'{SUITE}/'), folders)}"
    suites = choices(f"task/{SUITE}", folders)
    known = suites if group == SUITE else choices(group, folders)
    if name in known:
        return name
    if (group, name) == ("experiment", "null"):
        return None
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    if group == "task":
        hint += f"; or {SUITE}=<name> task=<its own name>: {', '.join(suites)}"
    raise UserError(f"{group} needs a choice, {group}=<name>: one of {', '.join(known)}; got {shown(name)}{hint}")
