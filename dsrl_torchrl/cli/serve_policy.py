"""``dsrl serve-policy``: the policy server, run here or printed to be run in the policy's own environment."""

from __future__ import annotations

import os
import sys
from importlib import resources
from importlib.util import find_spec

from dsrl_torchrl.errors import UserError

#: The word of the command.
SERVE = "serve-policy"
PRINT = "--print"


def serve_policy(words: list[str]) -> None:
    """Becomes the server: from then on the process is that file, which imports nothing of this package.

    Args:
        words: the server's options, or ``--print`` alone.

    Raises:
        UserError: the server's own dependencies are missing, or there are words beside ``--print``.
    """
    file = resources.files("dsrl_torchrl").joinpath("policies", "adapters", "serve_policy.py")
    if PRINT in words:
        if words != [PRINT]:
            raise UserError(f"{SERVE} {PRINT} writes the server to stdout and takes no other word, got {words}")
        print(file.read_text(encoding="utf-8"), end="")
        return
    missing = [name for name in ("msgpack", "websockets") if find_spec(name) is None]
    if missing:
        raise UserError(f"{SERVE} needs {' and '.join(missing)}: pip install 'dsrl-torchrl[server]'")
    os.execv(sys.executable, [sys.executable, str(file), *words])
