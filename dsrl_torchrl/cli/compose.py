"""From the words of a command line to one checked configuration: Hydra merges, the schema judges."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import resources
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.schema import build, defaults, leaves, nearest, partial_of
from dsrl_torchrl.cli.targets import check_target, find_target
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import Options

CONF = "dsrl_torchrl.conf"


def compose(words: list[str]) -> RunConfig:
    """The configuration in ``conf/`` with the overrides of a command line.

    Raises:
        UserError: any mistake in them, in one line.
    """
    groups = {entry.name for entry in resources.files(CONF).iterdir() if entry.is_dir()}
    overrides = [_override(word, groups) for word in words]
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
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # `algorithm=null` is a ValueError of Hydra's
        message = " ".join(str(error).split())
        raise UserError(message.split(" Config search path")[0]) from None
    assert isinstance(values, dict)
    return make_config({str(name): value for name, value in values.items()})


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Checks plain values: names, types, ranges, and the arguments of everything that is named by ``_target_``."""
    agent = agent_class(values.get("algorithm"))
    algorithm = {name: value for name, value in values["algorithm"].items() if name != "_target_"}

    def find(name: str) -> str:
        return nearest(name, option_names(agent.Config))

    networks = values.get("networks", {})
    if isinstance(networks, Mapping) and isinstance(networks.get("encoders"), Mapping):
        encoders = networks["encoders"]
        for kind, spec in encoders.items():
            check_target(spec, f"networks.encoders.{kind}", positional=2 if kind == "state" else 1)
        made = {kind: partial_of(spec, f"networks.encoders.{kind}") for kind, spec in encoders.items()}
        values = dict(values) | {"networks": dict(networks) | {"encoders": made}}
    config = build(
        RunConfig,
        dict(values) | {"algorithm": build(agent.Config, algorithm, "algorithm", find), "agent": agent},
        find=find,
    )
    _check_stage1(config, find)
    _check_targets(config)
    return config


def agent_class(algorithm: Any) -> type[Agent]:
    """The agent that ``algorithm._target_`` names."""
    agent = find_target(algorithm, "algorithm")
    if not (inspect.isclass(agent) and issubclass(agent, Agent)):
        raise UserError(f"algorithm._target_ should name a subclass of {Agent.__module__}.Agent, got {agent!r}")
    return agent


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


def _check_stage1(config: RunConfig, find: Any) -> None:
    for name in config.stage1.algorithm:
        if name not in type(config.algorithm).model_fields:
            raise UserError(f"unknown option stage1.algorithm.{name}{find(f'algorithm.{name}')}")
    if config.stage1.algorithm.get("gamma", config.algorithm.gamma) != config.algorithm.gamma:
        raise UserError("stage1.algorithm.gamma: both stages have the discount of their rewards, algorithm.gamma")
    try:
        _ = config.offline_algorithm
    except UserError as error:
        raise UserError(f"stage1.algorithm.{error}") from None
    if config.stage1.inversion is not None and not config.agent.reads_noise:
        raise UserError(
            f"stage1.inversion is for algorithms that learn from the data's noise; {config.agent.__name__} needs none"
        )


def _check_targets(config: RunConfig) -> None:
    task, base = config.task, config.base_policy
    check_target(task.env, "task.env", ["terminate_on_success"])
    check_target(task.env | (task.render or {}), "task.env")
    demonstrations = task.demonstrations
    if demonstrations.generator is not None:
        given = ["path", "count", "action_noise", "seed", "progress"]
        check_target(task.generator_spec, "task.demonstrations.generator", given)
    if base.load is not None:
        check_target(base.load, "base_policy.load")
    else:
        given = ["observation_dim", "action_dim", "pred_horizon", "obs_horizon", "control_mode"]
        check_target(base.policy, "base_policy.policy", given)


def _override(word: str, groups: set[str]) -> str:
    """One word as Hydra reads it: ``a.b=c`` sets an option, whether or not YAML lists it."""
    if word.startswith("-"):
        raise UserError(f"unknown flag {word!r}; options are Hydra overrides like seed=1, see dsrl --help")
    key, separator, value = word.partition("=")
    if key in groups and value in ("", "null") and key != "experiment":
        raise UserError(f"{key} needs a choice, {key}=<name>: the files in conf/{key}")
    if word.startswith(("+", "~")) or key.split("@")[0] in groups:
        return word
    if not separator or not key:
        raise UserError(f"expected name=value, got {word!r}")
    override = f"++{key}={value}"
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        # A path with = or ~ in it, for one: no value of Hydra's grammar, so the text as it is.
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        override = f"++{key}='{quoted}'"
    return override


__all__ = ["agent_class", "compose", "leaves", "make_config", "option_names"]
