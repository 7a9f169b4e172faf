"""``dsrl``: the first word is the step, the rest are Hydra overrides."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.errors import HydraException

from dsrl_torchrl.errors import UserError

STEPS = {
    "demos": "make demonstrations with the task's generator",
    "base": "train the base policy on them (makes them first if need be)",
    "stage1": "steer it offline, from demonstrations and its own rollouts: noise aliasing",
    "stage2": "steer it online, from there: DSRL-NA, or DSRL-SAC with algorithm=dsrl_sac",
    "eval": "compare all policies of the run on the same held-out resets",
    "diagnose": "can the base be steered here, and with which noise: a page of figures and advice",
    "run": "demos to eval, skipping what exists",
}

USAGE = """usage: dsrl {step} [override ...]

{steps}

An override is `name=value` in Hydra's syntax, e.g.

  dsrl run task=push_cube seed=1            # another task, another seed
  dsrl stage2 name=try2 algorithm.utd=20    # another run folder, another hyper-parameter
  dsrl run resume=true                      # go on after an interruption
  dsrl run logger=wandb logger.mode=offline
  dsrl base task.demonstrations.path=my.h5  # your own ManiSkill demonstrations
  dsrl run base_policy.checkpoint=folder    # your own base policy

Results go to runs/<name>/. `dsrl <step> --help` lists every option with its default."""


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
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _one_line(error: BaseException) -> str:
    # Hydra wraps what a constructor raises; the innermost message is the one that was written for the user.
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return " ".join(str(error).split())


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    step, *overrides = arguments
    if step not in STEPS:
        raise UserError(f"unknown step {step!r}; it is one of {', '.join(STEPS)}")
    help_wanted = any(word in ("-h", "--help") for word in overrides)
    cfg = compose([word for word in overrides if word not in ("-h", "--help")])
    if help_wanted:
        print(_step_help(step, cfg))
        return
    from torchrl import logger as torchrl_logger

    from dsrl_torchrl.cli import pipeline
    from dsrl_torchrl.cli.run import Run

    torchrl_logger.setLevel("WARNING")  # its notes on buffers would cut through the progress bars
    pipeline.STEPS[step](Run(cfg))


def compose(overrides: list[str]):
    """The configuration in ``conf/`` with ``overrides``; every mistake in them is a one-line :class:`UserError`."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf.errors import OmegaConfBaseException

    for word in overrides:
        if word.startswith("-"):
            raise UserError(f"unknown flag {word!r}; options are Hydra overrides like seed=1, see dsrl --help")
    try:
        with initialize_config_module("dsrl_torchrl.conf", version_base="1.3"):
            return hydra_compose("config", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        message = " ".join(str(error).split())
        raise UserError(message.split(" Config search path")[0]) from None


def _usage() -> str:
    steps = "\n".join(f"  {name:<10}{text}" for name, text in STEPS.items())
    return USAGE.format(step="{" + "|".join(STEPS) + "}", steps=steps)


def _step_help(step: str, cfg) -> str:
    from omegaconf import OmegaConf

    sections = {
        "demos": ["task"],
        "base": ["task", "base_policy"],
        "stage1": ["task", "base_policy", "latent", "networks", "stage1", "collector"],
        "stage2": ["task", "base_policy", "latent", "networks", "stage1", "algorithm", "collector", "logger"],
        "eval": ["evaluation", "collector"],
        "diagnose": ["task", "base_policy", "latent", "diagnosis", "collector"],
        "run": [str(key) for key in cfg],
    }[step]
    common = [key for key in ("name", "output", "seed", "resume", "progress") if key not in sections]
    shown = OmegaConf.masked_copy(cfg, [*common, *sections])
    return (
        f"dsrl {step}: {STEPS[step]}\n\nOptions and their values (override with name=value):\n\n"
        + OmegaConf.to_yaml(shown)
    )
