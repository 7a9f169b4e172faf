"""Episodes that branch off: several noises from the same state, each followed by the latent policy's mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dsrl_torchrl.collect.episodes import reset_to_seeds
from dsrl_torchrl.data.macro_transitions import check_finite
from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import CHUNK_KEY, STEPS_KEY, SUCCESS_ONCE_KEY
from dsrl_torchrl.latent_env.saved_states import SavedStates, restore_states, save_states

#: State i is that after ``i % STATES_APART`` macro steps: from starts to the middle of an episode.
STATES_APART = 6
#: Gets the macro transitions ``[n]`` of the episodes that run, which episodes these are ``[n]``, and how many macro
#: steps they had made.
Record = Callable[[TensorDictBase, Tensor, int], object]


@torch.no_grad()
def reach_states(env: LatentActionEnv, starts: Sequence[int], record: Record | None = None) -> tuple[SavedStates, int]:
    """State i is that ``i % 6`` macro steps of prior noise after the reset ``starts[i]``, or the last before its end.

    Returns:
        The states; the env steps that it took.
    """
    size, env_steps, count = env.batch_size.numel(), 0, len(starts)
    reached: list[SavedStates] = []
    # By state, so that states and noises are the same however many envs there are.
    noise = torch.randn(STATES_APART, count, env.latent_dim, device=env.decoder.device)
    for begin in range(0, count, size):
        group = list(starts[begin : begin + size])
        idle = size - len(group)
        td = reset_to_seeds(env, [*group, *[group[-1]] * idle])
        kept: list[SavedStates | None] = [None] * len(group)
        running = torch.arange(size) < len(group)
        for taken in range(STATES_APART):
            saved = save_states(env, td)
            for i in range(len(group)):
                if running[i] and taken <= (begin + i) % STATES_APART:
                    kept[i] = saved[[i]]
            own = noise[taken, begin : begin + size]
            td = env.step(td.set("action", torch.cat([own, own[-1:].expand(idle, -1)])))
            if record is not None:
                record(td[running], begin + running.nonzero().flatten(), taken)
            env_steps += int(td["next", STEPS_KEY].flatten().cpu()[running].sum())
            running &= ~td["next", "done"].flatten().cpu()
            td = env.step_mdp(td)
        reached += [state for state in kept if state is not None]
    return SavedStates.cat(reached), env_steps


@torch.no_grad()
def follow_mode(
    env: LatentActionEnv,
    policy: TensorDictModuleBase,
    states: SavedStates,
    rows: Sequence[int],
    noise: Tensor,
    *,
    done: Callable[[int], object] | None = None,
    record: Record | None = None,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Executes ``noise[i]`` from ``states[rows[i]]`` and then the policy's mode, ``env.batch_size`` of them at once.

    At a time limit the last macro step is taken to go on for ever, ``R / (1 - γ^k)``.

    Returns:
        Discounted returns ``[n]`` and success ``[n]``, on the CPU; the chunks of the noises ``[n, act_horizon,
        action_dim]``; the env steps taken.

    Raises:
        NonFiniteError: NaN or infinity in an episode.
    """
    size, env_steps, gamma = env.batch_size.numel(), 0, env.gamma
    assert gamma is not None
    outcomes = []
    for begin in range(0, len(rows), size):
        group = list(rows[begin : begin + size])
        idle = size - len(group)
        td = restore_states(env, states[[*group, *[group[-1]] * idle]])
        first = noise[begin : begin + size]
        td.set("action", torch.cat([first, first[-1:].expand(idle, -1)]))
        running, returns = torch.arange(size) < len(group), torch.zeros(size, dtype=torch.float64)
        discount, success = torch.ones_like(returns), torch.zeros_like(running)
        chunks: list[Tensor] = []
        while running.any():
            td = env.step(td)
            check_finite(td[running], env_steps)
            if record is not None:
                record(td[running], begin + running.nonzero().flatten(), len(chunks))
            after = td["next"].select("reward", "terminated", "done", STEPS_KEY, SUCCESS_ONCE_KEY).cpu()
            reward, steps = after["reward"].flatten().double(), after[STEPS_KEY].flatten()
            factor = gamma**steps
            returns += torch.where(running, discount * reward, 0.0)
            discount = discount * factor
            done_now = after["done"].flatten()
            limit = running & done_now & ~after["terminated"].flatten()
            returns += torch.where(limit, discount * reward / (1 - factor), 0.0)
            success |= running & after[SUCCESS_ONCE_KEY].flatten()
            env_steps += int(steps[running].sum())
            chunks.append(td["next", CHUNK_KEY])
            running = running & ~done_now
            with set_exploration_type(ExplorationType.DETERMINISTIC):
                td = policy(env.step_mdp(td))
        outcomes.append((returns[: len(group)], success[: len(group)], chunks[0][: len(group)]))
        if done is not None:
            done(len(group))
    returns, success, chunk = (torch.cat(column) for column in zip(*outcomes, strict=True))
    return returns, success, chunk, env_steps
