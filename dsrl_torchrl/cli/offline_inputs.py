"""The offline data of a run: rollouts, made once, and demonstrations, as its algorithm can learn from them."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDictBase

from dsrl_torchrl.cli.latent_env import make_latent_env
from dsrl_torchrl.cli.steered_inputs import SteeredInputs
from dsrl_torchrl.cli.steps import offline_data
from dsrl_torchrl.cli.steps.noise_centre import ROLLOUTS_FILE
from dsrl_torchrl.data.macro_transitions import load_transitions, save_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.evaluation.rates import make_rate
from dsrl_torchrl.latent_env.base_features import BASE_FEATURES_KEY, add_base_features
from dsrl_torchrl.networks.config import observation_keys
from dsrl_torchrl.policies import IdentityPolicy


class OfflineInputs(SteeredInputs):
    """Inputs, and the data of stage 1; arguments and errors are those of :class:`~dsrl_torchrl.cli.inputs.Inputs`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._data: TensorDictBase | None = None

    def offline_data(self) -> TensorDictBase:
        """All offline macro transitions ``[n]``; collects the rollouts where they are missing.

        An algorithm that reads the data's noise gets what has one: the rollouts, and demonstrations whose noise
        ``stage1.inversion`` finds. The others get everything, without noise; one that learns chunks, everything.
        """
        if self._data is None:
            searched = self._searched()
            rollouts = self._rollouts() if self.config.stage1.rollout_env_steps else None
            demonstrations = self._demonstrations()
            noise = self.config.reads_noise
            if self.config.latent.action == "chunk":
                policy = IdentityPolicy(self.base(), self.config.task.act_horizon)
                if rollouts is not None:
                    rollouts = offline_data.with_chunks(rollouts, policy)
                if demonstrations is not None:
                    demonstrations = offline_data.with_chunks(demonstrations, policy)
            elif noise and demonstrations is not None:
                inversion = self.config.stage1.inversion
                if inversion is None:
                    demonstrations = None
                    self.say("offline data: base rollouts alone; stage1.inversion finds a noise for demonstrations")
                else:
                    demonstrations, line = offline_data.with_noise(
                        demonstrations,
                        self.training_env().decoder,
                        inversion,
                        self.folder.path.parent / "inversion_cache",  # the other runs of the same base policy find it
                        progress=self.config.progress,
                        say=lambda line: self.say(f"warning: {line}"),
                    )
                    self.say(line)
            parts = [part for part in (rollouts, searched, demonstrations) if part is not None]
            if noise:
                parts = [part for part in parts if "action" in part.keys()]
            if not parts:
                raise UserError(
                    "there are no offline data: set stage1.rollout_env_steps above 0, or give demonstrations that this "
                    "algorithm can learn from"
                )
            self._data = offline_data.joined(parts, noise=noise)
        return self._data

    def _rollouts(self) -> TensorDictBase:
        artifact = self.folder.rollouts
        path = artifact.folder / "rollouts.safetensors"
        if artifact.exists:
            return load_transitions(path)
        env, config = self.training_env(), self.config
        steered = config.latent.action == "noise"
        if not steered:  # the same rollouts as for learners of noise
            env = make_latent_env(config.replace(latent=config.latent.replace(action="noise")), self.base())
        artifact.begin()
        self.folder.save_config(config)  # the number of envs that they depend on, which a resumed run keeps
        try:
            rollouts, episodes = offline_data.base_rollouts(
                env,
                observation_keys(env.decoder.base_policy, config.networks),
                config.stage1.rollout_env_steps,
                seed=config.seed,
                progress=config.progress,
            )
        finally:
            if not steered:
                env.close()
        save_transitions(rollouts, path)
        artifact.finish(path)
        self.folder.connect()
        rate = make_rate(episodes.successes)
        self.say(f"base rollouts: {len(rollouts)} macro transitions, success {rate} of {rate.n} episodes")
        if not config.latent.centre_env_steps:  # whose episodes came before
            self.warn_of(rollouts, episodes)
        return rollouts

    def _searched(self) -> TensorDictBase | None:
        """The macro transitions of the search for a centre, which are as good as any rollouts."""
        if not self.config.latent.centre_env_steps:
            return None
        self.steered()
        searched = load_transitions(self.folder.centre.folder / ROLLOUTS_FILE)
        # Its noise is whole, the latent action here a part of it.
        return searched if self.config.latent.subspace_dim is None else searched.exclude("action")

    def _demonstrations(self) -> TensorDictBase | None:
        task = self.config.task
        if not self.config.stage1.use_demonstrations:
            return None
        if self.config.base_policy.load is not None and task.demonstrations.path is None:
            self.say(
                "offline data: base rollouts alone; task.demonstrations.path adds the demonstrations of your policy"
            )
            return None
        policy = self.base()
        keys = [key for key in observation_keys(policy, self.config.networks) if key != BASE_FEATURES_KEY]
        demonstrations = offline_data.demonstrated_transitions(
            task, self._episodes(self.demos()), keys, self.config.algorithm.gamma
        )
        return add_base_features(demonstrations, policy) if self.config.latent.base_features else demonstrations
