"""``dsrl``: the first word is the step, the rest are Hydra overrides."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.errors import HydraException

from dsrl_torchrl.cli.help import STEPS, step_usage, usage
from dsrl_torchrl.errors import UserError

HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command; a user's mistake is one line on stderr and exit code 1, an interruption 130."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _main(arguments)
    except BaseException as error:
        if _interrupted(error):
            print("\ndsrl: interrupted; `resume=true` goes on from the last checkpoint", file=sys.stderr)
            raise SystemExit(130) from None
        if isinstance(error, (UserError, HydraException)):
            print(f"dsrl: error: {_one_line(error)}", file=sys.stderr)
            raise SystemExit(1) from None
        raise


def _interrupted(error: BaseException | None) -> bool:
    # An interruption in the middle of a torch transform can surface as the error that its clean-up runs into.
    seen: set[int] = set()  # somebody's `raise` may have made a circle
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _one_line(error: BaseException) -> str:
    # Hydra wraps what a constructor raises; the innermost message is the one that was written for the user.
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return " ".join(str(error).split())


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in HELP:
        print(usage())
        return
    step, *words = arguments
    if step not in STEPS:
        raise UserError(f"unknown step {step!r}; it is one of {', '.join(STEPS)}")

    from dsrl_torchrl.cli.compose import compose

    config = compose([word for word in words if word not in HELP])
    if any(word in HELP for word in words):
        print(step_usage(step, config))
        return
    from torchrl import logger as torchrl_logger

    from dsrl_torchrl.cli.run import STEPS as METHODS
    from dsrl_torchrl.cli.run import Run

    torchrl_logger.setLevel("WARNING")  # its notes on buffers would cut through the progress bars
    with Run(config) as run:
        METHODS[step](run)
