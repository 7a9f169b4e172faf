"""Offline data from the base policy itself: its own rollouts, failures included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.utils import NestedKey
from torchrl.collectors import Collector
from tqdm import tqdm

from dsrl_torchrl.collect.episode_statistics import EpisodeTracker
from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import STEPS_KEY

MACRO_STEPS_PER_BATCH = 64


def collect_rollouts(
    env: LatentActionEnv,
    policy: TensorDictModuleBase,
    env_steps: int,
    *,
    seed: int,
    observation_keys: Sequence[NestedKey],
    progress: bool = True,
) -> tuple[TensorDictBase, EpisodeTracker]:
    """Runs ``policy`` from random resets and keeps every macro transition.

    Args:
        env: the latent env; it is seeded.
        policy: writes ``action``.
        env_steps: primitive env steps to collect, over all envs; rounded up to batches of 64 macro steps.
        seed: of the resets and of the policy's noise.
        observation_keys: the observation entries to keep.
        progress: show a progress bar.

    Returns:
        Macro transitions ``[n]`` on the CPU, and the episodes that began early enough to end either way.

    Raises:
        NonFiniteError: NaN or infinity in what was collected.
    """
    torch.manual_seed(seed)
    env.set_seed(seed)
    collector = Collector(
        env,
        policy,
        frames_per_batch=MACRO_STEPS_PER_BATCH,
        total_frames=-1,
        auto_register_policy_transforms=False,  # the policy is not recurrent
    )
    batches: list[TensorDictBase] = []
    episodes, collected = EpisodeTracker(window=None), 0
    bar = tqdm(total=env_steps, unit="step", desc="base rollouts", mininterval=1.0, disable=not progress)
    for batch in collector:
        # The collector writes the next batch over this one.
        transitions = to_macro_transitions(batch, observation_keys).clone().cpu()
        check_finite(transitions, collected)
        batches.append(transitions)
        episodes.update(batch)
        before, collected = collected, collected + int(transitions["next", STEPS_KEY].sum())
        bar.update(min(collected, env_steps) - before)
        if collected >= env_steps:
            break
    bar.close()
    collector.shutdown(close_env=False)
    return torch.cat(batches), episodes
