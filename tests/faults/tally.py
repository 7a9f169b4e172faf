"""What was tried and what came of it, by kind."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from typing import Literal

COLUMNS = ("tried", "one line", "no line", "wrong", "lost")
Outcome = Literal["one line", "no line", "wrong", "lost"]


class Tally:
    """Counts of all kinds.

    ``one line``: the command said what had happened, as promised. ``no line``: rightly so, after ``kill -9`` or where
    nothing was lost. ``wrong``: another message or exit code, or a process that was left. ``lost``: the run did not go
    on afterwards, or has other numbers than one that nothing happened to.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.notes: dict[str, Counter[str]] = defaultdict(Counter)
        self.failures: list[str] = []
        self._lock = threading.Lock()

    def add(self, kind: str, outcome: Outcome, what: str = "") -> None:
        """One try; ``what`` went wrong is printed at once."""
        with self._lock:
            self.counts[kind] += Counter(["tried", outcome])
            if outcome in ("wrong", "lost"):
                self.failures.append(f"{outcome}: {kind}: {what}")
                print(self.failures[-1], flush=True)

    def note(self, kind: str, what: str) -> None:
        """Counts something beside the table."""
        with self._lock:
            self.notes[kind][what] += 1

    def tried(self) -> int:
        """All tries so far."""
        with self._lock:
            return sum(count["tried"] for count in self.counts.values())

    def __str__(self) -> str:
        total = sum(self.counts.values(), Counter())
        rows = [("", COLUMNS), *((kind, self._row(count)) for kind, count in [*self.counts.items(), ("all", total)])]
        width = max(len(kind) for kind, _ in rows)
        table = [f"{kind:<{width}}" + "".join(f"{cell:>10}" for cell in cells) for kind, cells in rows]
        notes = [
            f"{kind}: {', '.join(f'{n} {what}' for what, n in counts.items())}" for kind, counts in self.notes.items()
        ]
        return "\n".join([*table, *notes])

    @staticmethod
    def _row(count: Counter[str]) -> tuple[int, ...]:
        return tuple(count[column] for column in COLUMNS)
