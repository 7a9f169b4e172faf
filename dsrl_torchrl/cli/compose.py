"""From the words of a command line to one checked configuration: Hydra merges, the schema judges."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dsrl_torchrl.cli.checks import check_together
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.overrides import read_words
from dsrl_torchrl.cli.schema import build, defaults, nearest, partial_of
from dsrl_torchrl.cli.search_path import folders, yaml_mistake
from dsrl_torchrl.cli.targets import agent_class, check_target
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import Options

CONF = "dsrl_torchrl.conf"
#: What an observation entry can be.
ENCODERS = ("state", "pixels")
#: Messages of Hydra's repeat the whole override.
LONGEST_MESSAGE = 300


def compose(words: list[str]) -> RunConfig:
    """The configuration in ``conf/`` with the overrides of a command line.

    Raises:
        UserError: any mistake in them, in one line.
    """
    overrides = read_words(words)
    try:
        with initialize_config_module(CONF, version_base="1.3"):
            composed = hydra_compose("config", overrides=overrides)
        _refuse_missing(OmegaConf.to_container(composed))
        agent = agent_class(composed.get("algorithm"))
        # The defaults of every option, below what YAML and command line say: so that these can refer to them.
        known = defaults(RunConfig)
        merged = OmegaConf.merge(known | {"algorithm": defaults(agent.Config)}, composed)
        values = OmegaConf.to_container(merged, resolve=True)
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(yaml_mistake(error, folders(words)) or hydra_message(error)) from None
    assert isinstance(values, dict)
    return make_config({str(name): value for name, value in values.items()})


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Checks plain values: names, types, ranges, and the arguments of everything that is named by ``_target_``."""
    agent = agent_class(values.get("algorithm"))
    algorithm = {name: value for name, value in values["algorithm"].items() if name != "_target_"}

    def find(name: str) -> str:
        return nearest(name, option_names(agent.Config))

    if "agent" in values:  # what is made here is no option
        raise UserError("unknown option agent: did you mean algorithm._target_?")
    networks = values.get("networks", {})
    if isinstance(networks, Mapping) and isinstance(networks.get("encoders"), Mapping):
        encoders = networks["encoders"]
        for kind, spec in encoders.items():
            if kind not in ENCODERS:
                raise UserError(f"unknown option networks.encoders.{kind}: entries are {' or '.join(ENCODERS)}")
            check_target(spec, f"networks.encoders.{kind}", positional=2 if kind == "state" else 1)
        made = {kind: partial_of(spec, f"networks.encoders.{kind}") for kind, spec in encoders.items()}
        values = dict(values) | {"networks": dict(networks) | {"encoders": made}}
    config = build(
        RunConfig,
        dict(values) | {"algorithm": build(agent.Config, algorithm, "algorithm", find), "agent": agent},
        find=find,
    )
    check_together(config, find)
    return config


def option_names(algorithm: type[Options]) -> list[str]:
    """The names of all options of the schema, with those of one algorithm."""

    def names(cls: type[Options], where: str) -> list[str]:
        found = []
        for name, field in cls.model_fields.items():
            nested = algorithm if (where, name) == ("", "algorithm") else field.annotation
            if inspect.isclass(nested) and issubclass(nested, Options):
                found += names(nested, f"{where}{name}.")
            else:
                found.append(f"{where}{name}")
        return found

    return names(RunConfig, "")


def _refuse_missing(values: Any, where: str = "") -> None:
    if isinstance(values, dict):
        for name, value in values.items():
            _refuse_missing(value, f"{where}.{name}" if where else name)
    elif values == "???":
        raise UserError(f"{where} needs a value: {where}=...")


def hydra_message(error: Exception) -> str:
    """A message of Hydra's or OmegaConf's, without their marks, in a line that can be read."""
    option, message = getattr(error, "full_key", None), " ".join(str(error).split())
    for beginning in (" Config search path", " See https://", " full_key:"):
        message = message.split(beginning)[0]
    message = message.replace("++", "")
    if error.__cause__ is not None:
        message += f": {' '.join(str(error.__cause__).split())}"
    message = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
    return f"{option}: {message}" if option else message
