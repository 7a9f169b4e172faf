"""What a run begins with, each made once: demonstrations and base policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch

from dsrl_torchrl.cli.auto import USEFUL_THREADS, settle_machine
from dsrl_torchrl.cli.config import RunConfig
from dsrl_torchrl.cli.folder import CONFIG_FILE, RunFolder, check_logger, loaded_key, metrics_log
from dsrl_torchrl.cli.steps import base, demos
from dsrl_torchrl.cli.steps.demos import TaskInterface
from dsrl_torchrl.collect.spawned_process import check_temporary_folder
from dsrl_torchrl.data.demonstration_checks import demonstration_warnings
from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.macro_step import SUCCESS_KEY
from dsrl_torchrl.policies import BasePolicy, load_policy, save_policy
from dsrl_torchrl.policies.base_policy import require_differentiable
from dsrl_torchrl.policies.storage import CONFIG_FILE as POLICY_FILE
from dsrl_torchrl.policies.storage import MODEL_FILE


class Inputs:
    """Finds in the run folder, or makes, what the steps need; one settled configuration.

    Args:
        config: checked (:func:`dsrl_torchrl.cli.compose.compose`).
        say: prints one line to the user.

    Raises:
        UserError: an option that does not fit this machine, a base policy that cannot be loaded or does not fit, a
            folder that cannot be written; found before any work.
    """

    def __init__(self, config: RunConfig, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.config, counts = settle_machine(config, config.folder / CONFIG_FILE)
        if self.config.collector.num_workers > 1:
            check_temporary_folder()
        check_logger(self.config.logger)
        self._policy: BasePolicy | None = None
        self._recorded = self._warned = False
        key = None
        if self.config.base_policy.load is not None:
            self._policy = base.load_base(self.config.base_policy.load, self.config.device)
            base.check_fits(self._policy, self.config.task, self.config.latent)
            for agent in self.config.agents:
                if agent.through_decoder:
                    require_differentiable(self._policy, agent.__name__)
            content = self._policy.content_hash()
            key = loaded_key(self.config, content)
            if content is None:
                say("base policy: it has no content hash: changed weights cannot be noticed, give them another name=")
        else:
            self._check_cloned()
        self.folder = RunFolder(self.config, key, say)
        if key is not None:
            self.folder.connect(key["content_hash"])
        if self.config.collector.threads is not None:
            torch.set_num_threads(self.config.collector.threads)
        if counts is not None:
            say(counts)

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Within it torch has the cores of the env workers, too, which wait; as many on every machine."""
        threads = self.config.collector.threads
        if threads is None:
            yield
            return
        torch.set_num_threads(max(threads, min(self.config.collector.num_workers, USEFUL_THREADS)))
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def demos(self) -> Path:
        """The h5 file of the demonstrations: recorded, or the user's."""
        task, artifact = self.config.task, self.folder.demos
        if task.demonstrations.path is not None:
            path = Path(task.demonstrations.path).expanduser()
            demos.check_entries(self.interface, self.config)
            self._episodes(path)
            return path
        path = artifact.folder / demos.FILE
        if artifact.exists:
            if not self._recorded:
                self.say(f"demonstrations: {path} (exists)")
            return path
        demos.check_entries(self.interface, self.config)
        if self.config.base_policy.load is None:
            policy = self._check_cloned(self.interface.low.numel())
            base.check_fits(policy, task, self.config.latent)  # before the demonstrations, not after the cloning
        artifact.begin()
        demos.record_demonstrations(task, path, seed=self.config.seed, progress=self.config.progress)
        episodes = self._episodes(path)
        artifact.finish(path, path.with_suffix(".json"), episodes=len(episodes))
        self.folder.connect()
        self._recorded = True
        self.say(f"demonstrations: {len(episodes)} episodes in {path}")
        return path

    def base(self) -> BasePolicy:
        """The frozen base policy: the user's, or cloned from the demonstrations."""
        if self._policy is not None:
            return self._policy
        config, artifact = self.config, self.folder.base
        if artifact.exists:
            self.say(f"base policy: {artifact.folder} (exists), steerability {artifact.facts['steerability']:.3f}")
        else:
            episodes = self._episodes(self.demos())
            artifact.begin()
            metrics = artifact.folder / "metrics.csv"
            with self.offline(), metrics_log(config, metrics, "updates", "base") as log:
                policy, measured, chunks = base.clone_policy(
                    config.base_policy,
                    config.task,
                    episodes,
                    seed=config.seed,
                    device=config.device,
                    log=log,
                    progress=config.progress,
                )
            folder = save_policy(policy, artifact.folder)
            artifact.finish(folder / MODEL_FILE, folder / POLICY_FILE, metrics, steerability=measured.spread)
            self.say(f"base policy: cloned from {chunks} chunks, in {artifact.folder}")
            for line in base.steerability_lines(measured):
                self.say(line)
        self._policy = load_policy(artifact.folder, config.device)
        base.check_fits(self._policy, config.task, config.latent)
        self.folder.connect(self._policy.content_hash())
        return self._policy

    def _episodes(self, path: Path) -> list[Episode]:
        """The demonstrations, which fit the task's env; what a policy would learn from them silently is said once."""
        interface = self.interface
        episodes = demos.read_task_demonstrations(self.config.task, path, interface)
        if not self._warned:
            self._warned = True
            scaling = self.config.base_policy.training.action_scaling
            for line in demonstration_warnings(episodes, interface.low, interface.high, action_scaling=scaling):
                self.say(f"warning: {line}")
        return episodes

    @cached_property
    def interface(self) -> TaskInterface:
        """What the task's env gives and takes."""
        return demos.task_interface(self.config.task)

    def refuse_without_success(self, what: str) -> None:
        """Raises :class:`UserError` for an env that does not tell success."""
        if SUCCESS_KEY not in self.interface.shapes:
            raise UserError(
                f"task.env gives no entry {SUCCESS_KEY!r}, which {what} needs: add it to the env, or run stage1 (with "
                "stage1.check_episodes=0) and stage2 by themselves"
            )

    def _check_cloned(self, action_dim: int = 1) -> BasePolicy:
        """Makes a tiny policy of the same options: what is wrong with them shows before the demonstrations are made."""
        spec = self.config.base_policy.policy
        assert spec is not None
        history = self.config.task.obs_horizon
        in_key, *image_keys = base.policy_keys(spec)
        shapes = {in_key: (history,), **dict.fromkeys(image_keys, (3 * history, 16, 16))}
        return base.make_cloned(spec, self.config.task, shapes, action_dim, self.config.seed)
