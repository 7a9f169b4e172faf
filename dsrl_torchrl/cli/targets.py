"""``_target_`` dicts: whatever a user names by its import path, checked before any work."""

from __future__ import annotations

import difflib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pydantic import ConfigDict, TypeAdapter, ValidationError
from tensordict.utils import NestedKey

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import expected, shown

#: ``{"_target_": "package.module.Name", keyword: value, ...}``
Target = dict[str, Any]


def find_target(spec: Mapping[str, Any] | None, where: str) -> Callable[..., Any]:
    """What ``_target_`` names.

    Raises:
        UserError: there is no ``_target_``, or nothing can be imported under its name.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
        raise UserError(f"{where} needs a _target_, the import path of what to call; got {shown(spec)}")
    try:
        target = pkgutil.resolve_name(spec["_target_"])
    # Importing somebody's module runs it, so it can fail in any way.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}._target_: cannot import {spec['_target_']} ({reason})") from None
    if not callable(target):
        raise UserError(f"{where}._target_: {spec['_target_']} is not callable")
    return target


def check_target(
    spec: Mapping[str, Any] | None,
    where: str,
    given: Iterable[str] = (),
    *,
    takes: Iterable[str] = (),
    positional: int = 0,
) -> None:
    """Checks the keywords of a ``_target_`` dict, and of those inside of it, against signatures and annotations.

    Args:
        spec: the dict.
        where: its name in the configuration.
        given: keywords that the caller will add; the dict cannot set them.
        takes: keywords that the caller may add, or the dict.
        positional: how many arguments the caller will put before the keywords.

    Raises:
        UserError: an unknown or a missing keyword, one of another type than its annotation's, or see
            :func:`find_target`.
    """
    target, given = find_target(spec, where), set(given)
    assert spec is not None
    keywords = {str(name) for name in spec} - {"_target_"}
    name = spec["_target_"].rsplit(".", 1)[-1]
    accepted = dict(list(parameters(target).items())[positional:])
    has = ", ".join(accepted) or "none"
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        for unknown in sorted(keywords - accepted.keys()):
            near = difflib.get_close_matches(unknown, accepted, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"its arguments: {has}"
            raise UserError(f"unknown option {where}.{unknown}: {name} has no such argument; {hint}")
        for unknown in sorted({*given, *takes} - accepted.keys()):
            raise UserError(f"{where}._target_: {name} must take the argument {unknown}; its arguments: {has}")
    for taken in sorted(keywords & given):
        raise UserError(f"{where}.{taken} cannot be set: the run gives {name} its own")
    for control in sorted(word for word in keywords if word.startswith("_")):
        raise UserError(f"unknown option {where}.{control}: a dict with a _target_ is a plain call")
    missing = [n for n, p in accepted.items() if p.default is p.empty and p.kind not in _VARIABLE and n not in given]
    for needed in missing:
        if needed not in keywords:
            raise UserError(f"{where}.{needed} is missing: {name} needs it")
    hints = _checkable_hints(target)
    for keyword, value in spec.items():
        if isinstance(value, Mapping) and "_target_" in value:
            check_target(value, f"{where}.{keyword}")
        elif keyword in hints:
            _check_type(value, hints[keyword], f"{where}.{keyword}")


def _check_type(value: Any, hint: Any, where: str) -> None:
    adapter = TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))
    # An annotation may ask for the list that YAML gives, or for a tuple, as TensorDict's nested keys do.
    for given in (value, _tuples(value)):
        try:
            adapter.validate_python(given)
            return
        except ValidationError as error:
            wanted = " or ".join(dict.fromkeys(expected(details["msg"]) for details in error.errors()))
    raise UserError(f"{where} should {wanted.replace(' or be ', ' or ')}, got {shown(value)}")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def make(spec: Mapping[str, Any], **given: Any) -> Any:
    """Calls what a checked ``_target_`` dict names, with ``given`` beside its own keywords.

    Raises:
        UserError: this machine has not the memory.
        Exception: what the call raises.
    """
    try:
        return instantiate(dict(spec), **given, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
    if isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and "memory" in str(cause)):
        raise UserError(f"{spec['_target_']} with these sizes needs more memory than there is")
    raise cause  # out here: raised above, cause and exception would be each other's context


def argument_meanings(spec: Mapping[str, Any]) -> dict[str, str]:
    """The first sentence on each argument in the docstring (Google style) of what a checked dict names.

    An algorithm's are its options.
    """
    if "_target_" not in spec:
        return {}
    target = find_target(spec, "")
    found = {"_target_": _plain((inspect.getdoc(target) or "").split("\n")[0])}
    if inspect.isclass(target) and issubclass(target, Agent):
        return found | {name: field.description or "" for name, field in target.Config.model_fields.items()}
    for documented in inspect.getmro(target) if inspect.isclass(target) else (target,):
        if documented is object:
            continue
        for names, text in _ARGUMENT.findall(inspect.cleandoc(documented.__doc__ or "")):
            meaning = _plain(re.split(r"(?<!e\.g)[.;] |\.$", " ".join(text.split()))[0])
            found = {name.strip(): meaning for name in names.split(",")} | found
    return found


def _checkable_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations that can be held against YAML's values: numbers, flags, texts, and lists of them."""
    try:
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target, include_extras=True)
    except (NameError, TypeError, AttributeError):  # imported for type checking only, or a builtin
        return {}
    checkable = {name: _of_yaml(hint) for name, hint in hints.items()}
    return {name: hint for name, hint in checkable.items() if hint is not None}


def _of_yaml(hint: Any) -> Any:
    """The part of an annotation that YAML can give; ``None`` where that is not known."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):  # of `torch.device | str`, a configuration has the text
        known = [part for part in map(_of_yaml, get_args(hint)) if part is not None]
        return Union[tuple(known)] if set(known) - {type(None)} else None  # noqa: UP007
    if origin is Annotated:
        return None if _of_yaml(get_args(hint)[0]) is None else hint
    if origin is Literal or hint in _SIMPLE:
        return hint
    if origin in _CONTAINERS and all(_of_yaml(item) is not None for item in get_args(hint)):
        return hint
    return None


def _plain(text: str) -> str:
    """Without reStructuredText's marks."""
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")


#: ``    name, other: text``, continued on lines that are indented further.
_ARGUMENT = re.compile(r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {5,}.+)*)", re.MULTILINE)
_SIMPLE = (int, float, bool, str, type(None), NestedKey, Any, ...)
_CONTAINERS = (list, tuple, dict, Sequence, Mapping)
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


def agent_class(algorithm: Any, where: str = "algorithm") -> type[Agent]:
    """The agent that ``<where>._target_`` names."""
    agent = find_target(algorithm, where)
    if not (inspect.isclass(agent) and issubclass(agent, Agent)):
        raise UserError(f"{where}._target_ should name a subclass of {Agent.__module__}.Agent, got {agent!r}")
    return agent
