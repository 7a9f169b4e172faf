"""What some options may be that no type says; each raises :class:`ValueError` for another value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import PlainValidator

from dsrl_torchrl.options import shown

AUTO = "auto"
#: OpenMP crashes when it is asked for very many.
MOST_PROCESSES = 256
#: Standard deviations of the prior; the farthest of a billion of its draws is 6 away.
MAX_MAGNITUDE = 100
#: Bytes of a file's name, and of a path with room for what runs put below.
MAX_FILE_NAME, MAX_PATH = 255, 2_000


def count(*others: Any) -> PlainValidator:
    """Of processes or threads, or one of ``others``."""

    def check(value: Any) -> Any:
        if value in others and not isinstance(value, bool):
            return value
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_PROCESSES:
            return value
        names = " or ".join("null" if other is None else other for other in others)
        raise ValueError(f"should be from 1 to {MOST_PROCESSES}, or {names}; got {shown(value)}")

    return PlainValidator(check)


def magnitude(value: Any) -> Any:
    """Standard deviations, or ``auto``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value != AUTO and not (number and 0 < value <= MAX_MAGNITUDE):
        raise ValueError(f"should be positive and at most {MAX_MAGNITUDE}, or auto; got {shown(value)}")
    return value


def device(value: str) -> str:
    """Torch's, or ``auto``; whether it is there is the machine's to say."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", value):
        raise ValueError(f"should be auto, cpu, cuda or cuda:<index>, got {shown(value)}")
    return value


def path(value: str) -> str:
    """A path that can be: what is there, only the step can say."""
    try:
        whole = Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"names a home that does not exist, got {shown(value)}") from None
    if len(str(whole).encode()) > MAX_PATH or any(len(part.encode()) > MAX_FILE_NAME for part in whole.parts):
        raise ValueError(
            f"should have at most {MAX_PATH} bytes, and {MAX_FILE_NAME} in each folder's name, got {shown(value)}"
        )
    return value


def text(value: Any) -> Any:
    """``name=5`` is a number to Hydra."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
