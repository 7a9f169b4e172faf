"""What the steps of a run work with, each made once: demonstrations, base policy, training env, offline data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tensordict import TensorDictBase
from typing_extensions import Self

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.auto import MAX_THREADS, settle_machine
from dsrl_torchrl.cli.config import AUTO, RunConfig
from dsrl_torchrl.cli.folder import CONFIG_FILE, RunFolder, check_logger, loaded_key, metrics_log
from dsrl_torchrl.cli.latent_env import image_memory_line, make_latent_env
from dsrl_torchrl.cli.steps import base, demos, noise_subspace
from dsrl_torchrl.cli.steps.action_magnitude import measure_magnitude
from dsrl_torchrl.cli.steps.demos import TaskInterface
from dsrl_torchrl.collect.episodes import reset_to_seeds
from dsrl_torchrl.data.demonstration_checks import demonstration_warnings
from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv, check_units
from dsrl_torchrl.latent_env.macro_step import SUCCESS_KEY
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from dsrl_torchrl.networks.config import make_encoder
from dsrl_torchrl.policies import BasePolicy, load_policy, probe, save_policy
from dsrl_torchrl.policies.base_policy import require_differentiable
from dsrl_torchrl.policies.probe import PROBE_NOISES
from dsrl_torchrl.policies.storage import CONFIG_FILE as POLICY_FILE
from dsrl_torchrl.policies.storage import MODEL_FILE
from dsrl_torchrl.tensor_files import load_tensors, save_tensors


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
        check_logger(self.config.logger)
        self._policy: BasePolicy | None = None
        self._env: LatentActionEnv | None = None
        self._subspace: NoiseSubspace | None = None
        self._recorded = self._probed = self._warned = False
        key = None
        if self.config.base_policy.load is not None:
            self._policy = base.load_base(self.config.base_policy.load, self.config.device)
            base.check_fits(self._policy, self.config.task, self.config.latent)
            if self.config.agent.through_decoder:
                require_differentiable(self._policy, self.config.agent.__name__)
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close_env()

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Within it torch has the cores of the env workers, too, which wait; as many on every machine."""
        threads = self.config.collector.threads
        if threads is None:
            yield
            return
        torch.set_num_threads(max(threads, min(self.config.collector.num_workers, MAX_THREADS)))
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

    def training_env(self) -> LatentActionEnv:
        """The latent env of rollouts, stage 1's check and stage 2; the base policy is probed in it."""
        if self._env is None:
            self.settle_magnitude()
            self._env = self.latent_env()
            self.probe_in(self._env)
            make_encoder(self._env, self.config.networks)  # whatever does not fit it shows before the rollouts
            images = image_memory_line(self._env, self.config)
            if images is not None:
                self.say(images)
        return self._env

    def agent(self, env: LatentActionEnv, algorithm: Any, data: TensorDictBase | None = None) -> Agent:
        """A fresh agent, stage 2's or stage 1's by its ``algorithm``; its weights depend on the run's seed alone."""
        torch.manual_seed(self.config.seed)
        kind = self.config.agent if type(algorithm) is self.config.agent.Config else self.config.offline_agent
        return kind(env, algorithm, self.config.networks, data)

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

    def settle_magnitude(self) -> None:
        """Replaces ``latent.action_magnitude=auto`` by a number, before any env of a step is made."""
        config, artifact = self.config, self.folder.magnitude
        if config.latent.action_magnitude != AUTO:
            return
        if not artifact.exists:
            env = make_latent_env(config, self.base())
            try:
                self.probe_in(env)
                artifact.begin()
                choice = measure_magnitude(env, seed=config.seed, progress=config.progress)
            finally:
                env.close()
            artifact.finish(**asdict(choice))
        self.config = config.replace(latent=config.latent.replace(action_magnitude=artifact.facts["value"]))
        self.say(f"auto: {artifact.facts['reason']}")

    def latent_env(self, **options: Any) -> LatentActionEnv:
        """:func:`~dsrl_torchrl.cli.latent_env.make_latent_env` of this run, steered in its subspace."""
        return make_latent_env(self.config, self.base(), subspace=self.subspace(), **options)

    def subspace(self) -> NoiseSubspace | None:
        """The subspace that ``latent.subspace_dim`` asks for, measured once for the base policy."""
        config, artifact = self.config, self.folder.subspace
        dim = config.latent.subspace_dim
        if dim is None or self._subspace is not None:
            return self._subspace
        path = artifact.folder / noise_subspace.FILE
        if not artifact.exists:
            env = make_latent_env(config, self.base())
            try:
                self.probe_in(env)
                artifact.begin()
                choice = noise_subspace.measure_subspace(env, dim, seed=config.seed, progress=config.progress)
                size = env.decoder.layout.dim
            finally:
                env.close()
            save_tensors({"basis": choice.basis}, path)
            artifact.finish(path, share=choice.share, of=size)
            self.folder.connect(self.base().content_hash())
        facts = artifact.facts
        self.say(f"noise subspace: {dim} of {facts['of']} dimensions carry {facts['share']:.0%} of the response")
        self._subspace = NoiseSubspace(load_tensors(path)["basis"])
        return self._subspace

    def probe_in(self, env: LatentActionEnv) -> None:
        """Probes the base policy, once per command: is the chunk a function of the noise, at what the env gives."""
        if self._probed:
            return
        decoder, size = env.decoder, env.batch_size.numel()
        starts = seeds.first(seeds.DIAGNOSIS, -(-PROBE_NOISES // size) * size)
        resets = [reset_to_seeds(env, starts[i : i + size]) for i in range(0, len(starts), size)]
        keys = {*decoder.observation_keys, *self.base().in_keys}
        observations = torch.cat([td.select(*keys).reshape(-1) for td in resets])
        # What learns chunks, or corrects them, is no function of noise: its base policy is.
        probe(decoder.base_policy if self.config.latent.action == "noise" else self.base(), observations)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(observations), decoder.latent_dim, generator=generator).to(decoder.device)
        with torch.no_grad():
            check_units(decoder.decode(observations, noise), decoder.parent.full_action_spec["action"])
        self._probed = True

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

    def close_env(self) -> None:
        """Ends the training env and its worker processes; it is made anew where it is needed again."""
        if self._env is not None:
            self._env.close(raise_if_closed=False)
            self._env = None
