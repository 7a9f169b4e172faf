"""``dsrl``: the first word is the step, the rest are Hydra overrides."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence

from dsrl_torchrl.cli.faults import machine_faults
from dsrl_torchrl.cli.help import STEPS, step_usage, usage
from dsrl_torchrl.cli.serve_policy import SERVE, serve_policy
from dsrl_torchrl.cli.signals import Interruption
from dsrl_torchrl.errors import UserError

# No other import up here: Ctrl-C is answered from `main` on, and torch takes seconds to import.

HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command.

    Exit codes: 1 with one line on stderr for a user's mistake and for what the machine refuses (a full disk, a
    read-only folder), 130 after Ctrl-C, 143 after SIGTERM, 141 when nobody reads the output any more. Whatever else is
    raised is a bug, and keeps its traceback.

    Args:
        arguments: the command line; ``None`` for this process's own, which then ends with the command.
    """
    if arguments is None:
        _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="replace", line_buffering=True)  # a terminal may know no ±
    interruption = Interruption(may_exit=arguments is None)
    interruption.take()
    try:
        with machine_faults():
            _main(list(sys.argv[1:] if arguments is None else arguments), interruption)
            if sys.stdout is not None:
                sys.stdout.flush()
    except BaseException as error:
        code = _exit_code(error, interruption)
        if code is None:
            raise
        raise SystemExit(code) from None
    finally:
        interruption.working = False
        if arguments is not None:
            interruption.restore()


def _open_closed_streams() -> None:
    """Sends what is said to a closed stream (``dsrl ... 2>&-``) nowhere, not to the next file, which had its number."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115  to the end of the process


def _exit_code(error: BaseException, interruption: Interruption) -> int | None:
    """Says what ended the command; ``None`` for a bug."""
    if interruption.received is not None:  # whatever error it surfaced as
        interruption.tell()
        return 128 + interruption.received
    if isinstance(error, BrokenPipeError):
        # `dsrl ... | head`: what is left in the buffer goes nowhere, or Python's exit would print an error.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 141
    if isinstance(error, UserError):
        print(f"dsrl: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return None


def _main(arguments: list[str], interruption: Interruption) -> None:
    if not arguments or arguments[0] in HELP:
        print(usage())
        return
    step, *words = arguments
    if step == SERVE:
        serve_policy(words)
        return
    if step not in STEPS:
        from dsrl_torchrl.options import shown

        raise UserError(f"unknown step {shown(step)}; it is one of {', '.join((*STEPS, SERVE))}")

    from dsrl_torchrl.cli.compose import compose
    from dsrl_torchrl.cli.sweep import FLAGS, Sweep, combinations

    options = [word for word in words if word not in (*HELP, *FLAGS)]
    sweeps = any(word in FLAGS for word in words)
    if any(word in HELP for word in words):
        print(step_usage(step, compose(combinations(options)[0] if sweeps else options)))
        return
    if sweeps:
        sweep = Sweep(step, options)
        interruption.working = True
        sweep.run()
        return
    config = compose(options)
    from torchrl import logger as torchrl_logger

    from dsrl_torchrl.cli.lock import locked
    from dsrl_torchrl.cli.run import METHODS, Run
    from dsrl_torchrl.collect.spawned_process import silence_resource_tracker

    for logger in (torchrl_logger, logging.getLogger("tensordict")):
        logger.setLevel("WARNING")  # their notes on buffers and captured graphs would cut through the progress bars
    interruption.working = True
    with machine_faults(config.folder):
        silence_resource_tracker()
        with locked(config.folder), Run(config) as run:
            METHODS[step](run)
