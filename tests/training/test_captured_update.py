"""A captured update learns on as the eager one does: all that changes lies in tensors that stay where they are."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.agents import GoldenNoise
from dsrl_torchrl.training.update_rounds import WARM_UP, AcceleratedUpdate, make_updates
from tests.agents.cases import AGENTS, make_agent, make_transitions, pixel_env, state, state_env
from tests.training.recorded_graph import RecordedGraph, pretend_cuda

UPDATES = 8 * WARM_UP  # every combination of parts is captured, and replayed
OFTEN = {"critic_only_updates": UPDATES // 2, "actor_interval": 2, "distillation_interval": 2}


def train(kind, make_env, captured, updates=UPDATES):
    """Every update's batch differs from the last one's; returns the agent, the metrics and the combinations made."""
    env = make_env()
    options = {name: value for name, value in OFTEN.items() if name in kind.Config.model_fields}
    agent = make_agent(kind, env, **options)
    data = make_transitions(agent, env, 64)
    update = AcceleratedUpdate(agent)
    update.compile, update.cuda_graphs = captured, captured
    generator = torch.Generator().manual_seed(2)

    def sample(batches):
        return data[torch.randint(len(data), (batches, 16), generator=generator)]

    torch.manual_seed(3)
    metrics = make_updates(update, sample, first=0, count=updates)
    return agent, metrics, update._steps


@pytest.fixture
def graphs(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    return pretend_cuda(monkeypatch)


@pytest.mark.parametrize("make_env", [state_env, pixel_env], ids=["states", "pixels"])
@pytest.mark.parametrize("kind", AGENTS, ids=lambda kind: kind.__name__)
def test_replays_are_the_eager_updates(kind, make_env, graphs):
    agent, metrics, steps = train(kind, make_env, captured=True)
    assert len(graphs) == len(steps) >= 1 and all(graph.replays for graph in graphs)
    assert sum(graph.replays for graph in graphs) == UPDATES - WARM_UP * len(steps)
    twin, expected, _ = train(kind, make_env, captured=False)
    learned, wanted = state(agent), state(twin)
    for name, value in wanted.items():
        torch.testing.assert_close(learned[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_search_goes_on_outside_of_graphs(graphs):
    """What it does and says is the host's."""
    agent = make_agent(GoldenNoise, state_env(), compile=True)
    update = AcceleratedUpdate(agent)
    assert not update.compile
    data = make_transitions(agent, state_env(), 16)
    for episodes in range(2 * WARM_UP):
        agent.episodes[0] = episodes
        metrics = make_updates(update, lambda batches: data.unsqueeze(0), first=episodes, count=1)
        assert metrics["search/episodes"] == episodes
    assert not graphs


def record(function):
    graph = RecordedGraph()
    with graph:
        out = function()
    return graph, out


def test_what_python_counts_is_frozen():
    """The recorder sees what the test above is for."""
    count, total = [0], torch.zeros(())

    def step():
        count[0] += 1
        return total.add_(count[0]).clone()

    graph, out = record(step)
    assert total == 0 and graph.replays == 0
    for expected in (1.0, 2.0, 3.0):  # not 1, 3, 6
        graph.replay()
        assert out == total == expected


def test_a_replay_draws_anew():
    torch.manual_seed(0)
    expected = torch.randn(2, 3)
    torch.manual_seed(0)
    graph, out = record(lambda: torch.randn(3))
    for row in expected:
        graph.replay()
        assert torch.equal(out, row)


def test_what_asks_the_host_is_refused():
    with pytest.raises(RuntimeError, match="_local_scalar_dense"):
        record(lambda: torch.ones(()).item())
