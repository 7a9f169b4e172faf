"""From plain values to the typed configuration and back; every mistake is one line that names the option."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dsrl_torchrl.cli.targets import argument_meanings, find_target
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import Options, shown


@dataclass(frozen=True)
class Leaf:
    """One option that can be set, as ``dsrl <step> --help`` shows it."""

    name: str
    value: Any
    meaning: str


def build(cls: type[Options], values: Any, where: str = "", find: Callable[[str], str] = lambda name: "") -> Any:
    """Makes ``cls`` of plain nested values.

    Args:
        cls: the options.
        values: by name, as YAML gives them; values that are options already are kept.
        where: the prefix of the options' names.
        find: the hint for an unknown name.

    Raises:
        UserError: an unknown name, a missing one, or a wrong type or range.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise UserError(f"{where} should be options of its own ({', '.join(cls.model_fields)}), got {shown(values)}")
    for name in values:
        if name not in cls.model_fields:
            raise UserError(f"unknown option {_join(where, name)}{find(_join(where, name))}")
    built: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if name in values:
            kind, value = field.annotation, values[name]
            nested = inspect.isclass(kind) and issubclass(kind, Options)
            built[name] = build(cast(Any, kind), value, _join(where, name), find) if nested else from_yaml(value)
        elif field.is_required():
            raise UserError(f"{_join(where, name)} is missing: {field.description}")
    try:
        return cls(**built)
    except UserError as error:
        raise UserError(_join(where, str(error))) from None


def plain(value: Any) -> Any:
    """Options as plain JSON values; what was made of a ``_target_`` dict becomes that dict again."""
    if isinstance(value, Options):
        shown = [name for name, field in type(value).model_fields.items() if not field.exclude]
        return {name: plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, functools.partial):
        return plain(value.func) | plain(value.keywords)
    if callable(value):
        return {"_target_": f"{value.__module__}.{value.__qualname__}"}
    return str(value) if isinstance(value, Path) else value


def defaults(cls: type[Options]) -> dict[str, Any]:
    """The defaults of ``cls`` as plain values; options without one are left out."""
    found = {}
    for name, field in cls.model_fields.items():
        if not field.is_required():
            found[name] = plain(field.get_default(call_default_factory=True))
        elif inspect.isclass(field.annotation) and issubclass(field.annotation, Options):
            found[name] = defaults(field.annotation)
    return found


def partial_of(spec: Mapping[str, Any], where: str) -> Callable[..., Any]:
    """The callable that a ``_target_`` dict without its other arguments is."""
    keywords = {name: value for name, value in spec.items() if not name.startswith("_")}
    target = find_target(spec, where)
    return functools.partial(target, **keywords) if keywords else target


def leaves(options: Options, where: str = "") -> Iterator[Leaf]:
    """Every option below ``options``; the arguments of a ``_target_`` dict have no meaning of their own here."""
    for name, field in type(options).model_fields.items():
        value, meaning, path = getattr(options, name), field.description or "", _join(where, name)
        if field.exclude:
            continue
        if isinstance(value, Options):
            yield from leaves(value, path)
        else:
            yield from _free_leaves(path, plain(value), meaning)


def _free_leaves(name: str, value: Any, meaning: str) -> Iterator[Leaf]:
    """Options inside of one that is a dict: the arguments of a ``_target_`` mean what its docstring says."""
    if not (isinstance(value, dict) and value):
        yield Leaf(name, value, meaning)
        return
    known = argument_meanings(value)
    for key, item in sorted(value.items(), key=lambda entry: entry[0] != "_target_"):
        nested = isinstance(item, dict) and "_target_" not in item
        yield from _free_leaves(f"{name}.{key}", item, "" if nested else known.get(key, "" if known else meaning))


def nearest(name: str, known: list[str]) -> str:
    """A hint for an unknown option: the one that was probably meant."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
    if not near:
        # The right word in the wrong group, or misspelt in a long path.
        last = {option.rsplit(".", 1)[-1]: option for option in reversed(known)}
        near = [last[word] for word in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1, cutoff=0.75)]
    return f": did you mean {near[0]}?" if near else "; dsrl <step> --help lists a step's options"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def from_yaml(value: Any) -> Any:
    """Lists as tuples, which options hold: they cannot be changed."""
    if isinstance(value, dict):
        return {key: from_yaml(item) for key, item in value.items()}
    return tuple(from_yaml(item) for item in value) if isinstance(value, list) else value
