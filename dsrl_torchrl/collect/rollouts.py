"""Offline data from the base policy itself: its own rollouts, failures included (SPEC §4)."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from tqdm import tqdm

from dsrl_torchrl.data.macro_transitions import check_finite, to_macro_transitions
from dsrl_torchrl.evaluation.evaluate import Rate, make_rate
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv

MACRO_STEPS_PER_BATCH = 64


def collect_rollouts(
    env: LatentActionEnv, policy: TensorDictModuleBase, env_steps: int, *, seed: int, progress: bool = True
) -> tuple[TensorDictBase, Rate]:
    """Runs ``policy`` from random resets and keeps every macro transition.

    Args:
        env: the latent env; it is seeded.
        policy: writes ``action``.
        env_steps: primitive env steps to collect, over all envs; rounded up to whole macro steps.
        seed: of the resets and of the policy's noise.
        progress: show a progress bar.

    Returns:
        Macro transitions ``[n]``, and the success of the finished episodes.
    """
    torch.manual_seed(seed)
    env.set_seed(seed)
    collector = Collector(
        env,
        policy,
        frames_per_batch=MACRO_STEPS_PER_BATCH,
        total_frames=-1,
        auto_register_policy_transforms=False,
    )
    batches: list[TensorDict] = []
    outcomes: list[bool] = []
    collected = 0
    bar = tqdm(total=env_steps, unit="step", desc="base rollouts", mininterval=1.0, disable=not progress)
    for batch in collector:
        transitions = to_macro_transitions(batch).clone()
        check_finite(transitions, collected)
        batches.append(transitions)
        ended = transitions["next", "done"].squeeze(-1)
        outcomes += transitions["next", "success"].squeeze(-1)[ended].tolist()
        before, collected = collected, collected + int(transitions["next", "macro_steps"].sum())
        bar.update(min(collected, env_steps) - before)
        if collected >= env_steps:
            break
    bar.close()
    collector.shutdown(close_env=False)
    return torch.cat(batches), make_rate(outcomes)
