"""DSRL-AW-MLE, our default: DSRL-NA's critics, and an actor that imitates the prior's better noises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from dsrl_torchrl.agents.actor_agent import ACTOR, ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import scalars
from dsrl_torchrl.agents.dsrl_na import DSRLNA
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY
from dsrl_torchrl.networks.critics import Critic
from dsrl_torchrl.objectives.aw_mle import AdvantageWeightedMLELoss
from dsrl_torchrl.options import option, with_defaults

DISTIL = "distil"
#: Share of stage 2 after which the policy narrows. Narrowing from the start on makes better hands in training and, by
#: one seed of two, modes that do not stay at the goal: the critics then see little beside the mode's own way.
NARROWS_FROM = 0.8
#: Noises and what they decode to, drawn once per stored state: the frozen policy never changes.
PAIR_NOISE, PAIR_CHUNK = "pair_noise", "pair_chunk"
ROWS_PER_DECODE = 4096


class DSRLAWMLE(DSRLNA):
    """The actor never climbs ``Q^W``: it fits the prior's candidates that ``Q^W`` ranks highest (Eq. 14 and 15).

    It cannot get lost in noises whose value nobody has seen, but is no better than the best of ``m_candidates``. It has
    no temperature; late in stage 2 it acts ever closer to its mode, which stays at the goal. Where zero noise
    fails, which it narrows towards, a larger ``final_spread`` may be better (LiftPegUpright, two seeds: 0.89 once with
    0.3, 0.82 with 0.1).

    What makes it cheap: pairs of noise and chunk that are decoded once, when a transition is stored, and one decode for
    the TD targets of several updates.
    """

    class Config(with_defaults(ActorConfig, actor_interval=4)):  # type: ignore[misc]
        """Hyper-parameters of DSRL-AW-MLE."""

        backup: Literal["min", "mean"] = option("mean", "over the ensemble: min follows whichever errs")
        distillation_interval: int = option(2, "updates of Q^A per distillation into Q^W", ge=1)
        decoded_pairs: int = option(16, "noises decoded once per stored state, to distil at; 0: one per update", ge=0)
        executed_share: float = option(0.5, "of the online states' pairs: what was executed", ge=0, le=1)
        m_candidates: int = option(32, "noises of the prior per state, M", ge=2)
        beta_latent: float = option(10.0, "inverse temperature of the candidates' weights", gt=0)
        tau_baseline: float = option(0.1, "of the soft baseline; 1 / beta_latent makes the weights a softmax", gt=0)
        actor_batch_size: int = option(64, "states of the batch that an actor step reads", ge=1)
        final_spread: float = option(
            0.1, "of the noise about its mode at the end of stage 2, a share of what was learned", gt=0, le=1
        )

    panels: ClassVar = [
        DSRLNA.panels[0],
        ({"q_action/q_mean": "$Q^A$, data", "q_noise/q_mean": "$Q^W$, pairs"}, "mean Q"),
        DSRLNA.panels[2],
        ({"actor/loss": ""}, "imitation loss"),
        ({"actor/effective_candidates": ""}, "effective candidates"),
        ({"actor/advantage": ""}, "advantage over the prior"),
    ]
    curve_checks: ClassVar = DSRLNA.curve_checks[:2]

    def make_actor_losses(self, q_noise: Critic) -> None:
        """The imitation loss; ``Q^W`` is the distillation's."""
        config = self.config
        self.actor_loss = AdvantageWeightedMLELoss(
            self.actor,
            self.candidate_values,
            latent_dim=self.decoder.latent_dim,
            action_magnitude=self.decoder.action_magnitude,
            m_candidates=config.m_candidates,
            beta_latent=config.beta_latent,
            tau_baseline=config.tau_baseline,
            backup=config.backup,
        )

    def candidate_values(self, observations: TensorDictBase, noise: Tensor) -> Tensor:
        """``Q^W`` of ``[M, *B, latent_dim]`` noises -> ``[N, M, *B]``."""
        return self.aliasing_loss.candidate_values(observations, noise)

    def temperature(self) -> float:
        """A policy that maximises no entropy has none in its value."""
        return 0.0

    def store(self, transitions: TensorDictBase, *, online: bool) -> TensorDictBase:
        """Decodes the pairs that the distillation will read."""
        share = self.config.executed_share if online else 0.0

        def decode(observations: TensorDictBase, noise: Tensor) -> Tensor:
            # Offline data stay where they are, images above all; what is decoded at once goes to the policy.
            return self.decoder.decode(observations.to(self.device), noise.to(self.device)).to(noise.device)

        return draw_decoded_pairs(transitions, decode, self.decoder.latent_dim, self.config.decoded_pairs, share)

    def prepare(self, batches: TensorDictBase) -> TensorDictBase:
        """Picks a pair for every transition, and decodes the TD targets' chunks of all ``[k, n]`` at once."""
        batches = super().prepare(pick_decoded_pair(batches))
        return self.q_action_loss.draw_next_chunks(self.encode_next(batches) if self.encoder.trainable else batches)

    def advance(self, share: float) -> None:
        """Narrows what acts, and what the TD targets assume of it, linearly to ``final_spread`` at the end."""
        late = max(0.0, (share - NARROWS_FROM) / (1 - NARROWS_FROM))
        for actor in (self.actor, self.kept_policy.actor):
            actor.spread.fill_(1 - late * (1 - self.config.final_spread))

    def parts(self, update: int) -> frozenset[str]:
        due = update % self.config.distillation_interval == 0
        return super().parts(update) | {DISTIL} if due else super().parts(update)

    def update(self, batch: TensorDictBase, parts: frozenset[str]) -> TensorDict:
        """``Q^A`` by TD; ``Q^W`` by distillation and the actor where they are due."""
        batch = self.encode(batch, ACTOR in parts)
        metrics = self.learn_q_action(batch)
        batch = self.detached(batch)
        if DISTIL in parts:
            metrics |= self.distil(batch)
        if ACTOR in parts:
            metrics |= self.learn_actor(batch)
        self.move_targets()
        return TensorDict(metrics)

    def actor_tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """No temperature among them."""
        return ActorAgent.actor_tensors(self)

    def learn_actor(self, batch: TensorDictBase) -> dict[str, Tensor]:
        """Eq. 14 and 15 on some states of the batch, online and offline ones in its proportion."""
        count, wanted = len(batch), self.config.actor_batch_size
        if wanted < count:
            batch = batch[torch.arange(wanted, device=self.device) * count // wanted]
        out = self.actor_loss(batch)
        loss = out["loss_aw_mle"]
        norm = self.descend("actor", loss)
        self.move_average()
        candidates, advantage = out["effective_candidates"], out["advantage"]
        return scalars("actor", loss=loss, grad_norm=norm, effective_candidates=candidates, advantage=advantage)


@torch.no_grad()
def draw_decoded_pairs(
    transitions: TensorDictBase,
    decode: Callable[[TensorDictBase, Tensor], Tensor],
    latent_dim: int,
    pairs: int,
    executed_share: float = 0.0,
) -> TensorDictBase:
    """Adds M = ``pairs`` pairs ``(w, decode(s, w))``, ``w ~ N(0, I)``, to each macro transition, in place.

    Distillation then costs no decode: M per state in all, in large batches, instead of one per state and update. A
    transition grows by ``M (latent_dim + act_horizon * action_dim)`` numbers: 4 KB for M = 16 and 32 noise dimensions.

    Args:
        transitions: ``[n]``, with the entries that ``decode`` reads.
        decode: the frozen policy, ``(observations [*B], noise [*B, latent_dim])`` to the executed head.
        latent_dim: size of the noise.
        pairs: M; 0 adds nothing.
        executed_share: of the M pairs, those that are the noise and the chunk that were executed. ``Q^W`` is then
            distilled where the latent policy acts, too: it moves many standard deviations of the prior along the few
            directions that matter, and a ``Q^W`` that has only seen the prior extrapolates there.

    Returns:
        The transitions with ``pair_noise`` ``[n, M, latent_dim]`` and ``pair_chunk``
        ``[n, M, act_horizon, action_dim]``.
    """
    if pairs == 0:
        return transitions
    like = transitions.get(("next", CHUNK_KEY))
    own = round(pairs * executed_share)
    drawn = pairs - own
    noise = torch.randn(len(transitions), drawn, latent_dim, dtype=like.dtype, device=like.device)
    observations = transitions.exclude("next")
    rows = max(1, ROWS_PER_DECODE // max(drawn, 1))
    parts = [
        decode(s.unsqueeze(1).expand(len(s), drawn), w)
        for s, w in zip(observations.split(rows), noise.split(rows), strict=True)
    ]
    chunk = torch.cat(parts)
    if own:
        executed = transitions.get("action"), like
        noise, chunk = (
            torch.cat([pair.unsqueeze(1).expand(-1, own, *pair.shape[1:]), prior], dim=1)
            for pair, prior in zip(executed, (noise, chunk), strict=True)
        )
    return transitions.set(PAIR_NOISE, noise).set(PAIR_CHUNK, chunk)


def pick_decoded_pair(batch: TensorDictBase) -> TensorDictBase:
    """Replaces the M pairs of each element of ``[*B]`` by one of them at random; a batch without pairs stays."""
    noise = batch.get(PAIR_NOISE, None)
    if noise is None:
        return batch
    choice = torch.randint(noise.shape[batch.ndim], batch.shape, device=noise.device)
    elements = tuple(torch.meshgrid(*(torch.arange(n, device=noise.device) for n in batch.shape), indexing="ij"))
    batch.set(PAIR_NOISE, noise[(*elements, choice)])
    return batch.set(PAIR_CHUNK, batch.get(PAIR_CHUNK)[(*elements, choice)])
