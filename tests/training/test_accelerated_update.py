"""The compiled update is the eager one."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import config as inductor

from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.training.accelerated_update import AcceleratedUpdate
from dsrl_torchrl.training.latent_networks import make_actor
from dsrl_torchrl.training.learner import make_update
from dsrl_torchrl.training.learner_config import LearnerConfig

from tests.training.test_online import SMALL, make_env


def trained(noise_aliasing, compile, seed=0):
    torch.manual_seed(seed)
    env = make_env()
    env.set_seed(seed)
    data = to_macro_transitions(env.rollout(8, break_when_any_done=False))
    update = make_update(env, make_actor(env, SMALL), LearnerConfig(aw_mle=False), SMALL, noise_aliasing=noise_aliasing)
    accelerated = AcceleratedUpdate(update, compile)
    torch.manual_seed(1)
    for _ in range(3):
        metrics = accelerated(data.copy())
    return metrics, torch.cat([p.detach().flatten() for p in update.parameters()])


@pytest.mark.timeout(900)  # a compiler runs
@pytest.mark.parametrize("noise_aliasing", [False, True], ids=["sac", "na"])
def test_compiled_and_eager_agree(noise_aliasing):
    eager, eager_parameters = trained(noise_aliasing, compile=False)
    with inductor.patch(fallback_random=True):  # the same noise as in eager mode
        compiled, compiled_parameters = trained(noise_aliasing, compile=True)
    torch.testing.assert_close(compiled_parameters, eager_parameters, rtol=1e-4, atol=1e-5)
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_a_cpu_update_is_eager_unless_asked():
    env = make_env()
    update = make_update(env, make_actor(env, SMALL), LearnerConfig(aw_mle=False), SMALL, noise_aliasing=False)
    by_default = AcceleratedUpdate(update)
    assert not by_default.compile and not by_default.cuda_graphs
    assert AcceleratedUpdate(update, compile=True).compile
