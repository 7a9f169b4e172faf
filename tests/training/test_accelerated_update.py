"""The compiled update is the eager one."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import _dynamo as dynamo
from torch._inductor import config as inductor

from dsrl_torchrl.data.macro_transitions import to_macro_transitions
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.training.update_rounds import AcceleratedUpdate, check_compiler, make_updates
from tests.training.toy import DSRLAWMLE, DSRLSAC, TD3, make_agent, make_env


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """What other tests of this process have compiled of the same lines would be tried first, and recompiled."""
    dynamo.reset()


def trained(kind, compile, updates=3, **options):
    env = make_env()
    env.set_seed(0)
    torch.manual_seed(0)
    at_once = {"critic_only_updates": 0, "actor_interval": 1, "distillation_interval": 1}
    agent = make_agent(kind, env=env, compile=compile, **at_once | options)
    data = to_macro_transitions(env.rollout(8, break_when_any_done=False), agent.in_keys)
    data = agent.store(data, online=True)
    torch.manual_seed(1)
    update = AcceleratedUpdate(agent)

    def sample(n):
        return data.expand(n, len(data)).clone()

    metrics = make_updates(update, sample, first=0, count=updates - 1)
    # By now all is compiled, long before a capture, which could not wait for a compiler.
    with torch.compiler.set_stance("fail_on_recompile"):
        metrics |= make_updates(update, sample, first=updates - 1, count=1)
    return metrics, torch.cat([p.detach().flatten() for p in agent.parameters()])


def assert_close(result, expected):
    (metrics, parameters), (eager, eager_parameters) = result, expected
    torch.testing.assert_close(parameters, eager_parameters, rtol=1e-4, atol=1e-5)
    assert metrics.keys() == eager.keys()
    for name, value in eager.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a compiler runs
def test_compiled_and_eager_agree():
    """On DSRL-SAC: a critic, SAC's actor and its temperature. The other losses are captured below."""
    with inductor.patch(fallback_random=True):  # the same noise as in eager mode
        compiled = trained(DSRLSAC, compile=True)
    assert_close(compiled, trained(DSRLSAC, compile=False))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [DSRLAWMLE, TD3])
def test_the_captured_graph_is_the_eager_update(kind, monkeypatch):
    """As above, without the code generation that takes most of the time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert_close(trained(kind, compile=True), trained(kind, compile=False))


def test_every_combination_of_parts_is_compiled_once(monkeypatch):
    made = []
    monkeypatch.setattr(torch, "compile", lambda step, **_: made.append(step.keywords["parts"]) or step)
    options = {"updates": 12, "critic_only_updates": 4, "actor_interval": 2, "distillation_interval": 2}
    compiled = trained(DSRLAWMLE, compile=True, **options)
    assert len(made) == len(set(made)) == 3
    assert_close(compiled, trained(DSRLAWMLE, compile=False, **options))


class Scale(torch.nn.Module):
    """What is asked of an agent, and compiled anew for each."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.config, self.device = factor, DSRLSAC.Config(compile=True), torch.device("cpu")
        self.optimisers = {"something": None}

    def update(self, batch, parts):
        return batch * self.factor


def test_the_tenth_agent_of_a_process_is_compiled_too(monkeypatch):
    """Torch's default gives up after eight versions, in silence."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    with dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for factor in range(10):
            assert AcceleratedUpdate(Scale(factor))(torch.ones(2), frozenset()).tolist() == [factor, factor]


def test_what_is_compiled_sees_no_view_of_a_sample(monkeypatch):
    """The size of a view's base is guarded, and one sample has more updates than another."""
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    agent = Scale(2)
    agent.update = lambda batch, parts: batch
    sample = TensorDict({"observation": torch.arange(6.0).reshape(3, 2)}, [3])
    seen = AcceleratedUpdate(agent)(sample.unbind(0)[1], frozenset())
    assert seen["observation"]._base is None and seen["observation"].tolist() == [2, 3]


def test_a_cpu_update_is_eager_unless_asked():
    by_default = AcceleratedUpdate(make_agent(DSRLSAC))
    assert not by_default.compile and not by_default.cuda_graphs
    assert AcceleratedUpdate(make_agent(DSRLSAC, compile=True)).compile


@pytest.mark.parametrize(("device", "variable", "named"), [("cpu", "CXX", r"g\+\+'"), ("cuda", "CC", "or 'gcc'")])
def test_the_compiler_that_torch_looks_for(monkeypatch, tmp_path, device, variable, named):
    """That of the environment, or, without one, the first of the usual names."""
    monkeypatch.setenv(variable, sys.executable)
    check_compiler(torch.device(device))
    monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=f"there is no .*{named}: .*{variable}"):
        check_compiler(torch.device(device))
