"""The schema: every mistake is one line that names the option, before any work; the defaults are today's."""

from __future__ import annotations

import os

import pytest

from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.cli.help import COMMON, SECTIONS, choices
from dsrl_torchrl.cli.main import main
from dsrl_torchrl.cli.schema import leaves

from .pipeline_run import fails
from .wrong_overrides import CHOICES

MISTAKES = [
    # Wrong type or range.
    ("seed=abc", "seed should be a valid integer, got 'abc'"),
    ("seed=-1", "seed should be greater than or equal to 0, got -1"),
    ("seed=4000", "seed should be less than 4000, got 4000"),
    ("seed=1000000000", "seed should be less than 4000"),
    ("seed=???", "seed needs a value"),
    ("seed=0,1", "seed should be a valid integer, got '0,1'"),
    ("resume=maybe", "resume should be a valid boolean, got 'maybe'"),
    ("algorithm.batch_size=1.5", "algorithm.batch_size should be a valid integer, got 1.5"),
    ("algorithm.batch_size=-1", "algorithm.batch_size should be greater than or equal to 1"),
    ("stage2.utd=nan", "stage2.utd should be a finite number, got nan"),
    ("stage2.utd=many", "stage2.utd should be a valid number, got 'many'"),
    ("stage2.total_env_steps=inf", "stage2.total_env_steps should be a valid integer, got inf"),
    ("stage2.offline_fraction=1", "stage2.offline_fraction should be less than 1"),
    ("stage2.from_stage1=[actors]", "stage2.from_stage1.0 should be 'actor' or 'critics', got 'actors'"),
    ("stage1.updates=0", "stage1.updates should be greater than or equal to 1, got 0"),
    ("stage1.inversion=magic", "stage1.inversion should be 'optimisation' or 'retrieval', got 'magic'"),
    ("stage1.algorithm.m_candidates=1", "stage1.algorithm.m_candidates should be greater than or equal to 2"),
    ("algorithm.beta_latent=-1", "algorithm.beta_latent should be greater than 0"),
    ("base_policy.training.steps=0", "base_policy.training.steps should be greater than or equal to 1, got 0"),
    ("evaluation.episodes=1.5", "evaluation.episodes should be a valid integer, got 1.5"),
    ("latent.action_magnitude=true", "latent.action_magnitude: should be positive and at most 100, or auto; got True"),
    ("latent.action_magnitude=0", "latent.action_magnitude: should be positive and at most 100, or auto; got 0"),
    ("latent.action_magnitude=big", "latent.action_magnitude: should be positive and at most 100, or auto; got 'big'"),
    (
        "latent.noise_layout=half",
        "latent.noise_layout should be 'full', 'act_horizon', 'repeat' or 'interpolated', got 'half'",
    ),
    ("task.demonstrations.action_noise=-1", "task.demonstrations.action_noise should be greater than or equal to 0"),
    ("task.act_horizon=9", "task.act_horizon must lie between 1 and pred_horizon (4); got 9"),
    ("task.act_horizon=abc", "task.act_horizon should be a valid integer, got 'abc'"),
    ("collector.num_workers=0", "collector.num_workers: should be from 1 to 256, or auto; got 0"),
    ("collector.num_workers=true", "collector.num_workers: should be from 1 to 256, or auto; got True"),
    ("collector.threads=100000", "collector.threads: should be from 1 to 256, or auto or null; got 100000"),
    ("networks.color_jitter=[0.2,0.1]", "networks.color_jitter.2 should be given, too, got (0.2, 0.1)"),
    ("base_policy.policy.image_keys=pixels", "base_policy.policy.image_keys should be a list, got 'pixels'"),
    ("networks.actor_encoder=mine", "networks.actor_encoder should be 'shared' or 'own', got 'mine'"),
    ("networks.color_jitter=[1]", "networks.color_jitter"),
    ("networks.activation=sine", "networks.activation should be 'relu', 'tanh' or 'silu', got 'sine'"),
    ("logger.mode=maybe", "logger.mode should be None, 'online', 'offline' or 'disabled', got 'maybe'"),
    ("device=gpu", "device: should be auto, cpu, cuda or cuda:<index>, got 'gpu'"),
    ("name=..", "name should be that of a folder inside of output, got '..'"),
    ("name=/tmp/x", "name should be that of a folder inside of output"),
    ("stage1=5", "stage1 should be options of its own"),
    # Unknown names, with the nearest that exists.
    ("algorithm.utdd=3", "unknown option algorithm.utdd: did you mean stage2.utd?"),
    ("algorithm.total_env_steps=3", "unknown option algorithm.total_env_steps: did you mean stage2.total_env_steps?"),
    ("algorithm.max_grad_norm=-1", "unknown option algorithm.max_grad_norm"),
    ("algorithm.fixed_alpha=maybe", "unknown option algorithm.fixed_alpha"),
    ("stage1.backup=magic", "unknown option stage1.backup: did you mean algorithm.backup?"),
    ("stage1.algorithm.foo=1", "unknown option stage1.algorithm.foo"),
    ("+evaluation.foo=1", "unknown option evaluation.foo"),
    ("collector.overlap=true", "unknown option collector.overlap"),
    ("foo=1", "unknown option foo"),
    # The arguments of what `_target_` names.
    ("task.env.foo=1", "unknown option task.env.foo: PointReachEnv has no such argument"),
    ("+task.env.foo=1", "unknown option task.env.foo"),
    ("task.env._target_=nowhere.Env", "task.env._target_: cannot import nowhere.Env"),
    ("task.env.max_episode_steps=abc", "task.env.max_episode_steps should be a valid integer, got 'abc'"),
    ("task.demonstrations.generator.speed=fast", "task.demonstrations.generator.speed should be a valid number"),
    ("base_policy.policy.sampler_steps=1.5", "base_policy.policy.sampler_steps should be a valid integer, got 1.5"),
    ("task.env=null", "task.env should be a valid dictionary, got None"),
    ("task.demonstrations.generator.sped=1", "did you mean task.demonstrations.generator.speed?"),
    ("base_policy.policy.sampler=3", "did you mean base_policy.policy.sampler_steps?"),
    ("networks.encoders.state.foo=3", "unknown option networks.encoders.state.foo: StateEncoder has no such"),
    ("algorithm._target_=torch.nn.Linear", "algorithm._target_ should name a subclass of"),
    # Groups and grammar.
    ("task=pick_cub", "pick_cub"),
    ("task=null", "task needs a choice"),
    ("algorithm=null", "algorithm needs a choice"),
    ("base_policy=load", "base_policy.load._target_ needs a value"),
    ("base_policy=checkpoint", "base_policy.load.folder needs a value"),
    ("~latent", "latent"),
    ("seed", "expected name=value, got 'seed'"),
    ("--task", "unknown flag"),
    ("task.name=${task.nam}", "task.nam"),
    # What does not go together.
    ("stage1.inversion=retrieval", "stage1.inversion is for algorithms that learn from the data's noise"),
    ("stage1.algorithm.gamma=0.5", "stage1.algorithm.gamma"),
]


@pytest.mark.parametrize(("word", "message"), MISTAKES, ids=[word for word, _ in MISTAKES])
def test_a_mistake_is_one_line_before_any_work(tmp_path, monkeypatch, capsys, word, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "run", "task=toy", word, "--help")  # which would only print, if it passed
    assert not os.listdir()


@pytest.mark.parametrize(
    ("word", "option", "value"),
    [
        ("name=5", "name", "5"),
        ("task.demonstrations.path=~/a=b.h5", "task.demonstrations.path", "~/a=b.h5"),
        ("output=it's", "output", "it's"),
        ("stage2.utd=3", "stage2.utd", 3.0),
        ("algorithm.actor_lr=1e-3", "algorithm.actor_lr", 1e-3),
        ("networks.num_cells=[16,16]", "networks.num_cells", [16, 16]),
        ("networks.encoders.state.fourier_bands=[]", "networks.encoders.state.fourier_bands", []),
        ("stage2.from_stage1=[]", "stage2.from_stage1", []),
        ("collector.threads=null", "collector.threads", None),
        ("task.env.goal=null", "task.env.goal", None),
        ("output=out-${task.name}-${algorithm.gamma}", "output", "out-toy-0.98"),
    ],
)
def test_options_that_no_yaml_lists_can_be_set(word, option, value):
    shown = {leaf.name: leaf.value for leaf in leaves(compose(["task=toy", word]))}
    assert shown[option] == value


#: What a task leaves to the user: without it, it is a mistake (tests/cli/test_own_task.py).
LEFT_OPEN = {
    "own": ["task.env._target_=dsrl_torchrl.envs.toy.PointReachEnv", "task.demonstrations.path=mine.h5"],
}


@pytest.mark.parametrize("task", choices("task"))
@pytest.mark.parametrize("algorithm", choices("algorithm"))
def test_every_task_with_every_algorithm(task, algorithm):
    config = compose([f"task={task}", f"algorithm={algorithm}", *LEFT_OPEN.get(task, [])])
    assert config.task.name == task
    assert config.to_dict()["algorithm"]["_target_"].startswith("dsrl_torchrl.agents.")


@pytest.mark.parametrize("algorithm", choices("algorithm"))
@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment_with_every_algorithm(experiment, algorithm):
    """An experiment has the last word on the sizes, and leaves the algorithm to the command line."""
    config = compose([f"experiment={experiment}", f"algorithm={algorithm}"])
    steps = {
        "lift_peg_upright": 40_000,
        "metaworld_hammer_pixels": 40_000,
        "demo": 40_000,
        "stack_cube": 50_000,
        "pick_cube_long": 150_000,
        "smoke": 400,
    }
    assert config.stage2.total_env_steps == steps.get(experiment, 30_000)


def test_the_default_algorithm_is_todays():
    """The hyper-parameters that the README's numbers were measured with."""
    config = compose([])
    expected = {
        "batch_size": 256, "critic_only_updates": 300, "actor_interval": 4, "distillation_interval": 2, "gamma": 0.98,
        "tau": 0.01, "actor_lr": 2e-4, "critic_lr": 5e-4, "backup": "mean", "actor_average": 0.99, "m_candidates": 32,
        "beta_latent": 10.0, "tau_baseline": 0.1, "actor_batch_size": 64, "final_spread": 0.1, "compile": False,
    }  # fmt: skip
    algorithm = config.to_dict()["algorithm"]
    assert algorithm["_target_"] == "dsrl_torchrl.agents.dsrl_aw_mle.DSRLAWMLE"
    assert {name: algorithm[name] for name in expected} == expected
    offline = config.offline_algorithm
    assert (offline.critic_only_updates, offline.actor_batch_size, offline.distillation_interval) == (1_000, 64, 2)
    stage1 = {"updates": 4_000, "rollout_env_steps": 30_000, "check_episodes": 40, "checkpoint_updates": 2_000}
    assert {name: getattr(config.stage1, name) for name in stage1} == stage1
    stage2 = {
        "total_env_steps": 60_000, "warmup_env_steps": 2_000, "macro_steps_per_round": 8, "utd": 1,
        "replay_size": 200_000, "offline_fraction": 0.25, "checkpoint_env_steps": 5_000,
        "from_stage1": ("actor", "critics"),
    }  # fmt: skip
    assert {name: getattr(config.stage2, name) for name in stage2} == stage2
    networks = config.networks
    assert (networks.num_critics, networks.num_cells, networks.chunk_gain) == (5, (128, 128, 128), 5.0)


def test_plain_sac_is_todays():
    config = compose(["algorithm=dsrl_sac"])
    sac = {"critic_only_updates": 3_000, "actor_interval": 1, "backup": "min", "alpha_init": 0.05, "alpha_lr": 3e-4}
    assert {name: getattr(config.algorithm, name) for name in sac} == sac
    assert (config.stage2.warmup_env_steps, config.stage2.utd, config.stage2.offline_fraction) == (8_000, 3, 0)
    assert config.stage2.from_stage1 == ()


def test_a_default_run_has_at_most_93_options(capsys):
    shown = [leaf for leaf in leaves(compose([])) if leaf.name.split(".")[0] in (*COMMON, *SECTIONS["run"])]
    settable = [leaf for leaf in shown if not leaf.name.endswith("_target_")]
    with capsys.disabled():
        print(f"\n{len(settable)} options in a default run")
    assert len(settable) <= 99


@pytest.mark.parametrize("words", CHOICES, ids=" ".join)
def test_every_option_of_the_schema_has_a_meaning(words):
    """The arguments of what we ship by ``_target_`` are options, too."""
    free = ("base_policy.policy.network.",)
    for leaf in leaves(compose(["task=toy", *words])):
        assert leaf.meaning or leaf.name.startswith(free), leaf.name


def test_what_run_and_diagnose_list_is_everything():
    listed = {*COMMON, *SECTIONS["run"], *SECTIONS["diagnose"]}
    assert {leaf.name.split(".")[0] for leaf in leaves(compose([]))} == listed


@pytest.mark.parametrize("step", SECTIONS)
def test_help_shows_values_with_their_meaning(capsys, step):
    main([step, "--help", "task=toy", "seed=7"])
    out = " ".join(capsys.readouterr().out.split())  # its lines are as wide as the terminal
    assert "seed=7" in out and "held-out resets" in out and "profile=false" in out
    if step in ("stage2", "run"):
        assert "stage2.utd=1" in out and "gradient updates per" in out
        assert "stage1.algorithm.critic_only_updates=1000" in out and "offline: first updates" in out
    if step in ("demos", "base"):
        assert "stage2" not in out
        assert "task.env.max_episode_steps=40" in out and "time limit in steps" in out


def test_help_of_the_command(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        main(arguments)
        out = capsys.readouterr().out
        assert "usage: dsrl" in out and "dsrl_aw_mle" in out
