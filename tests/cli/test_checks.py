"""Options that are right by themselves and wrong together: refused, and right again one step further."""

from __future__ import annotations

import pytest

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.help import choices
from dsrl_torchrl.errors import UserError

OWN_ACTOR = ["algorithm=dsrl_na_published", "stage2.from_stage1=[actor]", "networks.actor_encoder=own"]
NEVER_LEARNS = "the actor never learns"

MISFITS = [
    # An actor that is left alone for a whole stage.
    (["stage1.updates=1000"], ["stage1.updates=1001"], NEVER_LEARNS),
    (["stage1.algorithm.critic_only_updates=4000"], ["stage1.algorithm.critic_only_updates=3999"], NEVER_LEARNS),
    (["stage1.updates=1000"], ["stage1.updates=1000", "stage2.from_stage1=[critics]"], NEVER_LEARNS),
    (["stage1.updates=1000"], ["stage1.updates=1000", "algorithm=best_of_n"], NEVER_LEARNS),
    (["algorithm.critic_only_updates=60000"], ["algorithm.critic_only_updates=59999"], NEVER_LEARNS),
    (
        ["algorithm=td3", "stage2.total_env_steps=10000", "stage2.utd=0.25"],
        ["algorithm=td3", "stage2.total_env_steps=20000", "stage2.utd=0.25"],
        NEVER_LEARNS,
    ),
    # Raw chunks and corrections of chunks.
    (["algorithm=td3_bc", "latent.action_magnitude=1.5"], ["algorithm=td3_bc"], "set latent.action_magnitude=1.0"),
    (["algorithm=iql", "latent.noise_layout=repeat"], ["algorithm=iql"], "set latent.noise_layout=full"),
    (["latent.action=chunk", "latent.action_magnitude=1.0"], ["algorithm=rlpd"], "not DSRLAWMLE"),
    (["algorithm=awr", "stage1.inversion=retrieval"], ["algorithm=awr"], "leave stage1.inversion out"),
    (["algorithm=residual_sac", "stage2.from_stage1=[actor]"], ["algorithm=residual_sac"], "learns online alone"),
    (["algorithm=residual_sac", "stage2.offline_fraction=0.5"], ["algorithm=residual_sac"], "learns online alone"),
    (["algorithm=residual_sac", "latent.action=chunk"], ["algorithm=residual_sac"], "set latent.action=residual"),
    (["latent.residual_scale=0.2"], ["algorithm=residual_sac", "latent.residual_scale=0.2"], "which is noise"),
    # Nothing online.
    (["stage2.total_env_steps=0", "stage2.from_stage1=[]"], ["stage2.total_env_steps=0"], "leave nothing to learn"),
    # Batches.
    (["stage2.replay_size=255"], ["stage2.replay_size=256"], "must have room for a batch"),
    (["stage2.offline_fraction=0.001"], ["stage2.offline_fraction=0.004"], "less than one transition of a batch"),
    (["algorithm.batch_size=1"], ["algorithm.batch_size=1", "stage2.offline_fraction=0"], "less than one transition"),
    (
        ["stage2.offline_fraction=null", "algorithm.batch_size=1"],
        ["stage2.offline_fraction=null", "algorithm.batch_size=2"],
        "mixes a batch",
    ),
    (
        ["algorithm=redq", "networks.num_critics=2"],
        ["algorithm=redq", "networks.num_critics=3"],
        "must be below networks",
    ),
    # On-policy.
    (["algorithm=ppo", "stage2.offline_fraction=0.5"], ["algorithm=ppo"], "set stage2.offline_fraction=0"),
    (["algorithm=ppo", "stage2.from_stage1=[actor,critics]"], ["algorithm=ppo"], "a critic that stage 1 doesn't learn"),
    (
        ["algorithm=ppo", "stage1.algorithm._target_=dsrl_torchrl.agents.PPO"],
        ["algorithm=ppo", "stage1.algorithm._target_=dsrl_torchrl.agents.DSRLNA"],
        "PPO can't learn offline",
    ),
    # Another algorithm in stage 1.
    (
        ["stage1.algorithm._target_=dsrl_torchrl.agents.REDQ", "networks.num_critics=2"],
        ["stage1.algorithm._target_=dsrl_torchrl.agents.REDQ", "networks.num_critics=2", "stage2.from_stage1=[]"],
        "must be below networks",
    ),
    (
        ["algorithm=best_of_n", "stage1.algorithm._target_=dsrl_torchrl.agents.GoldenNoise"],
        ["algorithm=best_of_n", "stage1.algorithm._target_=dsrl_torchrl.agents.GoldenNoise", "stage2.from_stage1=[]"],
        "GoldenNoise can't learn offline",
    ),
    (
        [*OWN_ACTOR, "stage1.algorithm._target_=dsrl_torchrl.agents.BestOfN"],
        [*OWN_ACTOR, "stage1.algorithm._target_=dsrl_torchrl.agents.DSRLSAC"],
        "is not for BestOfN",
    ),
    (
        ["stage1.algorithm._target_=dsrl_torchrl.agents.ResidualSAC"],
        ["stage1.algorithm._target_=dsrl_torchrl.agents.DSRLSAC"],
        "set latent.action=residual",
    ),
    (
        ["algorithm=awr", "stage1.algorithm._target_=dsrl_torchrl.agents.DSRLNA"],
        ["algorithm=awr", "stage1.algorithm._target_=dsrl_torchrl.agents.IQL"],
        "not DSRLNA",
    ),
    (
        ["algorithm=ppo", "stage1.algorithm.lmbda=0.5"],
        ["algorithm=ppo", "stage1.algorithm.beta_latent=0.5"],
        "unknown option stage1.algorithm.lmbda",
    ),
    (
        ["+stage1.algorithm._target_=dsrl_torchrl.policies.FlowPolicy"],
        ["+stage1.algorithm._target_=dsrl_torchrl.agents.DSRLAWMLE"],
        "stage1.algorithm._target_ should name a subclass",
    ),
    # Offline data.
    (
        ["stage1.rollout_env_steps=0", "stage1.use_demonstrations=false"],
        ["stage1.rollout_env_steps=0"],
        "leaves no offline data",
    ),
    (
        ["stage1.rollout_env_steps=0", "algorithm=dsrl_sac", "stage2.offline_fraction=0.5"],
        ["stage1.rollout_env_steps=0", "algorithm=dsrl_sac"],
        "leaves no offline data",
    ),
    # Demonstrations.
    (
        ["algorithm=dsrl_sac", "stage1.inversion=retrieval", "stage1.use_demonstrations=false"],
        ["algorithm=dsrl_sac", "stage1.inversion=retrieval"],
        "stage1.inversion finds noises for demonstrations",
    ),
    (
        ["task.demonstrations.generator=null"],
        ["task.demonstrations.generator=null", "task.demonstrations.path=my.h5"],
        "task.demonstrations.path is needed",
    ),
    (
        ["base_policy.policy.in_key=state"],
        ["base_policy.policy.in_key=state", "task.demonstrations.entries.state=obs"],
        "base_policy.policy.in_key=state is no entry of the demonstrations",
    ),
    (
        ["base_policy.policy.in_key=[agent,state]"],
        ["base_policy.policy.in_key=[agent,state]", "task.demonstrations.entries={agent.state: obs}"],
        "base_policy.policy.in_key=agent.state is no entry",
    ),
    (
        ["networks.in_keys=[foo]"],
        ["networks.in_keys=[foo]", "stage1.use_demonstrations=false"],
        "networks.in_keys names foo",
    ),
    (["networks.in_keys=[foo]"], ["networks.in_keys=[foo]", "algorithm=dsrl_sac"], "networks.in_keys names foo"),
    (
        ["networks.in_keys=[[agent,state]]"],
        ["networks.in_keys=[[agent,state]]", "task.demonstrations.entries={agent.state: obs}"],
        "networks.in_keys names agent.state",
    ),
    (
        ["task.demonstrations.generator.max_episode_steps=30"],
        ["task.demonstrations.generator.max_episode_steps=40"],
        "must be the env's",
    ),
    # Of the noise: a cloned policy's has the steps of its chunk.
    (
        ["latent.noise_layout=interpolated", "latent.knots=5"],
        ["latent.noise_layout=interpolated", "latent.knots=4"],
        "between 2 and 4 knots",
    ),
    (["task.render={foo: 1}"], ["task.render={max_episode_steps: 30}"], r"unknown option task\.render\.foo"),
    (["stage2.from_stage1=[actor,actor]"], ["stage2.from_stage1=[actor]"], "should name each part once"),
    (
        ["networks.in_keys=[a,a]"],
        ["networks.in_keys=[a,[b,c]]", "stage1.use_demonstrations=false"],
        "should name entries of the env, each once",
    ),
]


@pytest.mark.parametrize(("wrong", "right", "message"), MISFITS, ids=[" ".join(wrong) for wrong, _, _ in MISFITS])
def test_what_does_not_go_together(wrong, right, message):
    with pytest.raises(UserError, match=message) as refused:
        compose(["task=toy", *wrong])
    assert "\n" not in str(refused.value)
    assert compose(["task=toy", *right])


def test_a_try_of_the_machinery_need_not_learn():
    for algorithm in choices("algorithm"):
        assert compose(["task=toy", "experiment=smoke", f"algorithm={algorithm}"])


@pytest.mark.parametrize(
    "word",
    [
        "task.demonstrations.generator.count=3",
        "task.demonstrations.generator.seed=3",
        "base_policy.policy.observation_dim=3",
        "base_policy.policy.control_mode=x",
    ],
)
def test_what_the_run_gives_a_target_cannot_be_set(word):
    with pytest.raises(UserError, match=r"cannot be set: the run gives \w+ its own"):
        compose(["task=toy", word])
