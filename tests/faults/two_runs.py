"""Two commands at once in one run folder."""

from __future__ import annotations

import random
import time
from pathlib import Path

from .commands import Forks, Process
from .references import Reference, arguments
from .results import differences, results
from .tally import Tally

IN_USE = r"error: .* is in use by .*: wait for it"


def second_run(tally: Tally, forks: Forks, reference: Reference, *, scratch: Path, draw: random.Random) -> None:
    """A second one starts at a random moment of the first: one of both is refused, and the other one unharmed."""
    moment = reference.moment(draw)
    first = Process(arguments(scratch), scratch / "first")
    first.wait_for(scratch / "a" / moment.after)
    time.sleep(moment.delay)
    second = forks.start(arguments(scratch, "resume=true"), scratch / "second")
    ends = [second.wait(), first.wait()]
    told, differ = f"{scratch}: {moment}:", differences(results(scratch / "a"), reference.results)
    refused = [end for end in ends if end.code]
    wrong = [end.wrong(1, line=IN_USE) if end.code else end.wrong(0) for end in ends]
    if any(wrong) or len(refused) == 2:
        tally.add("two runs at once", "wrong", f"{told} {wrong}")
    else:
        tally.add("two runs at once", "lost" if differ else "one line" if refused else "no line", f"{told} {differ}")
