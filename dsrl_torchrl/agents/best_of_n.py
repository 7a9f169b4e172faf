"""Best-of-N: no actor; of N prior noises the one whose chunk ``Q^A`` ranks highest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import ValueEstimators

from dsrl_torchrl.agents.agent import Agent, AgentConfig, flat, scalars
from dsrl_torchrl.agents.curve_checks import grew
from dsrl_torchrl.networks.config import make_critics
from dsrl_torchrl.networks.critics import reduce_ensemble
from dsrl_torchrl.objectives.polyak import PolyakUpdate
from dsrl_torchrl.objectives.q_action import QActionLoss
from dsrl_torchrl.options import option


class BestOfN(Agent):
    """``w = argmax_{i <= N} Q^A(s, decode(s, w_i))``, ``w_i ~ N(0, I)`` (Eq. 18); ``Q^A`` by TD (Eq. 12).

    More candidates are not better: the best of many is the one that the critic over-estimates most.
    """

    class Config(AgentConfig):
        """Hyper-parameters of best-of-N."""

        backup: Literal["min", "mean"] = option("min", "over the ensemble, in targets and choices")
        candidates: int = option(8, "prior noises that the acting policy chooses from, N", ge=1)
        target_candidates: int = option(4, "prior noises that the TD target chooses from", ge=1)

    acts_alone: ClassVar = False  # by the critics
    panels: ClassVar = [
        ({"q_action/td_error": ""}, "TD error of $Q^A$"),
        ({"q_action/q_mean": ""}, "mean $Q^A$"),
    ]
    curve_checks: ClassVar = [
        grew("q_action/td_error", 2.0, "lower critic_lr"),
        grew("q_action/q_mean", 3.0, "over-estimation: fewer candidates, or more critics", floor=1.0),
    ]

    def __init__(self, env, config=None, networks=None, data=None) -> None:
        super().__init__(env, config, networks, data)
        self.q_action_loss = QActionLoss(
            make_critics(env, self.networks, self.encoder.out_features)["q_action"],
            self.draw_next_noise,
            self.decoder.decode,
            num_critics=self.networks.num_critics,
            backup=self.config.backup,
            temperature=0.0,
            next_keys=self.in_keys,
        ).make_value_estimator(ValueEstimators.TD0, gamma=self.config.gamma)
        self.target_updater = PolyakUpdate(self.q_action_loss, tau=self.config.tau)
        learned = [*self.q_action_loss.q_action_params.values(True, True), *self.encoder.parameters()]
        self.optimise("q_action", learned, self.config.critic_lr)
        self.policy = self.kept_policy = BestOfNPolicy(self)

    @torch.no_grad()
    def choose(self, observations: TensorDictBase, candidates: int) -> Tensor:
        """The best of ``candidates`` prior noises at encoded observations ``[*B]``, ``[*B, latent_dim]``."""
        batch = observations.batch_size
        noise = torch.randn(candidates, *batch, self.decoder.latent_dim, device=self.device)
        chunk = self.decoder.decode(observations.expand(candidates, *batch), noise)
        critic, params = self.q_action_loss.q_action, self.q_action_loss.q_action_params
        q = reduce_ensemble(critic.candidates(params, observations, chunk), self.config.backup)  # (candidates, *B)
        best = q.argmax(0)[None, ..., None].expand(1, *batch, noise.shape[-1])
        return noise.gather(0, best).squeeze(0)

    def draw_next_noise(self, observations: TensorDictBase) -> tuple[Tensor, Tensor]:
        """The noise of the TD target; it has no entropy."""
        noise = self.choose(observations, self.config.target_candidates)
        return noise, torch.zeros(observations.batch_size, device=self.device)

    def prepare(self, batches: TensorDictBase) -> TensorDictBase:
        """Decodes the TD targets' candidates of all ``[k, n]`` at once."""
        batches = super().prepare(batches)
        return self.q_action_loss.draw_next_chunks(self.encode_next(batches) if self.encoder.trainable else batches)

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """``Q^A`` by TD."""
        out = self.q_action_loss(self.encode(batch))
        loss, q, td_error = out["loss_q_action"], out["q_action"], out["td_error"]
        norm = self.descend("q_action", loss)
        self.move_targets()
        return TensorDict(scalars("q_action", loss=loss, grad_norm=norm, td_error=td_error, q_mean=q, q_std=q.std()))

    def noise_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        return self.chunk_values(observations, self.decoder.decode(observations, noise))

    def chunk_values(self, observations: TensorDictBase, chunk: Tensor) -> Tensor:
        return self.q_action_loss.values(self.encoder(observations.copy()), chunk)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            "q_action": flat(self.q_action_loss.q_action_params),
            "q_action_target": flat(self.q_action_loss.target_q_action_params),
        }


class BestOfNPolicy(TensorDictModuleBase):
    """Acts by :meth:`BestOfN.choose`; as often as it is asked, it draws anew."""

    def __init__(self, agent: BestOfN) -> None:
        super().__init__()
        self.in_keys, self.out_keys = agent.in_keys, ["action"]
        self.__dict__["agent"] = agent  # which holds this policy

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        observations = self.agent.encoder(tensordict.select(*self.in_keys))
        return tensordict.set("action", self.agent.choose(observations, self.agent.config.candidates))
