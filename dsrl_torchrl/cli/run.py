"""One run: its configuration, its folder, and which step's artifact lies where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dsrl_torchrl.cli.collector_counts import settle_collector_counts
from dsrl_torchrl.cli.configured import check_config
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.training.metrics_log import MetricsLog
from dsrl_torchrl.policies.storage import read_weights_hash, write_atomically
from dsrl_torchrl.cli.artifacts import Artifact, config_hash
from dsrl_torchrl.training.network_config import NetworkConfig
from dsrl_torchrl.training.stage1_config import Stage1Config
from dsrl_torchrl.training.stage2_config import Stage2Config

CONFIG_FILE = "config.yaml"


class Run:
    """What the steps of the command line share.

    Args:
        cfg: the composed Hydra configuration (``conf/config.yaml``).
        say: prints one line to the user.

    Raises:
        UserError: an option is wrong; found before any work.
    """

    def __init__(self, cfg: DictConfig, say: Callable[[str], None] = print) -> None:
        self.cfg = cfg
        self.say = say
        self.folder = Path(cfg.output) / cfg.name
        counts = settle_collector_counts(cfg.collector, self.folder / CONFIG_FILE)
        self.config: dict[str, Any] = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        self.networks: NetworkConfig = instantiate(cfg.networks, _convert_="all")
        self.stage1: Stage1Config = instantiate(cfg.stage1, _convert_="all")
        self.algorithm: Stage2Config = instantiate(cfg.algorithm, _convert_="all")
        check_config(cfg)
        if self.algorithm.noise_aliasing and self.algorithm.init_critics and not self.stage1.use_na:
            raise UserError(
                "stage1.use_na=false learns no Q^A: set algorithm.init_critics=false, or algorithm=dsrl_sac for stage 2"
            )
        task, seed = self.config["task"], cfg.seed
        base = {"task": task, "base_policy": self.config["base_policy"], "seed": seed}
        if cfg.base_policy.checkpoint is not None:
            # A folder's name says nothing about what lies in it.
            base["base_policy_sha256"] = read_weights_hash(cfg.base_policy.checkpoint)
        latent = base | {key: self.config[key] for key in ("latent", "networks")}
        offline = latent | {"stage1": self.config["stage1"], "num_workers": cfg.collector.num_workers}
        collector = {key: self.config["collector"][key] for key in ("num_workers", "threads")}
        if cfg.collector.overlap:  # named only then: runs from before it existed stay what they are
            collector["overlap"] = True
        online = latent | {"algorithm": self.config["algorithm"], "collector": collector}
        if self.algorithm.needs_stage1:
            online |= {"stage1": self.config["stage1"]}
        self.demos_artifact = Artifact(self.folder / "demos", {"demonstrations": task["demonstrations"], "seed": seed})
        self.base_artifact = Artifact(self.folder / "base", base)
        self.stage1_artifact = Artifact(self.folder / "stage1", offline)
        self.stage2_artifact = Artifact(self.folder / "stage2", online)
        self.config_hash = config_hash(online)
        self.set_threads()
        if counts is not None:
            say(counts)

    def set_threads(self) -> None:
        """Torch's threads as configured; again after every ``ParallelEnv``, which leaves a number of its own."""
        if self.cfg.collector.threads is not None:
            torch.set_num_threads(self.cfg.collector.threads)

    def save_config(self) -> None:
        """Writes the resolved configuration into the run folder, atomically: later steps read it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / CONFIG_FILE, OmegaConf.to_yaml(self.cfg, resolve=True).encode())

    @contextmanager
    def metrics_log(self, path: Path, step: str) -> Iterator[Callable[[int], MetricsLog]]:
        """Gives a function that opens the metrics at ``path``, to be called with the step that they are kept until.

        What it opened is closed at the end: a second wandb run can then begin in the same process.
        """
        opened: list[MetricsLog] = []

        def open_log(keep_until: int) -> MetricsLog:
            opened.append(MetricsLog(path, step=step, keep_until=keep_until, **self.config["logger"]))
            return opened[-1]

        try:
            yield open_log
        finally:
            for log in opened:
                log.close()

    def refuse_unfinished(self, artifact: Artifact) -> None:
        """Raises :class:`UserError` if a step was interrupted here and ``resume`` is not asked for."""
        if any((artifact.folder / "checkpoints").glob("checkpoint*")) and not self.cfg.resume:
            raise UserError(
                f"{artifact.folder} holds an unfinished run: resume=true continues it, another name= starts anew"
            )
