"""Every file below a run folder damaged, exchanged or replaced by a pickle, and what the run makes of it."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from .commands import Forks
from .references import Reference, arguments
from .results import BOMBS, DAMAGES, differences, results
from .tally import Tally

#: What an unfinished run reads no more; of a finished one nothing is read but what it would say again.
UNREAD = ("stage1/checkpoints*", "stage1/stage1.png")
SAID = re.compile("damaged|another run|cannot read|does not fit|evaluating again")


@dataclass(frozen=True)
class State:
    """A run folder as a fault finds it.

    Args:
        name: for the table.
        folder: it.
        foreign: the folder of a run with another seed, as far.
    """

    name: str
    folder: Path
    foreign: Path


@dataclass(frozen=True)
class Damage:
    """What happens to which file or folder."""

    state: State
    what: str
    file: str

    @property
    def kind(self) -> str:
        """For the table."""
        return f"{self.state.name} run, {self.what}"


def unfinished(scratch: Path, forks: Forks, reference: Reference, *options: str) -> Path:
    """The folder of a run that was killed in stage 2, with two checkpoints of it."""
    scratch.mkdir()
    at = f".{Path(reference.checkpoints[-2]).name}"
    end = forks.run(
        arguments(scratch, *options), scratch / "killed", folder=scratch / "a", fault=(at, int(signal.SIGKILL))
    )
    assert end.wrong(-signal.SIGKILL) is None, end
    return scratch / "a"


def states(scratch: Path, forks: Forks, reference: Reference) -> list[State]:
    """A finished run and an unfinished one."""
    other = Reference(scratch / "other", forks, 1, "seed=1")
    left = unfinished(scratch / "unfinished", forks, reference)
    left_by_other = unfinished(scratch / "unfinished-other", forks, other, "seed=1")
    return [State("finished", reference.folder, other.folder), State("unfinished", left, left_by_other)]


def all_damages(state: State) -> Iterator[Damage]:
    """Of each file: damaged in three ways, a pickle, that of another run; and such folders as a whole."""
    for path in sorted(state.folder.rglob("*")):
        file = str(path.relative_to(state.folder))
        if path.is_file():
            yield from (Damage(state, what, file) for what in (*DAMAGES, "replaced by a pickle"))
        if _foreign(state, file) is not None:
            yield Damage(state, "taken from another run", file)


def damage_and_resume(
    tally: Tally, forks: Forks, reference: Reference, damage: Damage, *, scratch: Path, draw: random.Random
) -> None:
    """One try: the run is refused or goes on as if nothing had happened; restored, it goes on in any case."""
    folder = scratch / "a"
    shutil.copytree(damage.state.folder, folder)
    _inflict(damage, folder, scratch / "fired", draw)
    told, before = f"{scratch}: {damage.file} {damage.what}:", results(folder)
    end = forks.run(arguments(scratch, "resume=true"), scratch / "resumed")
    after = results(folder)
    if (scratch / "fired").exists():
        tally.add(damage.kind, "wrong", f"{told} the pickle was loaded")
    elif end.code:
        wrong = end.wrong(1, line=re.escape(str(folder)))
        if wrong is None and draw.random() < 0.2:
            wrong = _restored(forks, reference, scratch, damage)
        tally.add(damage.kind, "wrong" if wrong else "one line", f"{told} {wrong}")
        tally.note(f"{damage.state.name} run", "refused")
    elif end.lines:
        tally.add(damage.kind, "wrong", f"{told} {end.stderr}")
    else:
        differ = differences(after, reference.results)
        inside = [name for name in differ if name == damage.file or name.startswith(f"{damage.file}/")]
        untouched = not differences(after, before) or any(fnmatch(damage.file, pattern) for pattern in UNREAD)
        if differ and not (differ == inside and untouched):
            tally.add(damage.kind, "lost", f"{told} {differ}")
        else:
            tally.add(damage.kind, "one line" if SAID.search(end.stdout) else "no line")
            tally.note(f"{damage.state.name} run", "not read" if differ else "healed")


def _inflict(damage: Damage, folder: Path, mark: Path, draw: random.Random) -> None:
    path = folder / damage.file
    if damage.what in DAMAGES:
        DAMAGES[damage.what](path, draw)
    elif damage.what == "replaced by a pickle":
        draw.choice(BOMBS)(path, mark)
    else:
        source = _foreign(damage.state, damage.file)
        assert source is not None
        if path.is_dir():
            shutil.rmtree(path)
            shutil.copytree(source, path)
        else:
            shutil.copyfile(source, path)


def _restored(forks: Forks, reference: Reference, scratch: Path, damage: Damage) -> str | None:
    """What is wrong with the run after the damage is mended."""
    path, source = scratch / "a" / damage.file, damage.state.folder / damage.file
    if path.is_dir():
        shutil.rmtree(path)
        shutil.copytree(source, path)
    else:
        shutil.copyfile(source, path)
    end = forks.run(arguments(scratch, "resume=true"), scratch / "restored")
    differ = differences(results(scratch / "a"), reference.results)
    return end.wrong(0) or (f"restored, it differs in {differ}" if differ else None)


def _foreign(state: State, file: str) -> Path | None:
    """The same file or folder of the other run: of a checkpoint the one of the same age."""
    parts = Path(file).parts
    if len(parts) > 2 and parts[1] == "checkpoints":
        own, others = (
            sorted(p.name for p in (f / parts[0] / parts[1]).iterdir()) for f in (state.folder, state.foreign)
        )
        parts = (*parts[:2], others[own.index(parts[2])], *parts[3:])
    path = state.foreign.joinpath(*parts)
    same = path.is_file() and path.read_bytes() == (state.folder / file).read_bytes()
    return path if path.exists() and not same else None
