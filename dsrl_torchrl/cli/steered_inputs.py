"""The latent env of a run, and what is measured on its base policy before it is steered, each once."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch
from tensordict import TensorDictBase
from typing_extensions import Self

from dsrl_torchrl import seeds
from dsrl_torchrl.agents.agent import Agent
from dsrl_torchrl.cli.inputs import Inputs
from dsrl_torchrl.cli.latent_env import image_memory_line, make_latent_env
from dsrl_torchrl.cli.steps import offline_data
from dsrl_torchrl.cli.steps.noise_centre import FILE, ROLLOUTS_FILE, search_centre
from dsrl_torchrl.cli.values import AUTO
from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.collect.episodes import reset_to_seeds
from dsrl_torchrl.data.macro_transitions import save_transitions
from dsrl_torchrl.errors import CheckpointError, UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv, check_units
from dsrl_torchrl.latent_env.noise_subspace import NoiseSubspace
from dsrl_torchrl.networks.config import make_encoder, observation_keys
from dsrl_torchrl.policies import BasePolicy, CentredPolicy, probe
from dsrl_torchrl.policies.probe import PROBE_NOISES
from dsrl_torchrl.steerability.action_magnitude import choose_action_magnitude
from dsrl_torchrl.steerability.noise_subspace import find_noise_subspace
from dsrl_torchrl.steerability.prior_rollouts import PriorRollouts, collect_prior_rollouts
from dsrl_torchrl.tensor_files import load_tensors, save_tensors

#: Starts of the base policy's own episodes that the noise is measured on, and observations of them.
RESETS = 20
MAGNITUDE_OBSERVATIONS, SUBSPACE_OBSERVATIONS = 256, 64
BASIS_FILE = "basis.safetensors"


class SteeredInputs(Inputs):
    """Inputs, and the latent env; arguments and errors are those of :class:`~dsrl_torchrl.cli.inputs.Inputs`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._env: LatentActionEnv | None = None
        self._steered: BasePolicy | None = None
        self._subspace: NoiseSubspace | None = None
        self._probed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close_env()

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

    def steered(self) -> BasePolicy:
        """Whose noise is steered: the base policy, around what ``latent.centre_env_steps`` finds, if that is better."""
        config, artifact = self.config, self.folder.centre
        if not config.latent.centre_env_steps:
            return self.base()
        if self._steered is None:
            centre, rollouts = (artifact.folder / name for name in (FILE, ROLLOUTS_FILE))
            if not artifact.exists:
                if config.stage2.from_stage1:
                    _ = self.folder.stage1.exists  # refuses another configuration's folder before anything is written
                _ = self.folder.stage2.exists
                env = make_latent_env(config, self.base())
                try:
                    self.probe_in(env)
                    image_memory_line(env, config)
                    artifact.begin()
                    keys = observation_keys(env.decoder.base_policy, config.networks)
                    choice, transitions, episodes = search_centre(env, config, keys)
                finally:
                    env.close()
                self.folder.save_config(config)  # the number of envs that it depends on, which a resumed run keeps
                save_tensors({"centre": choice.centre}, centre)
                save_transitions(transitions, rollouts)
                artifact.finish(centre, rollouts, line=choice.line(), kept=choice.kept, env_steps=choice.env_steps)
                self.folder.connect(self.base().content_hash())
                self.warn_of(transitions, episodes)
            facts = artifact.facts
            if "kept" not in facts:
                raise UserError(f"{artifact.folder} is of an older version, without a trial: choose another name=")
            self.say(facts["line"])
            kept = facts["kept"]
            self._steered = CentredPolicy(self.base(), load_tensors(centre)["centre"]) if kept else self.base()
        return self._steered

    def warn_of(self, rollouts: TensorDictBase, episodes: EpisodeTracker) -> None:
        """Says what in the first episodes of a task will not be learned from well."""
        for warning in (
            offline_data.failing_pays(self.config.task, rollouts),
            offline_data.short_sighted(episodes, self.config.algorithm.gamma),
        ):
            if warning is not None:
                self.say(warning)

    def agent(self, env: LatentActionEnv, algorithm: Any, data: TensorDictBase | None = None) -> Agent:
        """A fresh agent, stage 2's or stage 1's by its ``algorithm``; its weights depend on the run's seed alone."""
        torch.manual_seed(self.config.seed)
        kind = self.config.agent if type(algorithm) is self.config.agent.Config else self.config.offline_agent
        return kind(env, algorithm, self.config.networks, data)

    def check_stages_fit(self, env: LatentActionEnv) -> None:
        """Raises :class:`UserError` where stage 2's agent could not begin with what stage 1's saves."""
        config = self.config
        if config.offline_algorithm == config.algorithm:
            return
        with torch.random.fork_rng(devices=[env.decoder.device] if env.decoder.device.type == "cuda" else []):
            second, first = (self.agent(env, algorithm) for algorithm in (config.algorithm, config.offline_algorithm))
        with tempfile.TemporaryDirectory() as folder:
            first.save(folder)
            try:
                second.load(folder, config.stage2.from_stage1)
            except CheckpointError as error:
                reason = str(error).replace(f"{folder}/", "its ").replace(folder, "it").replace(".safetensors", "")
                raise UserError(
                    f"{config.agent.__name__} cannot begin with what {config.offline_agent.__name__} learns "
                    f"({reason}): name another algorithm by stage1.algorithm._target_, or other parts by "
                    f"stage2.from_stage1, got {list(config.stage2.from_stage1)}"
                ) from None

    def settle_magnitude(self) -> None:
        """Replaces ``latent.action_magnitude=auto`` by a number, before any env of a step is made."""
        config, artifact = self.config, self.folder.magnitude
        if config.latent.action_magnitude != AUTO:
            return
        if not artifact.exists:
            env = make_latent_env(config, self.steered())
            try:
                self.probe_in(env)
                artifact.begin()
                observations = self._prior_rollouts(env, "action_magnitude").sample_observations(MAGNITUDE_OBSERVATIONS)
                choice = choose_action_magnitude(env.decoder, observations, seed=config.seed)
            finally:
                env.close()
            artifact.finish(**asdict(choice))
        self.config = config.replace(latent=config.latent.replace(action_magnitude=artifact.facts["value"]))
        self.say(f"auto: {artifact.facts['reason']}")

    def latent_env(self, **options: Any) -> LatentActionEnv:
        """:func:`~dsrl_torchrl.cli.latent_env.make_latent_env` of this run, around its centre and in its subspace."""
        return make_latent_env(self.config, self.steered(), subspace=self.subspace(), **options)

    def subspace(self) -> NoiseSubspace | None:
        """The subspace that ``latent.subspace_dim`` asks for, measured once for the base policy."""
        config, artifact = self.config, self.folder.subspace
        dim = config.latent.subspace_dim
        if dim is None or self._subspace is not None:
            return self._subspace
        path = artifact.folder / BASIS_FILE
        if not artifact.exists:
            env = make_latent_env(config, self.steered())
            try:
                self.probe_in(env)
                artifact.begin()
                rollouts, size = self._prior_rollouts(env, "subspace_dim"), env.decoder.layout.dim
                observations = rollouts.sample_observations(SUBSPACE_OBSERVATIONS).to(env.decoder.device)
                choice = find_noise_subspace(env.decoder, observations, dim, seed=config.seed)
            finally:
                env.close()
            save_tensors({"basis": choice.basis}, path)
            artifact.finish(path, share=choice.share, of=size, env_steps=rollouts.env_steps)
            self.folder.connect(self.base().content_hash())
        facts = artifact.facts
        self.say(f"noise subspace: {dim} of {facts['of']} dimensions carry {facts['share']:.0%} of the response")
        self._subspace = NoiseSubspace(load_tensors(path)["basis"])
        return self._subspace

    def _prior_rollouts(self, env: LatentActionEnv, option: str) -> PriorRollouts:
        """Episodes of the base policy to measure ``option`` on; the env does not bound the prior's noise."""
        label = f"observations for {option}" if self.config.progress else None
        return collect_prior_rollouts(env, resets=RESETS, repeats=1, seed=self.config.seed, progress=label)

    def probe_in(self, env: LatentActionEnv) -> None:
        """Probes the base policy, once per command: is the chunk a function of the noise, at what the env gives."""
        if self._probed:
            return
        decoder, size = env.decoder, env.batch_size.numel()
        starts = seeds.first(seeds.DIAGNOSIS, -(-PROBE_NOISES // size) * size)
        resets = [reset_to_seeds(env, starts[i : i + size]) for i in range(0, len(starts), size)]
        keys = {*decoder.base_policy.in_keys, *self.base().in_keys}
        observations = torch.cat([td.select(*keys).reshape(-1) for td in resets])
        # What learns chunks, or corrects them, is no function of noise: its base policy is.
        probe(decoder.base_policy if self.config.latent.action == "noise" else self.base(), observations)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(observations), decoder.latent_dim, generator=generator).to(decoder.device)
        with torch.no_grad():
            check_units(decoder.decode(observations, noise), decoder.parent.full_action_spec["action"])
        self._probed = True

    def close_env(self) -> None:
        """Ends the training env and its worker processes; it is made anew where it is needed again."""
        if self._env is not None:
            self._env.close(raise_if_closed=False)
            self._env = None
