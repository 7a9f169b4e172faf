"""Options: declared once, with a default, a meaning and a range; a wrong one is a one-line :class:`UserError`."""

from __future__ import annotations

import re
from copy import copy
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from dsrl_torchrl.errors import UserError

#: No number of an option lies beyond: it would overflow a count, a float32, or any machine's memory.
MOST = 1_000_000_000
#: Characters of a wrong value that its message repeats.
SHOWN = 80


def option(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of :class:`Options`.

    Args:
        default: its value.
        meaning: one phrase, what ``dsrl <step> --help`` shows.
        limits: pydantic's: ``gt``, ``ge``, ``lt``, ``le``, ``min_length``; numbers lie within ±:data:`MOST` anyway.
    """
    if isinstance(default, (int, float)) and not isinstance(default, bool):
        below = {} if limits.keys() & {"gt", "ge"} else {"ge": -MOST}
        above = {} if limits.keys() & {"lt", "le"} else {"le": MOST}
        limits = below | above | limits
    return Field(default, description=meaning, **limits)


class Options(BaseModel):
    """A frozen set of options: unknown names, other types, NaN and infinity are refused.

    Fields are declared by :func:`option`. A field of choices is a ``Literal``; sequences are ``tuple``.
    """

    # Strict: `true` is no number and `1.5` no integer.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        validate_default=True,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(one_line(error)) from None

    def replace(self, **changes: Any) -> Any:
        """The same options but for ``changes``, checked again."""
        return type(self)(**({name: getattr(self, name) for name in type(self).model_fields} | changes))


Declared = TypeVar("Declared", bound=Options)


def with_defaults(options: type[Declared], **defaults: Any) -> type[Declared]:
    """The same options with other defaults: a base class for options that add some of their own."""
    fields: dict[str, Any] = {}
    for name, value in defaults.items():
        field = copy(options.model_fields[name])
        field.default = value
        fields[name] = (field.annotation, field)
    return create_model(options.__name__, __base__=options, __module__=options.__module__, **fields)


def one_line(error: ValidationError) -> str:
    """The first mistake: where, what was expected, what came."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown option {where}"
    if first["type"] == "value_error":
        message = str(first["msg"]).removeprefix("Value error, ")
        return f"{where}: {message}" if where else message
    return f"{where} should {expected(first['msg'])}, got {shown(first['input'])}"


def expected(message: str) -> str:
    """What pydantic says after "Input should ", or "String should "."""
    if message == "Field required":  # of a tuple that is too short
        return "be given, too"
    if message.endswith("instances are not allowed as a Sequence value"):
        return "be a list"
    return re.sub(r"^\w+ should ", "", message)


def shown(value: Any) -> str:
    """A wrong value as messages repeat it: its beginning, if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"
