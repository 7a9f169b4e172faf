"""The frozen policy decodes what the env gave it, whatever stands above: the same noise gives the same episodes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import ParallelEnv, SerialEnv, TransformedEnv
from torchrl.envs.transforms import (
    ActionDiscretizer,
    CatFrames,
    CatTensors,
    ClipTransform,
    Compose,
    DoubleToFloat,
    DTypeCastTransform,
    ExcludeTransform,
    FlattenObservation,
    FrameSkipTransform,
    InitTracker,
    MultiAction,
    ObservationNorm,
    RenameTransform,
    RewardScaling,
    RewardSum,
    SelectTransform,
    StepCounter,
    TimeMaxPool,
    ToTensorImage,
    UnsqueezeTransform,
    VecNorm,
    VecNormV2,
)
from torchrl.envs.utils import RandomPolicy, check_env_specs

from dsrl_torchrl import LatentActionEnv, make_macro_env
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy
from tests.latent_env.test_named_entries import STATE, CameraEnv, CameraPolicy
from tests.processes import READY
from tests.scripted_env import ScriptedEnv

OUTCOME = ("chunk_steps", "done", "terminated")


class Sees(BasePolicy):
    """chunk = noise / 4 + what it sees of [t, action sum so far]."""

    def __init__(self):
        super().__init__(1, 4)
        self.freeze()

    def forward(self, observation, noise):
        return noise / 4 + observation[..., None, :1] / 10 + observation[..., None, 1:] / 7


def make_env(lengths=(5, 9)):
    env = ScriptedEnv(list(lengths), [True] * len(lengths))
    return LatentActionEnv(env, Sees(), act_horizon=3, gamma=0.9)


def make_camera_env():
    return LatentActionEnv(CameraEnv([5, 9], [True, True]), CameraPolicy(), act_horizon=2, gamma=0.9)


def norm():
    return ObservationNorm(loc=3.0, scale=2.0, in_keys=["observation"])


ABOVE = {
    "normaliser": norm,
    "rename": lambda: RenameTransform(["observation"], ["state"]),
    "frames": lambda: CatFrames(N=2, dim=-1, in_keys=["observation"]),
    "without": lambda: ExcludeTransform("observation"),
    "running norm": lambda: VecNorm(in_keys=["observation"]),
    "running norm 2": lambda: VecNormV2(in_keys=["observation"]),
    "flat": lambda: FlattenObservation(-1, -1, in_keys=["observation"]),
    "unsqueezed": lambda: UnsqueezeTransform(-1, in_keys=["observation"]),
    "clipped": lambda: ClipTransform(in_keys=["observation"], low=-1.0, high=1.0),
    "tensors": lambda: CatTensors(in_keys=["observation"], out_key="vector"),
    "maximum": lambda: TimeMaxPool(in_keys=["observation"], T=2),
    "half": lambda: DTypeCastTransform(torch.float32, torch.float16),
    "cast to double": lambda: DTypeCastTransform(torch.float32, torch.float64, in_keys=["observation"]),
    "returns": RewardSum,
    "counter": StepCounter,
    "start": InitTracker,
    "reward scale": lambda: RewardScaling(0.0, 2.0),
    "callable": lambda: lambda td: td.set("observation", torch.full_like(td["observation"], 7.0)),
    "in place": lambda: lambda td: td.set("observation", td["observation"].mul_(0)),
    "several": lambda: Compose(norm(), CatFrames(N=2, dim=-1, in_keys=["observation"]), Compose(RewardSum())),
}  # fmt: skip
CAMERA_ABOVE = {
    "image": lambda: ToTensorImage(in_keys=["pixels"]),
    "float": DoubleToFloat,
    "uint8 as int": lambda: DTypeCastTransform(torch.uint8, torch.int64, in_keys=["pixels"]),
    "without": lambda: ExcludeTransform("pixels", STATE),
}


def appended(env, transform):
    return env.append_transform(transform)


def around(env, transform):
    return TransformedEnv(env, transform)


def action_sums(env):
    """What the simulator has been told since its reset, ``[2]``."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return env.total.flatten()


def same_episodes(env, reference, steps=5):
    a, b = reference.reset(), env.reset()
    for _ in range(steps):
        w = torch.randn(2, reference.latent_dim)
        a, a_next = reference.step_and_maybe_reset(a.set("action", w))
        b, b_next = env.step_and_maybe_reset(b.set("action", w))
        assert torch.equal(action_sums(env), action_sums(reference))
        for key in OUTCOME:
            assert torch.equal(b["next", key], a["next", key]), key
        a, b = a_next, b_next


@pytest.mark.parametrize("put", [appended, around])
@pytest.mark.parametrize("name", ABOVE)
def test_the_policy_decodes_what_the_env_gave_it(name, put):
    env = put(make_env(), ABOVE[name]())
    same_episodes(env, make_env())
    if name not in ("callable", "cast to double"):  # which tell nobody that they change a spec
        check_env_specs(env)
    assert env.decoder.base_policy.frozen and env.latent_dim == 4


@pytest.mark.parametrize("put", [appended, around])
@pytest.mark.parametrize("name", CAMERA_ABOVE)
def test_so_do_policies_of_pictures_and_nested_states(name, put):
    same_episodes(put(make_camera_env(), CAMERA_ABOVE[name]()), make_camera_env())


@pytest.mark.parametrize("batched", [SerialEnv, partial(ParallelEnv, mp_start_method=READY)], ids=["serial", "workers"])
def test_latent_envs_in_workers_with_a_normaliser_above(batched):
    workers = batched(2, [lambda: make_env((5,)), lambda: make_env((9,))])
    env = TransformedEnv(workers, ObservationNorm(loc=3.0, scale=2.0, in_keys=["observation"]))
    reference = make_env()
    try:
        a, b = reference.reset(), env.reset()
        for _ in range(5):
            w = torch.randn(2, 4)
            a, a_next = reference.step_and_maybe_reset(a.set("action", w))
            b, b_next = env.step_and_maybe_reset(b.set("action", w.unsqueeze(1)))
            for key in (*OUTCOME, "action_chunk"):
                assert torch.equal(b["next", key].squeeze(1), a["next", key])
            torch.testing.assert_close(b["next", "observation"].squeeze(1), a["next", "observation"] * 2 + 3)
            a, b = a_next, b_next
    finally:
        env.close()


@pytest.mark.parametrize("batched", [SerialEnv, partial(ParallelEnv, mp_start_method=READY)], ids=["serial", "workers"])
def test_random_actions_of_a_batch_of_latent_envs_are_the_prior(batched):
    torch.manual_seed(0)
    env = batched(2, lambda: make_env((9,) * 2000))
    try:
        for w in (env.rand_action()["action"], RandomPolicy(env.action_spec)(env.reset())["action"]):
            assert w.shape == (2, 2000, 4) and w.abs().max() == 1.5
            assert (w.abs() == 1.5).float().mean() == pytest.approx(0.134, abs=0.01)
    finally:
        env.close()


def test_a_collector_over_transforms_steps_the_same_episodes():
    """Also where frames are kept without their successors, and nothing of the base policy's own is in the batch."""
    env = TransformedEnv(make_env(), norm())
    reference = make_env()
    collector = Collector(env, None, frames_per_batch=20, total_frames=20)
    (batch,) = list(collector)
    assert not any(str(key).startswith("_base_policy") for key in batch["next"].keys())
    td = reference.reset()
    for i in range(10):
        out, td = reference.step_and_maybe_reset(td.set("action", batch["action"][:, i]))
        for key in (*OUTCOME, "action_chunk"):
            assert torch.equal(batch["next", key][:, i], out["next", key])


def test_a_stored_tensordict_can_be_stepped_again():
    """Planners step the same state more than once; what was decoded since does not matter."""
    env = TransformedEnv(make_env(), norm())
    stored = env.reset().set("action", torch.randn(2, 4))
    first = env.step(stored.clone())["next", "action_chunk"]
    env.rollout(3, auto_reset=False, tensordict=env.reset())
    assert torch.equal(env.step(stored.clone())["next", "action_chunk"], first)


@pytest.mark.parametrize(
    ("above", "got"),
    [
        (lambda: SelectTransform("observation"), "which is missing"),
        (lambda: DTypeCastTransform(torch.uint8, torch.float32), r"which is torch\.float32"),
    ],
)
def test_a_transform_above_that_takes_the_policys_entries_away_is_one_line(above, got):
    env = TransformedEnv(make_env(), above())
    with pytest.raises(UserError, match=f"decodes the entry '_base_policy.observation' .* {got}") as error:
        env.step(env.reset().set("action", torch.zeros(2, 4)))
    assert "\n" not in str(error.value)


def test_what_is_inserted_at_0_is_below_and_the_policy_reads_it():
    env, reference = make_env().insert_transform(0, norm()), make_env()
    w = torch.randn(2, 4)
    chunk = env.step(env.reset().set("action", w))["next", "action_chunk"]
    observations = TensorDict({"observation": torch.full((2, 2), 3.0)}, [2])  # 2 · 0 + 3
    torch.testing.assert_close(chunk, reference.decoder.decode(observations, w))
    check_env_specs(env)


def test_what_is_inserted_behind_the_decoder_is_above():
    env = make_env().append_transform(RewardSum()).insert_transform(1, norm())
    same_episodes(env, make_env())


@pytest.mark.parametrize("transform", [FrameSkipTransform(2), MultiAction()], ids=["frame skip", "multi action"])
def test_what_repeats_macro_steps_is_refused(transform):
    for put in (appended, lambda env, t: env.insert_transform(0, t), lambda env, t: appended(env, Compose(t))):
        with pytest.raises(UserError, match="above macro steps would lose k and sum discounted rewards") as error:
            put(make_env(), transform)
        assert "\n" not in str(error.value)


def test_returns_below_are_undiscounted_sums_of_primitive_rewards():
    macro = make_macro_env(ScriptedEnv([5, 9], [True, True]), act_horizon=3, gamma=0.9, below=[RewardSum()])
    env = LatentActionEnv(macro, Sees(), act_horizon=3).append_transform(
        RewardSum(in_keys=["reward"], out_keys=["sum of macro rewards"])
    )
    rollout = env.rollout(2, break_when_any_done=False)["next"]
    assert rollout["episode_reward"].squeeze(-1).tolist() == [[6, 15], [6, 21]]  # 1 + 2 + 3, then + 4 + 5 (+ 6)
    first, last = 1 + 0.9 * 2 + 0.81 * 3, 4 + 0.9 * 5
    expected = [[first, first + last], [first, first + last + 0.81 * 6]]
    torch.testing.assert_close(rollout["sum of macro rewards"].squeeze(-1), torch.tensor(expected))


@pytest.mark.parametrize("put", [appended, around])
def test_a_discretiser_above_picks_noises(put):
    env = put(make_env(), ActionDiscretizer(num_intervals=3, out_action_key="action"))
    out = torch.stack([env.rand_step(env.reset()) for _ in range(8)])  # 64 picks: all three come, but for 1 in 10^11
    assert out["action"].dtype == torch.int64 and out["action"].unique().tolist() == [0, 1, 2]
    assert out["next", "chunk_steps"].flatten().tolist() == [3, 3] * 8
