"""An agent on a latent env under transforms learns from right values, or it is one line."""

from __future__ import annotations

import pytest
import torch
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import (
    DoubleToFloat,
    DTypeCastTransform,
    FrameSkipTransform,
    MultiAction,
    ObservationNorm,
    RewardScaling,
    RewardSum,
    Transform,
)

from dsrl_torchrl import LatentActionEnv, make_macro_env
from dsrl_torchrl.agents import DSRLNA, DSRLSAC
from dsrl_torchrl.errors import UserError
from tests.latent_env.test_latent_action_env import TanhPolicy
from tests.scripted_env import ScriptedEnv


def appended(env, transform):
    return env.append_transform(transform)


def around(env, transform):
    return TransformedEnv(env, transform)


put = pytest.mark.parametrize("put", [appended, around])


def make_env():
    return LatentActionEnv(ScriptedEnv([20, 9], [True, True]), TanhPolicy(), act_horizon=3)


def collect(agent, put, *transforms, steps=5):
    env = make_env()
    for transform in transforms:
        env = put(env, transform)
    agent(env)
    return env.rollout(steps, break_when_any_done=False)


def refused(match, *args):
    with pytest.raises(UserError, match=match) as error:
        collect(*args)
    assert "\n" not in str(error.value)


@put
def test_a_transform_that_says_so_is_refused_where_the_agent_is_built(put):
    norm = ObservationNorm(0.0, 2.0, in_keys=["observation"])
    with pytest.raises(UserError, match="decodes the 'observation' that it stores, but ObservationNorm above") as error:
        DSRLNA(put(put(make_env(), RewardSum()), norm))
    assert "\n" not in str(error.value)


class Liar(Transform):
    """Names another entry than it writes, and leaves a reset alone."""

    def __init__(self):
        super().__init__(in_keys=["reward"], out_keys=["reward"])

    def _step(self, tensordict, next_tensordict):
        return next_tensordict.set("observation", next_tensordict["observation"] + 1e-3)


SILENT = {
    "callable": lambda td: td.set("observation", td["observation"] + 1),
    "in place": lambda td: td.set("observation", td["observation"].mul_(0)),
    "of another shape": lambda td: td.set("observation", td["observation"][..., :1]),
    "other names": Liar(),
}


@put
@pytest.mark.parametrize("name", SILENT)
def test_one_that_does_not_is_refused_in_the_first_steps(name, put):
    transform = SILENT[name]
    refused(
        "decodes the 'observation' that it stores, but a transform above",
        DSRLNA,
        put,
        transform.clone() if isinstance(transform, Transform) else transform,
    )


@put
def test_what_leaves_the_policys_entries_alone_is_taken(put):
    collect(DSRLNA, put, steps=9)
    normed = ObservationNorm(0.0, 2.0, in_keys=["observation"], out_keys=["normed"])
    reward = RewardScaling(0.0, 2.0), lambda td: td.set("seen", td["observation"] + 1)
    collect(DSRLNA, put, RewardSum(), normed, *reward, DoubleToFloat(), steps=9)
    collect(DSRLNA, put, DTypeCastTransform(torch.float32, torch.float64, in_keys=["observation"]), steps=9)


@put
def test_agents_that_decode_nothing_stored_take_any(put):
    collect(DSRLSAC, put, ObservationNorm(0.0, 2.0, in_keys=["observation"]), SILENT["callable"])


def test_what_is_below_the_policy_reads_too():
    env = make_env().insert_transform(0, ObservationNorm(0.0, 2.0, in_keys=["observation"]))
    DSRLNA(env)
    env.rollout(5, break_when_any_done=False)


REPEATING = pytest.mark.parametrize(
    "transform", [lambda: FrameSkipTransform(2), MultiAction], ids=["frame skip", "multi action"]
)


@REPEATING
@pytest.mark.parametrize("agent", [DSRLNA, DSRLSAC])
def test_what_repeats_macro_steps_around_the_latent_env_is_refused_by_agents(transform, agent):
    refused("above macro steps would lose k and sum discounted rewards", agent, around, RewardSum(), transform())


@REPEATING
def test_so_it_is_around_an_env_of_macro_steps(transform):
    macro = TransformedEnv(make_macro_env(ScriptedEnv([5], [True]), act_horizon=3, gamma=0.9), transform())
    with pytest.raises(UserError, match="above macro steps would lose k"):
        LatentActionEnv(macro, TanhPolicy(), act_horizon=3)


def test_primitive_steps_may_be_repeated():
    env = TransformedEnv(ScriptedEnv([9, 9], [True, True]), FrameSkipTransform(2))
    latent = LatentActionEnv(env, TanhPolicy(), act_horizon=2)
    DSRLSAC(latent)
    assert latent.rollout(1)["next", "observation"][0, 0, 0] == 4
