"""The conductor: which step needs which result, what exists already, and in which env it all happens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from typing_extensions import Self

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.latent_env import make_latent_env
from dsrl_torchrl.cli.offline_inputs import OfflineInputs
from dsrl_torchrl.cli.steps import diagnose, evaluate, stage1, stage2
from dsrl_torchrl.cli.steps.evaluate import Policies
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.summary import redraw_curve, write_summary
from dsrl_torchrl.evaluation.videos import FrameRecorder
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.policies import CentredPolicy
from dsrl_torchrl.training.update_rounds import check_compiler


class Run(OfflineInputs):
    """Drives the steps of one run: demos, base, rollouts, stage 1, stage 2, evaluation, each if it is missing.

    The methods decide what is needed, and the functions in :mod:`dsrl_torchrl.cli.steps` do it. Use it as a context
    manager: it closes the envs, and profiles where ``profile=true`` asks for it. Arguments and errors are those of
    :class:`~dsrl_torchrl.cli.inputs.Inputs`.
    """

    def __enter__(self) -> Self:
        self._profiling = ExitStack()
        if self.config.profile:
            from dsrl_torchrl.cli.profiling import profiled

            self._profiling.enter_context(profiled(self.folder.path, self.config.title, self.say))
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)  # its workers' last seconds count, too
        finally:
            self._profiling.close()

    def run(self) -> None:
        """All steps."""
        if self._results_exist() and self.folder.evaluated(self.config.evaluation.episodes):
            self.say(f"evaluation: {self.folder.path / 'summary.json'} (exists)")
            if redraw_curve(self.folder.path, self.config.agent.panels, self.config.title):
                self.say(f"drawn again: {self.folder.path / 'learning_curve.png'}")
            return
        self.refuse_without_success("the evaluation")
        if self.config.stage2.total_env_steps:
            self.stage2()
        else:
            self.stage1()
        self.evaluate()

    def _results_exist(self) -> bool:
        """Whether all that the evaluation was made of is there, as it was written."""
        config, folder = self.config, self.folder
        needed = [folder.base] if config.base_policy.load is None else []
        needed += [folder.centre] if config.latent.centre_env_steps else []
        needed += [folder.subspace] if config.latent.subspace_dim else []
        needed += [folder.stage1] if config.stage2.from_stage1 else []
        needed += [folder.stage2] if config.stage2.total_env_steps else []
        return all(artifact.exists for artifact in needed)

    def base_step(self) -> None:
        """``dsrl base``: a loaded policy is probed in the env."""
        self.base()
        if self.config.base_policy.load is not None:
            env = make_latent_env(self.config, self.base(), workers=1)
            try:
                self.probe_in(env)
            finally:
                env.close()
            self.say(f"base policy: {self.config.base_policy.load['_target_']} fits {self.config.task.name}")

    def stage1(self, for_stage2: bool = False) -> None:
        """The offline warm start, in ``stage1/``; what stage 2 could not begin with is refused ``for_stage2``."""
        artifact, config = self.folder.stage1, self.config
        learner = config.offline_agent
        if learner.on_policy or not learner.learns_offline:
            raise UserError(f"{learner.__name__} learns nothing offline: run stage2, or choose another algorithm=")
        if artifact.exists:
            self.say(f"stage 1: {artifact.folder} (exists)")
            return
        self.folder.refuse_unfinished(artifact, config.resume)
        if config.offline_algorithm.compile:
            check_compiler(torch.device(config.device))
        if config.stage1.check_episodes:
            self.refuse_without_success("the check of stage 1")
        if artifact.finished and config.stage2.from_stage1 and self.folder.stage2.begun:
            raise UserError(
                f"{self.folder.stage2.folder} began from this stage 1: give stage 2 more, or choose another name="
            )
        env = self.training_env()
        if for_stage2:
            self.check_stages_fit(env)
        data = self.offline_data()
        artifact.begin()
        self.folder.save_config(self.config)
        agent = self.agent(env, self.config.offline_algorithm, data)
        with self.offline():
            facts, files = stage1.train_stage1(
                agent, env, data, self.config, artifact.folder, key=artifact.key, say=self.say
            )
        artifact.finish(*files, **facts)
        self.folder.connect()
        stage1.say_stage1(facts, artifact.folder, self.say)

    def stage2(self) -> None:
        """Online steering, in ``stage2/``."""
        artifact, config = self.folder.stage2, self.config
        if not config.stage2.total_env_steps:
            raise UserError("stage2.total_env_steps=0 leaves nothing to do online: give it some")
        if artifact.exists:
            self.say(f"stage 2: {artifact.folder} (exists)")
            return
        if config.algorithm.compile:
            check_compiler(torch.device(config.device))
        if config.stage2.from_stage1 and not self.folder.stage1.exists:
            self.stage1(for_stage2=True)
        self.folder.refuse_unfinished(artifact, config.resume)
        if config.stage2.eval_env_steps is not None:
            self.refuse_without_success("an evaluation during training")
        env = self.training_env()
        data = self.offline_data() if config.needs_offline_data else None
        artifact.begin()
        self.folder.save_config(self.config)
        agent = self.agent(env, config.algorithm, data)
        if config.stage2.from_stage1:
            agent.load(self.folder.stage1.folder, config.stage2.from_stage1)
        metrics = self.folder.path / "metrics.csv"
        facts, files = stage2.train_stage2(
            agent, env, data, self.config, artifact.folder, metrics, key=artifact.key, say=self.say
        )
        artifact.finish(*files, **facts)
        env_steps, updates = (
            f"{facts[name] / max(facts['wall_seconds'], 1e-9):.1f}" for name in ("env_steps", "updates")
        )
        self.say(
            f"stage 2: {facts['env_steps']} env steps ({env_steps}/s), {facts['updates']} updates ({updates}/s), "
            f"in {artifact.folder}"
        )

    def evaluate(self) -> dict[str, Any]:
        """Every policy of the run on the same held-out resets; ``summary.json`` and the figures."""
        self.settle_magnitude()
        self.close_env()  # its worker processes are the evaluation's
        config, folder = self.config, self.folder
        # Episode returns are plain sums, and episodes go on after a success to see whether it lasts.
        env = self.latent_env(gamma=1.0, terminate_on_success=False)
        try:
            self.probe_in(env)
            from_stage1 = bool(config.stage2.from_stage1)
            learned1 = self._learned(env, config.offline_algorithm, folder.stage1) if from_stage1 else None
            learned2 = self._learned(env, config.algorithm, folder.stage2)
            policies = evaluate.policies_of_run(env, config.latent.action, learned1, learned2)
            starts = seeds.first(seeds.HELD_OUT, config.evaluation.episodes)
            results = evaluate.evaluate_policies(env, policies, starts, progress=config.progress)
        finally:
            env.close()
        summary = write_summary(
            folder.path,
            results,
            panels=config.agent.panels,
            centre=folder.centre.facts if config.latent.centre_env_steps else {},
            stage1=folder.stage1.facts if learned1 is not None else {},
            stage2=folder.stage2.facts if learned2 is not None else {},
            config_hash=folder.config_hash,
            title=config.title,
            say=self.say,
        )
        self._record_videos(policies, starts[: config.evaluation.videos])
        folder.record_evaluation(config.evaluation.episodes, [folder.path / "summary.json"])
        return summary

    def diagnose(self) -> None:
        """Measures the base policy, and what the last finished stage learned, if there is one; prints the advice."""
        if self.config.latent.action != "noise":
            raise UserError("dsrl diagnose measures the base policy's noise: set latent.action=noise")
        policy = self.steered()
        self.settle_magnitude()
        env = self.latent_env(gamma=1.0)
        try:
            self.probe_in(env)
            learned = None
            # Critics of a whole noise, as it is measured; what searches alone has none.
            ranks = self.config.latent.subspace_dim is None and self.config.agent.learns_offline
            if ranks and self.folder.stage2.exists:
                learned, stage = self._learned(env, self.config.algorithm, self.folder.stage2), "stage 2"
            elif ranks and self.folder.stage1.exists:
                learned, stage = self._learned(env, self.config.offline_algorithm, self.folder.stage1), "stage 1"
            report, files = diagnose.diagnose_base(env, policy, learned, self.config, self.folder.path / "diagnosis")
        finally:
            env.close()
        if isinstance(policy, CentredPolicy):
            self.say("measured on the base policy around its noise centre")
        self.say(report.magnitude.reason)
        self.say(report.advice())
        if report.critic_ranking is not None:
            self.say(f"{stage}: {report.critic_ranking.line()}")
        self.say(", ".join(map(str, files)))

    def _learned(self, env: LatentActionEnv, algorithm: Any, artifact: Any) -> Agent | None:
        """The agent of a finished stage."""
        if not artifact.exists:
            if artifact.begun:
                raise UserError(f"{artifact.folder} is not finished with these options: resume=true first")
            return None
        agent = self.agent(env, algorithm)
        agent.load(artifact.folder)
        return agent.eval()

    def _record_videos(self, policies: Policies, starts: list[int]) -> None:
        task = self.config.task
        if not starts:
            return
        if task.render is None:
            self.say(f"no videos: {task.name} has no renderer")
            return
        recorder = FrameRecorder()
        try:
            env = self.latent_env(workers=1, below=[recorder], **task.render)
        except UserError as error:
            self.say(f"no videos: {error}")
            return
        folder = self.folder.path / "videos"
        try:
            evaluate.record_policies(env, recorder, policies, starts, folder)
        finally:
            env.close()
        self.say(f"videos: {folder}")


#: What the command line's first word calls.
METHODS: dict[str, Callable[[Run], Any]] = {
    "demos": Run.demos,
    "base": Run.base_step,
    "stage1": Run.stage1,
    "stage2": Run.stage2,
    "eval": Run.evaluate,
    "diagnose": Run.diagnose,
    "run": Run.run,
}
