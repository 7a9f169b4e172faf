"""One set of defaults: those of the dataclasses and those of the YAML files are the same."""

from __future__ import annotations

from hydra.utils import instantiate

from dsrl_torchrl.cli.main import compose
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.training.stage1_config import Stage1Config
from dsrl_torchrl.training.stage2_config import Stage2Config


def test_yaml_and_dataclass_defaults_are_the_same():
    cfg = compose([])
    assert instantiate(cfg.algorithm, _convert_="all") == Stage2Config()
    assert instantiate(cfg.stage1, _convert_="all") == Stage1Config()
    networks = instantiate(cfg.networks, _convert_="all")
    assert {name: str(value).strip("[]()") for name, value in networks.__dict__.items()} == {
        name: str(value).strip("[]()") for name, value in NetworkConfig().__dict__.items()
    }
