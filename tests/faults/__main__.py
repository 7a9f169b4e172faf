"""``make faults``: kills, damages and starves runs of the toy task, and counts what is lost. Needs Linux.

``KILLS`` (60) is the number of processes that are killed, ``SEED`` (0) draws the moments and the places. What went
wrong stays in the folder that the failure names. Some minutes on two idle cores; time alone cannot make it fail.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .suite import Suite


def main() -> None:
    """Exit code 1 if anything was wrong or lost."""
    started, scratch = time.monotonic(), Path(tempfile.mkdtemp(prefix="faults-"))
    suite = Suite(scratch, int(os.environ.get("SEED", "0")))
    try:
        suite.kills(int(os.environ.get("KILLS", "60")))
        suite.damages()
        suite.disks(8)
        suite.two_runs(6)
    finally:
        suite.close()
        print(f"{suite.tally}\n{time.monotonic() - started:.0f} s")
    if suite.tally.failures:
        sys.exit(1)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
