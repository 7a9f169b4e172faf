"""The YAML files: what differs from the schema's defaults, and nothing else."""

from __future__ import annotations

from importlib import resources

import pytest
import yaml

from dsrl_torchrl.cli.compose import CONF, compose
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.help import choices
from dsrl_torchrl.cli.overrides import GROUPS
from dsrl_torchrl.cli.schema import defaults

FOREIGN = ("dppo", "lerobot_diffusion", "maniskill_diffusion", "robomimic_diffusion", "stanford_diffusion")
FILES = [
    (group, path)
    for group in (*GROUPS, "task/suite")
    for path in sorted(resources.files(CONF).joinpath(group).iterdir(), key=lambda path: path.name)
    if path.is_file()
]


def settings_of(group, path):
    """The options that one file sets, by name."""
    text = path.read_text()
    values = yaml.safe_load(text) or {}
    values.pop("defaults", None)
    return dict(flat(values, "" if "@package _global_" in text else group.split("/")[0]))


def flat(values, where=""):
    for name, value in values.items():
        name = f"{where}.{name}" if where else name
        if isinstance(value, dict):
            yield from flat(value, name)
        else:
            yield name, value


@pytest.mark.parametrize(("group", "path"), FILES, ids=lambda value: getattr(value, "name", value))
def test_yaml_says_only_what_the_schema_does_not(group, path):
    """A value that is the default anyway stands there only against another file's."""
    algorithm = path.name.removesuffix(".yaml") if group == "algorithm" else "dsrl_aw_mle"
    agent = compose([f"algorithm={algorithm}"]).agent
    known = dict(flat(defaults(RunConfig) | {"algorithm": defaults(agent.Config)}))
    elsewhere = {name for other in FILES if other != (group, path) for name in settings_of(*other)}
    for name, value in settings_of(group, path).items():
        if name.endswith("_target_"):  # it stands with its arguments
            continue
        assert name in elsewhere or name not in known or known[name] != value, f"{name}: {value} is the default"


@pytest.mark.parametrize(
    "words",
    [
        ["base_policy=checkpoint", "base_policy.load.folder=x"],
        ["base_policy=diffusion"],
        ["base_policy=flow"],
        ["base_policy=load", "base_policy.load._target_=builtins.dict"],
        ["base_policy=server"],
        ["base_policy=shortcut"],
        *[[f"base_policy={name}", "base_policy.load.path=x"] for name in FOREIGN],
        *[[f"logger={name}"] for name in choices("logger")],
        *[[f"networks={name}"] for name in choices("networks")],
    ],
    ids=" ".join,
)
def test_every_choice_sets_options_that_exist(words):
    """Tasks, algorithms and experiments are composed in all combinations by the schema's tests."""
    assert compose(words)
