"""``_target_`` dicts: whatever a user names by its import path, checked before any work."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pydantic import TypeAdapter, ValidationError

from dsrl_torchrl.errors import UserError

#: ``{"_target_": "package.module.Name", keyword: value, ...}``
Target = dict[str, Any]


def find_target(spec: Mapping[str, Any] | None, where: str) -> Callable[..., Any]:
    """What ``_target_`` names.

    Raises:
        UserError: there is no ``_target_``, or nothing can be imported under its name.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
        raise UserError(f"{where} needs a _target_, the import path of what to call; got {spec!r}")
    try:
        target = pkgutil.resolve_name(spec["_target_"])
    # Importing somebody's module runs it, so it can fail in any way.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}._target_: cannot import {spec['_target_']} ({reason})") from None
    if not callable(target):
        raise UserError(f"{where}._target_: {spec['_target_']} is not callable")
    return target


def check_target(spec: Mapping[str, Any] | None, where: str, given: Iterable[str] = (), *, positional: int = 0) -> None:
    """Checks the keywords of a ``_target_`` dict, and of those inside of it, against the signatures.

    Args:
        spec: the dict.
        where: its name in the configuration.
        given: keywords that the caller will add.
        positional: how many arguments the caller will put before the keywords.

    Raises:
        UserError: an unknown or a missing keyword, or see :func:`find_target`.
    """
    target, given = find_target(spec, where), set(given)
    assert spec is not None
    keywords = {str(name) for name in spec if not str(name).startswith("_")}
    name = spec["_target_"].rsplit(".", 1)[-1]
    takes = dict(list(parameters(target).items())[positional:])
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
        for unknown in sorted(keywords - takes.keys()):
            near = difflib.get_close_matches(unknown, takes, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"it takes {', '.join(takes)}"
            raise UserError(f"unknown option {where}.{unknown}: {name} has no such argument; {hint}")
        for unknown in sorted(given - takes.keys()):
            raise UserError(f"{where}._target_: {name} must take the argument {unknown}; it takes {', '.join(takes)}")
    missing = [n for n, p in takes.items() if p.default is p.empty and p.kind not in _VARIABLE and n not in given]
    for needed in missing:
        if needed not in keywords:
            raise UserError(f"{where}.{needed} is missing: {name} needs it")
    hints = _simple_hints(target)
    for keyword, value in spec.items():
        if isinstance(value, Mapping) and "_target_" in value:
            check_target(value, f"{where}.{keyword}")
        elif keyword in hints:
            try:
                TypeAdapter(hints[keyword]).validate_python(value, strict=True)
            except ValidationError as error:
                expected = " or ".join(dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in error.errors()))
                raise UserError(f"{where}.{keyword} should be {expected}, got {value!r}") from None


def make(spec: Mapping[str, Any], **given: Any) -> Any:
    """Calls what a checked ``_target_`` dict names, with ``given`` beside its own keywords.

    Raises:
        Exception: what the call raises.
    """
    try:
        return instantiate(dict(spec), **given, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
    raise cause  # out here: raised above, cause and exception would be each other's context


def argument_meanings(spec: Mapping[str, Any]) -> dict[str, str]:
    """The first sentence on each argument in the docstring (Google style) of what a checked dict names."""
    if "_target_" not in spec:
        return {}
    target = find_target(spec, "")
    found = {"_target_": _plain((inspect.getdoc(target) or "").split("\n")[0])}
    for documented in inspect.getmro(target) if inspect.isclass(target) else (target,):
        if documented is object:
            continue
        for names, text in _ARGUMENT.findall(inspect.cleandoc(documented.__doc__ or "")):
            meaning = _plain(re.split(r"(?<!e\.g)[.;] |\.$", " ".join(text.split()))[0])
            found = {name.strip(): meaning for name in names.split(",")} | found
    return found


def _simple_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of numbers, flags and texts, which can be checked without calling anything."""
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # imported for type checking only, or a builtin
        return {}
    return {name: hint for name, hint in hints.items() if _alternatives(hint) <= _SIMPLE}


def _alternatives(hint: Any) -> set[Any]:
    return set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}


def _plain(text: str) -> str:
    """Without reStructuredText's marks."""
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")


#: ``    name, other: text``, continued on lines that are indented further.
_ARGUMENT = re.compile(r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {5,}.+)*)", re.MULTILINE)
_SIMPLE: set[Any] = {int, float, bool, str, type(None)}
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a call, without ``self``; of a class, those of its ``__init__``."""
    # A class's own signature may be its metaclass's: TorchRL's EnvBase shows (*args, **kwargs).
    function = target.__init__ if inspect.isclass(target) else target
    try:
        found = dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a builtin: it checks its keywords itself
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}
    if inspect.isclass(target):
        found.pop(next(iter(found)), None)
    return found
