"""What the loops ask of an algorithm, and what every algorithm here does alike."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torch import Tensor, nn

from dsrl_torchrl.agents.curve_checks import CurveCheck, Panel
from dsrl_torchrl.agents.encoding import EncodingAgent
from dsrl_torchrl.data.macro_transitions import entry_name
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder
from dsrl_torchrl.latent_env.transforms_above import check_transforms_above
from dsrl_torchrl.networks.config import NetworkConfig, observation_keys
from dsrl_torchrl.options import Options, option
from dsrl_torchrl.tensor_files import load_described, save_described

CRITIC = "critic"
#: What the names of critics' files begin with.
CRITIC_FILES = ("q_", "value")
DESCRIPTION_FILE = "agent.json"


class AgentConfig(Options):
    """Hyper-parameters that every algorithm has."""

    batch_size: int = option(256, "macro transitions per update", ge=1)
    gamma: float = option(0.98, "discount per primitive step; the bootstrap uses gamma^k", gt=0, le=1)
    tau: float = option(0.01, "Polyak rate of the target networks", gt=0, le=1)
    critic_lr: float = option(5e-4, "Adam's learning rate of the critics", gt=0)
    compile: bool = option(False, "updates by torch.compile, and on CUDA in CUDA graphs")


class Agent(EncodingAgent):
    """One algorithm: its losses, its update, the policy that acts, what is saved.

    A subclass is one file. It declares :attr:`Config`, builds its losses and implements :meth:`update`,
    :meth:`noise_values` and :meth:`tensors`.

    Args:
        env: the latent env, for its decoder, entries and device.
        config: hyper-parameters; the defaults of :attr:`Config`.
        networks: sizes.
        data: offline transitions ``[n]``, for the statistics of entries that the base policy has none of.

    Attributes:
        policy: acts and collects: observation entries to ``action``.
        kept_policy: what a run keeps and evaluates.
        in_keys: entries that rollouts and replay must keep.
        reads_noise: its TD reads the noise of the data: offline data without ``action`` is of no use.
        learns_offline: stage 1 and offline data are of use to it.
        through_decoder: its actor's gradient passes through the base policy, which must be differentiable in its noise.
        on_policy: it learns from its own newest macro steps alone: no replay, no offline data, no warm-up.
        acts_alone: the policy's weights are all its own: a copy of it acts elsewhere.
        mirrored_as: names of its metrics in TensorBoard and wandb where these differ from ``metrics.csv``: RLinf's.
        panels, curve_checks: what figures show and what is checked of the curves.
    """

    Config: ClassVar[type[AgentConfig]] = AgentConfig
    reads_noise: ClassVar[bool] = False
    learns_offline: ClassVar[bool] = True
    through_decoder: ClassVar[bool] = False
    on_policy: ClassVar[bool] = False
    acts_alone: ClassVar[bool] = True
    mirrored_as: ClassVar[Mapping[str, str]] = {
        "env/success_running": "env/success_once",
        "replay_buffer/size": "train/replay_buffer/size",
        "replay_buffer/utilization": "train/replay_buffer/utilization",
    }
    panels: ClassVar[Sequence[Panel]] = ()
    curve_checks: ClassVar[Sequence[CurveCheck]] = ()

    config: Any  # of the subclass's Config
    policy: TensorDictModuleBase
    kept_policy: TensorDictModuleBase
    decoder: NoiseDecoder

    def __init__(
        self,
        env: LatentActionEnv,
        config: Any = None,
        networks: NetworkConfig | None = None,
        data: TensorDictBase | None = None,
    ) -> None:
        super().__init__()
        self.config = self.Config() if config is None else config
        if not isinstance(self.config, self.Config):
            raise UserError(f"{type(self).__name__} takes its own Config, got {type(self.config).__qualname__}")
        # Without the noise of the data it decodes at the observations that were stored.
        check_transforms_above(env, env.decoder, decodes_stored_entries=not self.reads_noise)
        self.networks = NetworkConfig() if networks is None else networks
        self.__dict__["decoder"] = env.decoder  # the frozen policy is no part of what is trained and saved
        self.in_keys: list[NestedKey] = observation_keys(env.decoder.base_policy, self.networks)
        self.make_encoders(env, data)
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self._trained: dict[str, list[Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the learner is: the latent env's device."""
        return self.decoder.device

    # What the loops call.

    def store(self, transitions: TensorDictBase, *, online: bool) -> TensorDictBase:
        """Adds to macro transitions ``[n]`` what is computed once, when they are stored."""
        return transitions

    def finish_rollout(self, rollout: TensorDictBase) -> TensorDictBase:
        """Adds to ``[n, T]`` consecutive macro steps of n envs what an ``on_policy`` agent learns from."""
        return rollout

    def prepare(self, batches: TensorDictBase) -> TensorDictBase:
        """Does at once what ``[k, n]`` transitions of k coming updates can share: features, unless they are trained."""
        return batches if self.encoder.trainable else self.encode_next(self.encoder(batches))

    def advance(self, share: float) -> None:
        """The online loop tells how much of its env steps it has made, in [0, 1], after each macro step of all envs."""

    def parts(self, update: int) -> frozenset[str]:
        """What the ``update``-th update trains; :meth:`update` gets it, and is compiled once for each combination."""
        return frozenset({CRITIC})

    @abstractmethod
    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """One gradient update on macro transitions ``[n]``.

        Returns:
            Scalars by the names that a run logs, still on the device: nothing here waits for it.
        """

    @abstractmethod
    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        """What the algorithm thinks of a noise: ``[*B]``, ``[*B, latent_dim]`` -> ``[N, *B]``."""

    def chunk_values(self, observations: TensorDictBase, chunk: Tensor) -> Tensor | None:
        """``Q^A``: ``[*B]``, ``[*B, act_horizon, action_dim]`` -> ``[N, *B]``; ``None`` without one."""
        return None

    # What the algorithms share.

    def optimise(self, name: str, parameters: Iterable[Tensor], lr: float) -> None:
        """Gives ``parameters`` an optimiser of that name."""
        self._trained[name] = [p for p in parameters if p.requires_grad]
        on_cuda = self.device.type == "cuda"  # where a CUDA graph may hold the step
        fused = on_cuda or self.device.type == "cpu"
        self.optimisers[name] = torch.optim.Adam(self._trained[name], lr=lr, fused=fused, capturable=on_cuda)

    def descend(self, name: str, loss: Tensor) -> Tensor:
        """One step of the optimiser ``name`` on ``loss``; returns the norm of its gradient."""
        self.step(name, loss)
        return nn.utils.get_total_norm([p.grad for p in self._trained[name] if p.grad is not None])

    def step(self, name: str, loss: Tensor) -> None:
        """One step of the optimiser ``name`` on ``loss``."""
        for parameter in self._trained[name]:  # the optimiser's zero_grad takes longer
            parameter.grad = None
        loss.backward()
        self.optimisers[name].step()

    # What is saved.

    @abstractmethod
    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """All that is learned, by file: ``actor``, ``kept_actor`` and critics (:data:`CRITIC_FILES`)."""

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes a safetensors file for each of :meth:`tensors` and the encoder's, and ``agent.json``, about them.

        Returns:
            What was written.
        """
        return save_described(Path(folder), self._files(), self._description() | self._entries(), DESCRIPTION_FILE)

    def load(self, folder: str | os.PathLike[str], components: Sequence[str] = ("actor", "critics")) -> None:
        """Reads what :meth:`save` wrote, in place.

        Args:
            folder: of the run's step.
            components: ``actor``, ``critics`` or both.

        Raises:
            CheckpointError: a file is missing, damaged or of another size, or was learned for another base policy,
                noise layout, bound of the noise, kind of network or order of the entries.
            UserError: a component that is neither.
        """
        if set(components) - {"actor", "critics"}:
            raise UserError(f"components are actor and critics, got {', '.join(components)}")
        wanted = {}
        for name, tensors in self._files().items():
            component = "critics" if name.startswith(CRITIC_FILES) else "actor"
            if component in components or (name == "encoder" and components):
                wanted[name] = tensors
        load_described(Path(folder), wanted, self._description() | self._entries(), DESCRIPTION_FILE)

    def identity(self) -> dict[str, Any]:
        """What tells its checkpoints from those of others, as JSON values."""
        algorithm = self.config.model_dump(mode="json")
        return {"agent": type(self).__name__, "algorithm": algorithm, **self._description()}

    def _description(self) -> dict[str, Any]:
        """What the weights mean something for; ``None`` where it cannot be told."""
        meaning = {"activation", "layer_norm", "chunk_gain"} | (
            {"log_std_range"} if self.networks.log_std_range else set()
        )
        networks = self.networks.model_dump(mode="json", include=meaning)
        subspace = self.decoder.subspace
        return {
            "format": "dsrl_torchrl.agent",
            "version": 1,
            "base_policy": self.decoder.base_policy.content_hash(),
            "noise_layout": asdict(self.decoder.layout),
            "action_magnitude": self.decoder.action_magnitude,
            "networks": networks,
            **({} if subspace is None else {"subspace": subspace.content_hash()}),
        }

    def _entries(self) -> dict[str, Any]:
        """Which encoder is whose: by their order, which their sizes need not tell."""
        return {"entries": [entry_name(key) for key in self.encoder.in_keys]}

    def _files(self) -> dict[str, Mapping[str, Tensor]]:
        return {"encoder": self.encoder_tensors(), **self.tensors()}


def flat(params: TensorDictParams) -> dict[str, Tensor]:
    """An ensemble's parameters by dotted name."""
    return {str(key): value for key, value in params.data.flatten_keys(".").items()}


def scalars(group: str, **metrics: Tensor) -> dict[str, Tensor]:
    """Detached means by the names that a run logs, ``group/name``."""
    detached = {f"{group}/{name}": value.detach() for name, value in metrics.items()}
    return {name: value.mean() if value.ndim else value for name, value in detached.items()}
