"""The conductor: which step needs which result, what exists already, and in which env it all happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tensordict import TensorDictBase

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.auto import settle_machine
from dsrl_torchrl.cli.config import AUTO, RunConfig
from dsrl_torchrl.cli.folder import CONFIG_FILE, RunFolder, loaded_key
from dsrl_torchrl.cli.latent_env import make_latent_env
from dsrl_torchrl.cli.steps import base, demos, diagnose, evaluate, offline_data, stage1, stage2
from dsrl_torchrl.cli.steps.action_magnitude import measure_magnitude
from dsrl_torchrl.cli.steps.evaluate import Policies
from dsrl_torchrl.data.macro_transitions import load_transitions, save_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.summary import write_summary
from dsrl_torchrl.evaluation.videos import FrameRecorder
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.networks.config import observation_keys
from dsrl_torchrl.policies import BasePolicy, load_policy, probe, save_policy


class Run:
    """Drives the steps of one run: demos, base, rollouts, stage 1, stage 2, evaluation, each if it is missing.

    The methods decide what is needed; the functions in :mod:`dsrl_torchrl.cli.steps` do it. Base policy, training env
    and offline data are made once for all steps of a command. Use it as a context manager: it closes the envs.

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
        self._policy: BasePolicy | None = None
        self._env: LatentActionEnv | None = None
        self._data: TensorDictBase | None = None
        self._recorded = self._probed = False
        key = None
        if self.config.base_policy.load is not None:
            self._policy = base.load_base(self.config.base_policy.load, self.config.device)
            base.check_fits(self._policy, self.config.task)
            content = self._policy.content_hash()
            key = loaded_key(self.config, content)
            if content is None:
                say(
                    "base policy: it has no content hash, so changed weights cannot be noticed; give them another name="
                )
        else:
            self._check_cloned()
        self.folder = RunFolder(self.config, key)
        self.set_threads()
        if counts is not None:
            say(counts)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_env()

    # The steps.

    def run(self) -> None:
        """All steps."""
        if self.folder.stage2.exists and self._evaluated():
            self.say(f"evaluation: {self.folder.path / 'summary.json'} (exists)")
            return
        self.stage2()
        self.evaluate()

    def demos(self) -> Path:
        """The h5 file of the demonstrations: recorded, or the user's."""
        task, artifact = self.config.task, self.folder.demos
        if task.demonstrations.path is not None:
            path = Path(task.demonstrations.path).expanduser()
            demos.read_task_demonstrations(task, path)
            return path
        path = artifact.folder / demos.FILE
        if artifact.exists:
            if not self._recorded:
                self.say(f"demonstrations: {path} (exists)")
            return path
        artifact.begin()
        demos.record_demonstrations(task, path, seed=self.config.seed, progress=self.config.progress)
        episodes = demos.read_task_demonstrations(task, path)
        artifact.finish(episodes=len(episodes))
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
            episodes = demos.read_task_demonstrations(config.task, self.demos())
            artifact.begin()
            policy, measured, chunks = base.clone_policy(
                config.base_policy,
                config.task,
                episodes,
                seed=config.seed,
                device=config.device,
                progress=config.progress,
            )
            save_policy(policy, artifact.folder)
            artifact.finish(steerability=measured.spread)
            self.say(f"base policy: cloned from {chunks} chunks, in {artifact.folder}")
            for line in base.steerability_lines(measured):
                self.say(line)
        self._policy = load_policy(artifact.folder, config.device)
        base.check_fits(self._policy, config.task)
        return self._policy

    def base_step(self) -> None:
        """``dsrl base``: a loaded policy is probed in the env."""
        self.base()
        if self.config.base_policy.load is not None:
            env = make_latent_env(self.config, self.base(), workers=1)
            try:
                self._probe(env)
            finally:
                env.close()
            self.say(f"base policy: {self.config.base_policy.load['_target_']} fits {self.config.task.name}")

    def stage1(self) -> None:
        """The offline warm start, in ``stage1/``."""
        artifact, config = self.folder.stage1, self.config
        if artifact.exists:
            self.say(f"stage 1: {artifact.folder} (exists)")
            return
        self.folder.refuse_unfinished(artifact, config.resume)
        env, data = self.training_env(), self.offline_data()
        artifact.begin()
        self.folder.save_config(self.config)
        agent = self.agent(env, self.config.offline_algorithm, data)
        facts = stage1.train_stage1(agent, env, data, self.config, artifact.folder)
        artifact.finish(**facts)
        stage1.say_stage1(facts, artifact.folder, self.say)

    def stage2(self) -> None:
        """Online steering, in ``stage2/``."""
        artifact, config = self.folder.stage2, self.config
        if artifact.exists:
            self.say(f"stage 2: {artifact.folder} (exists)")
            return
        if config.stage2.from_stage1 and not self.folder.stage1.exists:
            self.stage1()
        self.folder.refuse_unfinished(artifact, config.resume)
        env = self.training_env()
        data = self.offline_data() if config.needs_offline_data else None
        artifact.begin()
        self.folder.save_config(self.config)
        agent = self.agent(env, config.algorithm, data)
        if config.stage2.from_stage1:
            agent.load(self.folder.stage1.folder, config.stage2.from_stage1)
        facts, warnings = stage2.train_stage2(
            agent, env, data, self.config, artifact.folder, self.folder.path / "metrics.csv"
        )
        artifact.finish(**facts)
        for warning in warnings:
            self.say(f"warning: {warning}")
        self.say(f"stage 2: {facts['env_steps']} env steps, {facts['updates']} updates, in {artifact.folder}")

    def evaluate(self) -> dict[str, Any]:
        """Every policy of the run on the same held-out resets; ``summary.json`` and the figures."""
        policy = self.base()
        self._settle_magnitude()
        self._close_env()  # its worker processes are the evaluation's
        config, folder = self.config, self.folder
        # Episode returns are plain sums, and episodes go on after a success to see whether it lasts.
        env = make_latent_env(config, policy, gamma=1.0, terminate_on_success=False)
        self.set_threads()
        try:
            self._probe(env)
            from_stage1 = bool(config.stage2.from_stage1)
            learned1 = self._learned(env, config.offline_algorithm, folder.stage1) if from_stage1 else None
            learned2 = self._learned(env, config.algorithm, folder.stage2)
            policies = evaluate.policies_of_run(env, learned1, learned2)
            starts = seeds.first(seeds.HELD_OUT, config.evaluation.episodes)
            results = evaluate.evaluate_policies(env, policies, starts, progress=config.progress)
        finally:
            env.close()
        self._record_videos(policies, starts[: config.evaluation.videos])
        return write_summary(
            folder.path,
            results,
            panels=config.agent.panels,
            stage1=folder.stage1.facts if learned1 is not None else {},
            stage2=folder.stage2.facts if learned2 is not None else {},
            config_hash=folder.config_hash,
            title=config.title,
            say=self.say,
        )

    def diagnose(self) -> None:
        """Measures the base policy, and what stage 1 learned if that is there; prints the advice."""
        policy = self.base()
        self._settle_magnitude()
        env = make_latent_env(self.config, policy, gamma=1.0)
        self.set_threads()
        try:
            self._probe(env)
            learned = None
            if self.folder.stage1.exists and not self.config.agent.reads_noise:
                learned = self._learned(env, self.config.offline_algorithm, self.folder.stage1)
            report, files = diagnose.diagnose_base(env, learned, self.config, self.folder.path / "diagnosis")
        finally:
            env.close()
        self.say(report.magnitude.reason)
        self.say(report.advice())
        self.say(", ".join(map(str, files)))

    # What the steps share.

    def training_env(self) -> LatentActionEnv:
        """The latent env of rollouts, stage 1's check and stage 2; the base policy is probed in it."""
        if self._env is None:
            policy = self.base()
            self._settle_magnitude()
            self._env = make_latent_env(self.config, policy)
            self.set_threads()
            self._probe(self._env)
        return self._env

    def offline_data(self) -> TensorDictBase:
        """All offline macro transitions ``[n]``; collects the rollouts where they are missing.

        An algorithm that reads the data's noise gets what has one: the rollouts, and demonstrations whose noise
        ``stage1.inversion`` finds. The others get everything, without noise.
        """
        if self._data is None:
            rollouts, demonstrations = self._rollouts(), self._demonstrations()
            noise = self.config.agent.reads_noise
            if noise and demonstrations is not None:
                inversion = self.config.stage1.inversion
                if inversion is None:
                    demonstrations = None
                else:
                    demonstrations, line = offline_data.with_noise(
                        demonstrations,
                        self.training_env().decoder,
                        inversion,
                        self.folder.path.parent / "inversion_cache",  # the other runs of the same base policy find it
                        progress=self.config.progress,
                    )
                    self.say(line)
            self._data = offline_data.joined(rollouts, demonstrations, noise=noise)
        return self._data

    def agent(self, env: LatentActionEnv, algorithm: Any, data: TensorDictBase | None = None) -> Agent:
        """A fresh agent; its weights depend on the run's seed alone."""
        torch.manual_seed(self.config.seed)
        return self.config.agent(env, algorithm, self.config.networks, data)

    def set_threads(self) -> None:
        """Torch's threads as configured; again after every ``ParallelEnv``, which leaves a number of its own."""
        if self.config.collector.threads is not None:
            torch.set_num_threads(self.config.collector.threads)

    def _rollouts(self) -> TensorDictBase:
        artifact = self.folder.rollouts
        path = artifact.folder / "rollouts.safetensors"
        if artifact.exists:
            return load_transitions(path)
        env, config = self.training_env(), self.config
        artifact.begin()
        rollouts, line = offline_data.base_rollouts(
            env,
            observation_keys(self.base(), config.networks),
            config.stage1.rollout_env_steps,
            seed=config.seed,
            progress=config.progress,
        )
        save_transitions(rollouts, path)
        artifact.finish()
        self.say(line)
        return rollouts

    def _demonstrations(self) -> TensorDictBase | None:
        task = self.config.task
        if not self.config.stage1.use_demonstrations:
            return None
        if self.config.base_policy.load is not None and task.demonstrations.path is None:
            self.say(
                "offline data: base rollouts alone; task.demonstrations.path adds the demonstrations of your policy"
            )
            return None
        return offline_data.demonstrated_transitions(
            task,
            demos.read_task_demonstrations(task, self.demos()),
            observation_keys(self.base(), self.config.networks),
            self.config.algorithm.gamma,
        )

    def _settle_magnitude(self) -> None:
        """Replaces ``latent.action_magnitude=auto`` by a number, before any env of a step is made."""
        config, artifact = self.config, self.folder.magnitude
        if config.latent.action_magnitude != AUTO:
            return
        if not artifact.exists:
            env = make_latent_env(config, self.base())
            self.set_threads()
            try:
                self._probe(env)
                artifact.begin()
                choice = measure_magnitude(env, seed=config.seed, progress=config.progress)
            finally:
                env.close()
            artifact.finish(**asdict(choice))
        self.config = config.replace(latent=config.latent.replace(action_magnitude=artifact.facts["value"]))
        self.say(f"auto: {artifact.facts['reason']}")

    def _probe(self, env: LatentActionEnv) -> None:
        """Once per command: is the chunk a function of the noise, at what the env gives."""
        if not self._probed:
            policy = env.decoder.base_policy
            probe(policy, env.reset().select(*policy.in_keys).reshape(-1))
            self._probed = True

    def _learned(self, env: LatentActionEnv, algorithm: Any, artifact: Any) -> Agent | None:
        """The agent of a finished stage."""
        if not artifact.exists:
            return None
        agent = self.agent(env, algorithm)
        agent.load(artifact.folder)
        return agent.eval()

    def _evaluated(self) -> bool:
        """Whether the summary of these policies on these resets exists."""
        path = self.folder.path / "summary.json"
        if not path.exists():
            return False
        try:
            summary = json.loads(path.read_text())
            rate = summary["evaluations"]["stage2_stochastic"]["success_once"]
            return (summary["config_hash"], rate["n"]) == (self.folder.config_hash, self.config.evaluation.episodes)
        except (ValueError, KeyError, TypeError):
            return False  # damaged, or of a run without stage 2: it is written anew

    def _record_videos(self, policies: Policies, starts: list[int]) -> None:
        task = self.config.task
        if not starts:
            return
        if task.render is None:
            self.say(f"no videos: {task.name} has no renderer")
            return
        recorder = FrameRecorder()
        try:
            env = make_latent_env(self.config, self.base(), workers=1, below=[recorder], **task.render)
        except UserError as error:
            self.say(f"no videos: {error}")
            return
        folder = self.folder.path / "videos"
        try:
            evaluate.record_policies(env, recorder, policies, starts, folder)
        finally:
            env.close()
        self.say(f"videos: {folder}")

    def _check_cloned(self) -> None:
        """Makes a tiny policy of the same options: what is wrong with them shows before the demonstrations are made."""
        spec = self.config.base_policy.policy
        assert spec is not None
        base.make_cloned(spec, self.config.task, self.config.task.obs_horizon, 1, self.config.seed)

    def _close_env(self) -> None:
        if self._env is not None:
            self._env.close(raise_if_closed=False)
            self._env = None


#: What the command line's first word calls.
STEPS: dict[str, Callable[[Run], Any]] = {
    "demos": Run.demos,
    "base": Run.base_step,
    "stage1": Run.stage1,
    "stage2": Run.stage2,
    "eval": Run.evaluate,
    "diagnose": Run.diagnose,
    "run": Run.run,
}
