"""``hydra.searchpath=[my_conf]``: a folder of the user's own YAML files, laid out as ``conf/`` is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import shown

NAME = "hydra.searchpath"


def is_search_path(word: str) -> bool:
    """Whether a word of the command line names such folders."""
    return word.partition("=")[0] == NAME


def folders(words: Sequence[str]) -> list[Path]:
    """The folders that a command line names, absolute; the last word has the last word.

    Raises:
        UserError: no list, or of something that is no folder.
    """
    named = [word for word in words if is_search_path(word)]
    if not named:
        return []
    try:
        value = OverridesParser.create().parse_override(named[-1]).value()
    except (HydraException, RecursionError, ValueError):
        value = None
    if not isinstance(value, list) or not value:
        raise UserError(f"{NAME} needs a list of folders, {NAME}=[my_conf]; got {shown(named[-1])}")
    found = [Path(str(item).removeprefix("file://")).expanduser().absolute() for item in value]
    for folder in found:
        if not folder.is_dir():
            raise UserError(f"{NAME}: {shown(str(folder))} is no folder; expected one like conf/, with task/mine.yaml")
    return found


def yaml_mistake(error: Exception, found: Sequence[Path]) -> str | None:
    """File, line and problem, where ``error`` is what reading a YAML file in one of the folders raised."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, MarkedYAMLError) and mark is not None:
        return f"{mark.name}, line {mark.line + 1}: {error.problem or error.context}"
    if isinstance(error, ReaderError):
        before = Path(error.name).read_text()[: error.position]
        return f"{error.name}, line {before.count(chr(10)) + 1}: a character that YAML does not allow: {error.reason}"
    if isinstance(error, UnicodeDecodeError):  # which does not tell the file
        for path in (path for folder in found for path in sorted(folder.rglob("*.yaml"))):
            data = path.read_bytes()
            try:
                data.decode()
            except UnicodeDecodeError as inside:
                line = data[: inside.start].count(b"\n") + 1
                return f"{path}, line {line}: a byte that is no UTF-8: {inside.reason}"
    return None


def override(found: Sequence[Path]) -> str:
    """The word by which Hydra finds them."""
    quoted = [str(folder).replace("\\", "\\\\").replace("'", "\\'") for folder in found]
    places = ",".join(f"'file://{folder}'" for folder in quoted)
    return f"{NAME}=[{places}]"
