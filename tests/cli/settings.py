"""Every setting of the schema, and which values are right for it by a rule of the tests' own.

The rule reads the declared type and range, and asks neither pydantic nor the code under test.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tensordict.utils import NestedKey

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.targets import find_target
from dsrl_torchrl.options import Options

NOPE = object()  # what no setting may be
HUGE = 10**30
LONG = "x" * 100_000
#: Words of a command line, and what they are in Hydra's grammar; what is none of it is a text.
VALUES: list[tuple[str, Any]] = [
    ("abc", "abc"), ("a b", "a b"), ("=x", "=x"), ("x=", "x="), ("+", "+"), ("~", "~"), ("--x", "--x"), ("$(", "$("),
    ("'", "'"), ('"', '"'), ("[", "["), ("]", "]"), ("{", "{"), ("(", "("), ("[1", "[1"), ("é", "é"), ("日本", "日本"),
    (LONG, LONG), ("[" * 3_000, "[" * 3_000), ("9" * 5_000, "9" * 5_000), ("", ""), ("''", ""),
    ("null", None), ("true", True), ("false", False), ("0", 0), ("1", 1), ("-1", -1), ("-0.0", -0.0), ("1.5", 1.5),
    ("1e-400", 0.0), ("1e400", math.inf), ("-1e400", -math.inf), ("inf", math.inf), ("nan", math.nan),
    (str(HUGE), HUGE), (str(-HUGE), -HUGE), ("1e300", 1e300), ("[1]", [1]), ("[a]", ["a"]), ("[null]", [None]),
    ("[nan]", [math.nan]), ("[]", []), ("{a: 1}", {"a": 1}), ("???", NOPE), ("${nope}", NOPE), ("${", NOPE),
]  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One option: its name, what it is declared as, and the words that make it exist."""

    name: str
    hint: Any
    limits: tuple[Any, ...] = ()
    words: tuple[str, ...] = ()


def count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 256


def text_of_a_path(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode()) <= 240


def names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


#: Arguments that the run gives a target, or that are no values of YAML.
GIVEN = {
    "return", "path", "count", "action_noise", "seed", "progress", "observation_dim", "action_dim", "pred_horizon",
    "obs_horizon", "control_mode", "shape", "statistics", "device", "env", "folder",
}  # fmt: skip
#: What says more than a type, or less.
SPECIAL = {
    "name": lambda value: value is None
    or type(value) is int
    or (text_of_a_path(value) and not value.startswith("~")),
    "output": text_of_a_path,
    "task.demonstrations.path": lambda value: value is None or text_of_a_path(value),
    # It makes the run folder's name.
    "task.name": lambda value: text_of_a_path(value) and not value.startswith("~"),
    "device": lambda value: value in ("auto", "cpu", "cuda"),
    "latent.action_magnitude": lambda value: value == "auto"
    or (type(value) in (int, float) and 0 < value <= 100),
    "collector.num_workers": lambda value: value == "auto" or count(value),
    "collector.threads": lambda value: value in ("auto", None) or count(value),
    "networks.in_keys": lambda value: value is None or names(value),
    "base_policy.policy.in_key": lambda value: value == "observation",
    "base_policy.policy.image_keys": lambda value: value == [],  # the demonstrations have no other entry
    "task.demonstrations.generator.env_id": lambda value: value == "PickCube-v1",
    "task.demonstrations.generator.max_episode_steps": lambda value: value == 40,
    "task.demonstrations.generator.goal": lambda value: value == [0, 0],
    # Dicts, whose own checks are the arguments' or the algorithm's.
    "networks.encoders": lambda value: False,
    "stage1.algorithm": lambda value: False,
    "task.render": lambda value: value is None,
}  # fmt: skip


def fits(setting: Setting, value: Any) -> bool:
    """Whether a setting may have a value, in plain Python."""
    if value is NOPE:
        return False
    if setting.name in SPECIAL:
        return SPECIAL[setting.name](value)
    return _fits(setting.hint, value) and _within(setting.limits, value)


def _fits(hint: Any, value: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(arguments[0], value) and _within(arguments[1:], value)
    if origin in (Union, types.UnionType):
        return any(_fits(part, value) for part in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple and arguments[-1] is not ...:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(_fits, arguments, value))
    if origin in (tuple, list, Sequence):
        return isinstance(value, list) and all(_fits(arguments[0], item) for item in value)
    if origin in (dict, Mapping):  # a target's `_target_` is missing, and {a: 1} is no argument of anything
        return False
    if hint is NestedKey:
        return isinstance(value, str) or names(value)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint in (int, bool, str, type(None)):
        return type(value) is hint
    return True  # somebody's class: not for this rule to say


def _within(limits: Sequence[Any], value: Any) -> bool:
    size = len(value) if isinstance(value, (str, list)) else value
    for limit in limits:
        if hasattr(limit, "metadata"):  # pydantic's Field inside of Annotated
            if not _within(limit.metadata, value):
                return False
        elif isinstance(value, (str, list)):
            if not (getattr(limit, "min_length", 0) or 0) <= size <= (getattr(limit, "max_length", None) or math.inf):
                return False
        elif type(value) in (int, float):
            low, above = getattr(limit, "ge", None), getattr(limit, "gt", None)
            high, below = getattr(limit, "le", None), getattr(limit, "lt", None)
            if (low is not None and value < low) or (above is not None and value <= above):
                return False
            if (high is not None and value > high) or (below is not None and value >= below):
                return False
    return True


def inclusive_bounds(setting: Setting) -> list[Any]:
    """The numbers at the ends of a range that belong to it."""
    ends = [getattr(limit, end, None) for limit in setting.limits for end in ("ge", "le")]
    return [bound for bound in ends if bound is not None and fits(setting, bound)]


def settings(*words: str) -> list[Setting]:
    """Every setting of the configuration that ``words`` choose, the arguments of its targets included."""
    config = compose(["task=toy", *words])

    def walk(cls: type[Options], where: str) -> Iterator[Setting]:
        for name, field in cls.model_fields.items():
            hint = config.agent.Config if f"{where}{name}" == "algorithm" else field.annotation
            if inspect.isclass(hint) and issubclass(hint, Options):
                yield from walk(hint, f"{where}{name}.")
            elif not field.exclude:
                yield Setting(f"{where}{name}", hint, tuple(field.metadata), words)

    found = list(walk(RunConfig, ""))
    offline = [
        setting for setting in walk(config.offline_agent.Config, "stage1.algorithm.") if "gamma" not in setting.name
    ]
    return found + offline + [Setting(name, hint, (), words) for name, hint in _arguments(config.to_dict())]


def _arguments(values: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The annotated arguments of everything that is named by ``_target_``, but for what the run gives it."""
    if not isinstance(values, dict):
        return
    if "_target_" in values and where not in ("algorithm", "stage1.algorithm"):
        target = find_target(values, where)
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
        yield from ((f"{where}.{name}", hint) for name, hint in hints.items() if name not in GIVEN)
    for name, value in values.items():
        yield from _arguments(value, f"{where}.{name}" if where else name)
