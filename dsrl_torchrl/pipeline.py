"""The steps of the command line: demos -> base -> stage2 -> eval, each an artifact in the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dsrl_torchrl.configured import check_config, make_latent_env
from dsrl_torchrl.data.demonstrations import cut_chunks, read_demonstrations
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation import Evaluation, evaluate, held_out_seeds
from dsrl_torchrl.metrics_log import MetricsLog
from dsrl_torchrl.modules.prior_noise import PriorNoise
from dsrl_torchrl.policies import BasePolicy, load_policy, probe, save_policy, steerability
from dsrl_torchrl.run_directory import Artifact, config_hash
from dsrl_torchrl.summary import write_summary
from dsrl_torchrl.training.base import train_base_policy
from dsrl_torchrl.training.stage2 import train_stage2
from dsrl_torchrl.training.stage2_config import Stage2Config
from dsrl_torchrl.training.stage2_networks import load_actor, save_actor
from dsrl_torchrl.video import FrameRecorder, record_videos


class Pipeline:
    """All steps for one configuration and run folder.

    Args:
        cfg: the composed Hydra configuration (``conf/config.yaml``).
        say: prints one line to the user.
    """

    def __init__(self, cfg: DictConfig, say: Callable[[str], None] = print) -> None:
        self.cfg = cfg
        self.say = say
        self.config: dict[str, Any] = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        self.folder = Path(cfg.output) / cfg.name
        self.algorithm: Stage2Config = instantiate(cfg.algorithm, _convert_="all")
        task, seed = self.config["task"], cfg.seed
        base = {"task": task, "base_policy": self.config["base_policy"], "seed": seed}
        online = base | {key: self.config[key] for key in ("latent", "algorithm", "collector")}
        self.demos_artifact = Artifact(self.folder / "demos", {"demonstrations": task["demonstrations"], "seed": seed})
        self.base_artifact = Artifact(self.folder / "base", base)
        self.stage2_artifact = Artifact(self.folder / "stage2", online)
        self.config_hash = config_hash(online)
        check_config(cfg)
        if cfg.collector.threads is not None:
            torch.set_num_threads(cfg.collector.threads)

    def demos(self) -> Path:
        """Makes the demonstrations, or finds the user's; returns the h5 file."""
        demonstrations = self.cfg.task.demonstrations
        if demonstrations.path is not None:
            path = Path(demonstrations.path)
            self._read_demonstrations(path)
            return path
        path = self.demos_artifact.folder / "trajectory.h5"
        if self.demos_artifact.exists:
            self.say(f"demonstrations: {path} (exists)")
            return path
        self.demos_artifact.begin()
        instantiate(demonstrations.generator)(
            path=path,
            count=demonstrations.count,
            action_noise=demonstrations.action_noise,
            seed=self.cfg.seed,
            progress=self.cfg.progress,
        )
        episodes = self._read_demonstrations(path)
        self.demos_artifact.finish(episodes=len(episodes))
        self.say(f"demonstrations: {len(episodes)} episodes in {path}")
        return path

    def base(self) -> BasePolicy:
        """Trains the base policy on the demonstrations, or loads the user's; prints its steerability."""
        if self.cfg.base_policy.checkpoint is not None:
            policy = self._checked(load_policy(self.cfg.base_policy.checkpoint))
            self.say(f"base policy: {self.cfg.base_policy.checkpoint}")
            return policy
        folder = self.base_artifact.folder
        if self.base_artifact.exists:
            spread = self.base_artifact.facts["steerability"]
            self.say(f"base policy: {folder} (exists), steerability {spread:.3f}")
            return self._checked(load_policy(folder))
        task, spec = self.cfg.task, self.cfg.base_policy
        episodes = self._read_demonstrations(self.demos())
        self.base_artifact.begin()
        data = cut_chunks(episodes, obs_horizon=task.obs_horizon, pred_horizon=task.pred_horizon)
        torch.manual_seed(self.cfg.seed)
        policy = instantiate(spec.policy, _convert_="all")(
            observation_dim=data["observation"].shape[-1],
            action_dim=data["action"].shape[-1],
            pred_horizon=task.pred_horizon,
            obs_horizon=task.obs_horizon,
            control_mode=task.env.get("control_mode", ""),
        )
        policy = train_base_policy(
            policy,
            instantiate(spec.loss)(policy),
            data,
            seed=self.cfg.seed,
            progress=self.cfg.progress,
            **spec.training,
        )
        spread = steerability(policy, data["observation"][:512])
        save_policy(policy, folder)
        self.base_artifact.finish(steerability=spread.spread)
        self.say(f"base policy: trained on {len(data)} chunks, in {folder}")
        self._say_steerability(spread.spread)
        return self._checked(load_policy(folder))

    def stage2(self) -> None:
        """Steers the base policy online; the learned actor goes to ``stage2/``."""
        artifact = self.stage2_artifact
        if artifact.exists:
            self.say(f"stage 2: {artifact.folder} (exists)")
            return
        if any((artifact.folder / "checkpoints").glob("checkpoint*")) and not self.cfg.resume:
            raise UserError(
                f"{artifact.folder} holds an unfinished run: resume=true continues it, another name= starts anew"
            )
        policy = self.base()
        env = make_latent_env(self.cfg, policy)
        try:
            artifact.begin()
            OmegaConf.save(self.cfg, self.folder / "config.yaml", resolve=True)
            result = train_stage2(
                env,
                self.algorithm,
                seed=self.cfg.seed,
                folder=artifact.folder,
                resume=self.cfg.resume,
                make_log=self._make_log,
                progress=self.cfg.progress,
            )
        finally:
            env.close()
        save_actor(result.actor, artifact.folder)
        artifact.finish(
            env_steps=result.env_steps,
            updates=result.updates,
            wall_seconds=result.wall_seconds,
        )
        self.say(f"stage 2: {result.env_steps} env steps, {result.updates} updates, in {artifact.folder}")

    def eval(self) -> dict:
        """Evaluates every policy of the run on the same held-out resets; writes ``summary.json`` and the figures."""
        policy = self.base()
        gamma = 1.0  # episode returns are plain sums
        env = make_latent_env(self.cfg, policy, gamma=gamma, terminate_on_success=False)
        latent_dim = env.noise_layout.dim
        policies = {"base_prior": (PriorNoise(latent_dim), False), "base_zero": (PriorNoise(latent_dim, 0.0), True)}
        if self.stage2_artifact.exists:
            actor = load_actor(env, self.algorithm, self.stage2_artifact.folder)
            policies |= {"stage2_stochastic": (actor, False), "stage2_deterministic": (actor, True)}
        seeds = held_out_seeds(self.cfg.evaluation.episodes)
        results: dict[str, Evaluation] = {}
        try:
            for name, (module, deterministic) in policies.items():
                label = f"evaluate {name}" if self.cfg.progress else None
                results[name] = evaluate(env, module, seeds, deterministic=deterministic, progress=label)
        finally:
            env.close()
        self._record_videos(policy, policies, seeds)
        return write_summary(
            self.folder,
            results,
            stage2=self.stage2_artifact.facts,
            config_hash=self.config_hash,
            title=f"{self.cfg.task.name}, seed {self.cfg.seed}",
            say=self.say,
        )

    def _record_videos(self, base_policy: BasePolicy, policies: dict, seeds: list[int]) -> None:
        count, options = self.cfg.evaluation.videos, self.config["task"]["render"]
        if count == 0:
            return
        if options is None:
            self.say(f"no videos: {self.cfg.task.name} has no renderer")
            return
        recorder = FrameRecorder()
        try:
            env = make_latent_env(self.cfg, base_policy, workers=1, below=[recorder], **options)
        except UserError as error:
            self.say(f"no videos: {error}")
            return
        for name, (module, deterministic) in policies.items():
            folder = self.folder / "videos"
            record_videos(env, recorder, module, seeds[:count], folder, name, deterministic=deterministic)
        env.close()
        self.say(f"videos: {self.folder / 'videos'}")

    def run(self) -> dict | None:
        """All steps; those whose artifacts exist are skipped."""
        if not self.stage2_artifact.exists:
            self.stage2()
        elif self._evaluated():
            self.say(f"evaluation: {self.folder / 'summary.json'} (exists)")
            return None
        return self.eval()

    def _read_demonstrations(self, path: Path) -> list:
        env = self.cfg.task.env
        return read_demonstrations(path, control_mode=env.get("control_mode"))

    def _checked(self, policy: BasePolicy) -> BasePolicy:
        task = self.cfg.task
        control_mode = task.env.get("control_mode", "")
        if policy.control_mode and control_mode and policy.control_mode != control_mode:
            raise UserError(
                f"the base policy was trained for control mode {policy.control_mode}, the task uses {control_mode}"
            )
        if policy.obs_horizon != task.obs_horizon or policy.pred_horizon < task.act_horizon:
            raise UserError(
                f"the base policy has obs_horizon {policy.obs_horizon} and pred_horizon {policy.pred_horizon}, "
                f"the task asks for obs_horizon {task.obs_horizon} and act_horizon {task.act_horizon}"
            )
        probe(policy)
        return policy

    def _evaluated(self) -> bool:
        path = self.folder / "summary.json"
        if not path.exists():
            return False
        summary = json.loads(path.read_text())
        rates = summary["evaluations"].get("stage2_stochastic", {"success_once": {"n": 0}})
        same_policies = summary["config_hash"] == self.config_hash
        return same_policies and rates["success_once"]["n"] == self.cfg.evaluation.episodes

    def _say_steerability(self, spread: float) -> None:
        limit = self.cfg.base_policy.min_steerability
        self.say(f"steerability: the decoded action spreads {spread:.3f} over noise (range [-1, 1])")
        if spread < limit:
            self.say(
                f"warning: a spread below {limit} leaves little to steer; train on demonstrations with action_noise, "
                "or with more than one way of doing the task"
            )

    def _make_log(self, keep_until: int) -> MetricsLog:
        return MetricsLog(self.folder / "metrics.csv", keep_until=keep_until, **self.config["logger"])
