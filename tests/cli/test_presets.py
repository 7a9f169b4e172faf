"""What other projects run, value by value with its source: `algorithm=<preset>` alone gives all of it."""

from __future__ import annotations

import pytest

from dsrl_torchrl import LatentActionEnv
from dsrl_torchrl.agents import DSRLNA, DSRLSAC
from dsrl_torchrl.cli.compose import compose
from dsrl_torchrl.envs.toy import PointReachEnv
from dsrl_torchrl.errors import UserError
from dsrl_torchrl.networks.config import NetworkConfig
from dsrl_torchrl.training.metrics_log import LoggerConfig, MetricsLog
from dsrl_torchrl.training.online import OnlineConfig, train_online
from tests.agents.cases import Leaning

#: RLinf, docs/source-zh/.../dsrl.rst ("doc"), examples/embodiment/config/libero_spatial_dsrl_openpi.yaml ("yaml"),
#: rlinf/models/embodiment/modules/{compact_encoders,gaussian_policy}.py ("modules"), at a3816b5.
RLINF = [
    ("networks.num_critics", 10, "doc: dsrl_num_q_heads"),
    ("networks.num_cells", (128, 128, 128), "doc: dsrl_hidden_dims"),
    ("networks.activation", "relu", "modules: nn.ReLU"),
    ("networks.layer_norm", True, "modules: nn.LayerNorm in CompactQHead"),
    ("networks.actor_layer_norm", True, "modules: nn.LayerNorm in GaussianPolicy"),
    ("networks.critic_head_std", 0.01, "modules: normal_(std=0.01)"),
    ("networks.log_std_range", (-20.0, 2.0), "modules: clamp(log_std, -20, 2)"),
    ("networks.initial_std", 1.0, "modules: log_std starts at 0"),
    ("networks.actor_encoder", "own", "openpi_action_model.py: actor_image_encoder, critic_image_encoder"),
    ("networks.random_shift", 0, "yaml: no enable_drq"),
    ("networks.color_jitter", None, "openpi_action_model.py: no augmentation"),
    ("networks.encoders.state.features", 64, "doc: dsrl_state_latent_dim"),
    ("networks.encoders.pixels.features", 64, "doc: dsrl_image_latent_dim"),
    ("networks.encoders.pixels.strides", (2, 1, 1, 1), "modules: LightweightImageEncoder64"),
    ("networks.encoders.pixels.padding", 1, "modules: LightweightImageEncoder64"),
    ("latent.noise_layout", "repeat", "modules: action.unsqueeze(1).repeat"),
    ("latent.action_magnitude", 1.0, "modules: tanh, low = high = None"),
    ("algorithm.gamma", 0.999, "doc: gamma"),
    ("algorithm.tau", 0.005, "doc: tau"),
    ("algorithm.batch_size", 512, "yaml: global_batch_size"),
    ("algorithm.actor_lr", 1e-4, "yaml: actor.optim.lr"),
    ("algorithm.critic_lr", 3e-4, "yaml: actor.critic_optim.lr"),
    ("algorithm.alpha_lr", 3e-4, "doc: entropy_tuning.optim.lr"),
    ("algorithm.alpha_parameterisation", "softplus", "doc: alpha_type"),
    ("algorithm.alpha_init", 1.0, "doc: initial_alpha"),
    ("algorithm.fixed_alpha", False, "doc: entropy_tuning"),
    ("algorithm.target_entropy", -16.0, "doc: target_entropy, of all dimensions"),
    ("algorithm.backup", "mean", "yaml: agg_q, actor_agg_q"),
    ("algorithm.backup_entropy", False, "yaml: backup_entropy"),
    ("algorithm.critic_only_updates", 10, "doc: train_actor_steps"),
    ("algorithm.actor_interval", 1, "yaml: critic_actor_ratio"),
    ("algorithm.actor_average", 0.0, "no average"),
    ("task.env.num_envs", 16, "doc: total_num_envs"),
    ("task.env.max_episode_steps", 240, "doc: max_episode_steps"),
    ("collector.num_workers", 1, "16 envs in all"),
    ("stage2.warmup_env_steps", 10 * 240, "yaml: min_buffer_size, trajectories"),
    ("stage2.macro_steps_per_round", 16 * 240 // 5, "yaml: max_steps_per_rollout_epoch, num_action_chunks"),
    ("stage2.offline_fraction", 0.0, "no offline data"),
    ("stage2.from_stage1", (), "no offline stage"),
    ("evaluation.episodes", 500, "doc: eval.total_num_envs"),
]
#: dsrl_pi0: examples/scripts/run_libero.sh ("sh"), examples/launch_train_sim.py ("py"), jaxrl2/, at 7f48937.
DSRL_PI0 = [
    ("networks.num_critics", 10, "py: num_qs"),
    ("networks.num_cells", (128, 128, 128), "sh: hidden_dims"),
    ("networks.activation", "relu", "mlp.py: nn.relu"),
    ("networks.layer_norm", True, "state_action_value.py: use_layer_norm"),
    ("networks.actor_layer_norm", False, "learned_std_normal_policy.py"),
    ("networks.log_std_range", (-20.0, 2.0), "learned_std_normal_policy.py: log_std_min, log_std_max"),
    ("networks.initial_std", 1.0, "learned_std_normal_policy.py: log_std starts at 0"),
    ("networks.actor_encoder", "own", "pixel_sac_learner.py: two PixelMultiplexers"),
    ("networks.random_shift", 4, "augmentations.py: batched_random_crop"),
    ("networks.color_jitter", (0.2, 0.1, 0.1, 0.03), "augmentations.py: color_transform"),
    ("networks.encoders.state.fourier_bands", (), "mlp.py: states are concatenated"),
    ("networks.encoders.pixels.features", 50, "py: latent_dim"),
    ("networks.encoders.pixels.strides", (2, 1, 1, 1), "py: cnn_strides"),
    ("networks.encoders.pixels.padding", 0, "py: cnn_padding VALID"),
    ("latent.noise_layout", "repeat", "train_utils_sim.py: np.repeat"),
    ("latent.action_magnitude", 1.0, "sh: action_magnitude"),
    ("algorithm.gamma", 0.999, "sh: discount"),
    ("algorithm.tau", 0.005, "py: tau"),
    ("algorithm.batch_size", 256, "sh: batch_size"),
    ("algorithm.actor_lr", 1e-4, "py: actor_lr"),
    ("algorithm.critic_lr", 3e-4, "py: critic_lr"),
    ("algorithm.alpha_lr", 3e-4, "py: temp_lr"),
    ("algorithm.alpha_parameterisation", "log", "temperature.py: exp(log_temp)"),
    ("algorithm.alpha_init", 1.0, "pixel_sac_learner.py: init_temperature"),
    ("algorithm.target_entropy", -16.0, "pixel_sac_learner.py: -action_dim / 2 of 32"),
    ("algorithm.backup", "mean", "py: critic_reduction"),
    ("algorithm.backup_entropy", False, "critic_updater.py: backup_entropy"),
    ("algorithm.critic_only_updates", 0, "pixel_sac_learner.py: every update"),
    ("algorithm.actor_interval", 1, "pixel_sac_learner.py: every update"),
    ("task.env.num_envs", 1, "train_utils_sim.py: one env"),
    ("task.env.max_episode_steps", 400, "train_sim.py: max_timesteps"),
    ("stage2.warmup_env_steps", 500 * 20, "sh: start_online_updates, query_freq"),
    ("stage2.macro_steps_per_round", 400 // 20, "train_utils_sim.py: updates after every trajectory"),
    ("stage2.utd", 20.0, "sh: multi_grad_step"),
]
#: The official DSRL-NA: cfg/robomimic/dsrl_can.yaml ("yaml") and train_dsrl.py of ajwagen/dsrl, Stable-Baselines3's SAC
#: ("SB3").
DSRL = [
    ("networks.num_critics", 2, "yaml: n_critics"),
    ("networks.num_cells", (128, 128, 128), "ours; yaml: num_layers, layer_size 2048"),
    ("networks.activation", "tanh", "train_dsrl.py: activation_fn"),
    ("networks.layer_norm", True, "yaml: use_layer_norm"),
    ("networks.initial_std", 1.0, "SB3: log_std starts near 0"),
    ("networks.log_std_range", (-20.0, 2.0), "SB3: LOG_STD_MIN, LOG_STD_MAX"),
    ("networks.chunk_gain", 1.0, "SB3: actions enter as they are"),
    ("latent.action_magnitude", 1.5, "yaml: action_magnitude"),
    ("algorithm.gamma", 0.9975, "yaml: discount 0.99, per chunk of act_steps 4"),
    ("algorithm.tau", 0.005, "yaml: tau"),
    ("algorithm.batch_size", 256, "yaml: batch_size"),
    ("algorithm.actor_lr", 3e-4, "yaml: actor_lr, of all"),
    ("algorithm.critic_lr", 3e-4, "yaml: actor_lr, of all"),
    ("algorithm.alpha_lr", 3e-4, "yaml: actor_lr, of all"),
    ("algorithm.alpha_init", 1.0, "SB3: ent_coef auto"),
    ("algorithm.fixed_alpha", False, "yaml: ent_coef -1"),
    ("algorithm.target_entropy_per_dim", 0.0, "yaml: target_ent"),
    ("algorithm.backup", "min", "yaml: critic_backup_combine_type"),
    ("algorithm.backup_entropy", True, "SB3"),
    ("algorithm.entropy_cap", None, "SB3"),
    ("algorithm.critic_only_updates", 0, "SB3: every update"),
    ("algorithm.actor_interval", 1, "SB3: every update"),
    ("algorithm.actor_average", 0.0, "no average"),
    ("stage2.warmup_env_steps", 4 * 1_501 * 4 // 1_000 * 1_000, "yaml: init_rollout_steps, n_envs, act_steps"),
    ("stage2.macro_steps_per_round", 4, "yaml: train_freq, n_envs"),
    ("stage2.utd", 20 / 4, "yaml: utd"),
    ("stage2.offline_fraction", 0.0, "yaml: load_offline_data"),
    ("stage2.from_stage1", (), "no offline stage"),
]
#: What a public study changed of it, and what we do.
VARIANTS = {
    "fixed_alpha": {"algorithm.fixed_alpha": True, "algorithm.alpha_init": 0.15},
    "prefilled": {"stage1.rollout_env_steps": 0, "stage2.offline_fraction": None},
    "capped_entropy": {"algorithm.entropy_cap": 0.0},
}
VARIANTS["prefilled_fixed_alpha"] = VARIANTS["prefilled"] | VARIANTS["fixed_alpha"]


def value(config, name):
    found = config.to_dict()
    for part in name.split("."):
        found = found[part]
    return tuple(found) if isinstance(found, list) else found


@pytest.mark.parametrize("task", ["toy", "pick_cube"])
@pytest.mark.parametrize(
    ("algorithm", "kind", "expected"),
    [("rlinf_dsrl", DSRLSAC, RLINF), ("dsrl_pi0", DSRLSAC, DSRL_PI0), ("dsrl_na_published", DSRLNA, DSRL)],
)
def test_a_preset_is_what_the_project_runs(algorithm, kind, expected, task):
    config = compose([f"task={task}", f"algorithm={algorithm}"])
    assert config.agent is kind
    assert {name: value(config, name) for name, *_ in expected} == {name: wanted for name, wanted, _ in expected}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_dsrl_na_differs_in_what_its_name_says(variant):
    published = compose(["algorithm=dsrl_na_published"])
    config = compose([f"algorithm=dsrl_na_{variant}"])
    wanted = VARIANTS[variant]
    assert {name: value(config, name) for name in wanted} == wanted
    changed = {name: value(published, name) for name in wanted}
    algorithm = {name[10:]: old for name, old in changed.items() if name.startswith("algorithm.")}
    assert config.algorithm.replace(**algorithm) == published.algorithm
    stage2 = {name[7:]: old for name, old in changed.items() if name.startswith("stage2.")}
    assert config.stage2.replace(**stage2) == published.stage2
    assert config.to_dict()["networks"] == published.to_dict()["networks"]


def test_rlinf_makes_200_updates_in_a_round():
    stage2 = compose(["task=toy", "algorithm=rlinf_dsrl"]).stage2
    rounds = [int(stage2.utd * n * stage2.macro_steps_per_round) for n in range(1_000)]
    assert rounds == [200 * n for n in range(1_000)]


def test_the_two_stage_runs_begin_with_stage_1():
    begins = {
        name: compose(["task=toy", f"algorithm={name}"]).stage2.from_stage1 for name in ("dsrl_aw_mle", "dsrl_na")
    }
    assert set(begins.values()) == {("actor", "critics")}


def test_a_presets_networks_can_be_replaced():
    config = compose(["task=toy", "algorithm=rlinf_dsrl", "networks=default", "networks.num_critics=3"])
    assert config.networks.num_critics == 3 and config.networks.actor_encoder == "shared"


#: RLinf's names in TensorBoard and wandb, all of its document's ("doc").
METRICS = {
    "train/sac/critic_loss", "train/critic/grad_norm", "train/sac/actor_loss", "train/actor/entropy",
    "train/actor/grad_norm", "train/sac/alpha_loss", "train/sac/alpha", "train/replay_buffer/size",
    "train/replay_buffer/utilization", "env/episode_len", "env/return", "env/reward", "env/success_once",
}  # fmt: skip


class Mirror:
    """What a logger of TorchRL's gets."""

    def __init__(self):
        self.seen = {}

    def log_scalar(self, name, value, step):
        self.seen[name] = value


def test_a_mirror_has_rlinfs_names_and_the_csv_ours(tmp_path, monkeypatch):
    mirror = Mirror()
    monkeypatch.setattr("dsrl_torchrl.training.metrics_log.get_logger", lambda *args, **kwargs: mirror)
    env = LatentActionEnv(PointReachEnv(num_envs=4, max_episode_steps=8, seed=0), Leaning(), gamma=0.98)
    config = DSRLSAC.Config(batch_size=8, critic_only_updates=0)
    agent = DSRLSAC(env, config, NetworkConfig(num_critics=2, num_cells=(8,)))
    loop = OnlineConfig(total_env_steps=200, warmup_env_steps=100, log_env_steps=20, offline_fraction=0.0)
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, logger=LoggerConfig(type="tensorboard"), mirrored_as=agent.mirrored_as)
    train_online(env, agent, loop, seed=0, folder=tmp_path, log=log, progress=False)
    assert mirror.seen.keys() >= METRICS
    ours = log.rows[-1].keys()
    assert {"q_noise/loss", "actor/alpha", "replay_buffer/size", "env/success_running"} <= ours
    assert mirror.seen["train/sac/critic_loss"] == log.rows[-1]["q_noise/loss"]
    assert len(mirror.seen) == len(log.rows[-1]) - 1  # nothing under two names
    assert log.rows[-1]["env/reward"] == pytest.approx(log.rows[-1]["env/return"] / log.rows[-1]["env/episode_len"])


@pytest.mark.parametrize("algorithm", ["td3", "redq", "best_of_n"])
def test_actors_that_cannot_encode_are_refused_before_any_work(algorithm):
    with pytest.raises(UserError, match=r"networks\.actor_encoder=own is not for .*: choose shared"):
        compose(["task=toy", f"algorithm={algorithm}", "networks.actor_encoder=own"])
