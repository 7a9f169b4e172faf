"""Wrong hyper-parameters are refused in one line; an algorithm stays a short file."""

from __future__ import annotations

import inspect

import pytest

import dsrl_torchrl.agents as agents
from dsrl_torchrl.agents import AWR, DSRLAWMLE, DSRLNA, DSRLSAC, IQL, TD3, TD3BC, BestOfN
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.options import Options

from .cases import AGENTS, state_env


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size should be greater than or equal to 1, got 0"),
        ({"gamma": 1.5}, "gamma"),
        ({"tau": 0.0}, "tau"),
        ({"critic_lr": float("inf")}, "critic_lr"),
        ({"critic_lr": "fast"}, "critic_lr"),
        ({"compile": "yes"}, "compile"),
        ({"batchsize": 16}, "unknown option batchsize"),
    ],
)
def test_bad_options_are_one_line(kind, options, message):
    with pytest.raises(UserError, match=message) as error:
        kind.Config(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (DSRLNA, {"alpha_init": 0.0}),
        (DSRLNA, {"alpha_parameterisation": "exp"}),
        (DSRLNA, {"backup": "max"}),
        (DSRLNA, {"actor_average": 1.0}),
        (DSRLNA, {"m_candidates": 8}),
        (DSRLSAC, {"alpha_lr": -1.0}),
        (DSRLAWMLE, {"m_candidates": 1}),
        (DSRLAWMLE, {"beta_latent": 0.0}),
        (DSRLAWMLE, {"executed_share": 1.5}),
        (DSRLAWMLE, {"alpha_init": 0.1}),
        (TD3, {"noise_clip": 0.0}),
        (TD3, {"actor_interval": 0}),
        (TD3BC, {"alpha": -1.0}),
        (AWR, {"weight_temperature": 0.0}),
        (AWR, {"alpha_init": 0.1}),
        (IQL, {"expectile": 1.0}),
        (IQL, {"backup": "min"}),
        (BestOfN, {"candidates": 0}),
        (BestOfN, {"actor_lr": 1e-3}),
    ],
)
def test_bad_options_of_an_algorithm(kind, options):
    with pytest.raises(UserError, match=next(iter(options))) as error:
        kind.Config(**options)
    assert "\n" not in str(error.value)


def test_another_algorithms_config_is_refused(kind):
    for other in AGENTS:
        if other is not kind:
            with pytest.raises(UserError, match=f"{kind.__name__} takes its own Config, got {other.__name__}.Config"):
                kind(state_env(), other.Config())


def test_every_option_says_what_it_means(kind):
    assert all(field.description for field in kind.Config.model_fields.values())
    assert issubclass(kind.Config, Options)


def test_an_algorithm_is_a_short_file():
    for module in {inspect.getmodule(kind) for kind in AGENTS} | {inspect.getmodule(agents.Agent)}:
        assert len(inspect.getsource(module).splitlines()) <= 250
    assert len(inspect.getsource(inspect.getmodule(TD3)).splitlines()) <= 150
