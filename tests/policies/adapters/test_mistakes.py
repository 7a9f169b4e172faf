"""A wrong checkpoint, argument or entry is one line that says what was expected, what came, and where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies.adapters.conditional_unet1d import ConditionalUnet1D, UnetSizes
from dsrl_torchrl.policies.adapters.dppo import load_dppo
from dsrl_torchrl.policies.adapters.foreign_files import read_torch_file
from dsrl_torchrl.policies.adapters.lerobot_diffusion import load_lerobot_diffusion
from dsrl_torchrl.policies.adapters.maniskill_diffusion import load_maniskill_diffusion
from dsrl_torchrl.policies.adapters.robomimic_diffusion import load_robomimic_diffusion
from dsrl_torchrl.policies.adapters.stanford_diffusion import load_stanford_diffusion

from .cases import FIXTURES
from .loaded import LEROBOT_STATES, SOURCES, load_source

LEROBOT, MANISKILL = FIXTURES / "lerobot_states", FIXTURES / "maniskill_state" / "best_eval_success_at_end.pt"
STANFORD, ROBOMIMIC = FIXTURES / "stanford_ddpm" / "latest.ckpt", FIXTURES / "robomimic_ddpm" / "model_epoch_1.pth"
DPPO = FIXTURES / "dppo_residual_mlp" / "state_3.pt"
TRANSFORMER = {"noise_pred_net.decoder.layers.0.attn.weight": torch.ones(2, 2)}


def one_line(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def lerobot(tmp_path: Path, **changes):
    """A copy of the checkpoint with another configuration."""
    folder = shutil.copytree(LEROBOT, tmp_path / "lerobot")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return folder


def saved(tmp_path: Path, content) -> Path:
    torch.save(content, tmp_path / "a.pt")
    return tmp_path / "a.pt"


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (load_maniskill_diffusion, "should hold 'ema_agent', it holds weights: is it another project's?"),
        (load_dppo, "should hold 'model', it holds weights"),
        (load_stanford_diffusion, "should hold 'state_dicts', it holds weights"),
        (load_robomimic_diffusion, "should be of robomimic's diffusion_policy, its algo_name is None"),
    ],
)
def test_a_missing_file_and_anothers(tmp_path, load, message):
    assert "cannot read the checkpoint nowhere.pt: No such file" in one_line(load, "nowhere.pt")
    assert message in one_line(load, saved(tmp_path, {"weights": {}}))


def test_lerobots_missing_files(tmp_path):
    assert "config.json: No such file" in one_line(load_lerobot_diffusion, tmp_path)
    folder = lerobot(tmp_path)
    (folder / "model.safetensors").unlink()
    assert "cannot read" in one_line(load_lerobot_diffusion, folder, LEROBOT_STATES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "act"}, "should hold LeRobot's policy of type diffusion, it holds 'act'"),
        ({"noise_scheduler_type": "UniPC"}, "should be DDPM or DDIM, got 'UniPC'"),
        ({"beta_schedule": "sigmoid"}, "noise schedule should be one of squaredcos_cap_v2"),
        ({"horizon": 7}, "pred_horizon should be a multiple of 2"),
        ({"horizon": ...}, "should have horizon: is it LeRobot's diffusion policy?"),
        ({"n_groups": 5}, "a U-Net of 8 channels cannot be normalised in 5 groups"),
        ({"prediction_type": "v_prediction"}, "epsilon or sample, got 'v_prediction'"),
        # Of wrong types.
        ({"n_obs_steps": "2"}, "n_obs_steps"),
        ({"horizon": "8"}, "pred_horizon must be an integer of at least 1, got '8'"),
        ({"input_features": []}, "load_lerobot_diffusion"),
        ({"input_features": {"observation.state": {"type": "STATE", "shape": 3}}}, "load_lerobot_diffusion"),
        ({"num_train_timesteps": 10**9}, "diffusion steps should be at most"),
        ({"beta_start": -1, "beta_schedule": "linear"}, "all β between 0 and 1, got -1"),
        ({"clip_sample": "false"}, "clip_sample should be true or false, got 'false'"),
        ({"clip_sample_range": 0}, "bound of clipping should be a positive number, got 0"),
    ],
)
def test_lerobots_configuration(tmp_path, changes, message):
    assert message in one_line(load_lerobot_diffusion, lerobot(tmp_path, **changes), LEROBOT_STATES)


def test_lerobots_statistics(tmp_path):
    folder = lerobot(tmp_path)
    name = "policy_preprocessor_step_3_normalizer_processor.safetensors"
    tensors = load_file(folder / name)
    save_file({key: value for key, value in tensors.items() if key != "observation.state.max"}, folder / name)
    post = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
    save_file({key: value for key, value in tensors.items() if key != "observation.state.max"}, folder / post)
    assert "MIN_MAX of observation.state needs its min and max" in one_line(
        load_lerobot_diffusion, folder, LEROBOT_STATES
    )
    description = json.loads((folder / "policy_preprocessor.json").read_text())
    description["steps"].append({"registry_name": "relative_actions_processor"})
    (folder / "policy_preprocessor.json").write_text(json.dumps(description))
    assert "'relative_actions_processor' is not read here" in one_line(load_lerobot_diffusion, folder, LEROBOT_STATES)


def test_lerobots_features_need_entries():
    assert "(observation.state, observation.environment_state): none is given for observation.environment" in one_line(
        load_lerobot_diffusion, LEROBOT, {"observation.state": "observation"}
    )


def test_another_architecture(tmp_path):
    path = saved(tmp_path, {"ema_agent": TRANSFORMER})
    assert "its network is a transformer: it has decoder.layers.0" in one_line(load_maniskill_diffusion, path)
    path = saved(tmp_path, {"model": {"network.mlp.weight": torch.ones(2)}})
    assert "but its network is another: it has mlp.weight" in one_line(load_dppo, path)


@pytest.mark.parametrize("source", ["maniskill", "dppo"])
def test_weights_that_are_not_finite(tmp_path, source):
    path, load, options = {
        "maniskill": (MANISKILL, load_maniskill_diffusion, {"n_groups": 4}),
        "dppo": (DPPO, load_dppo, {"action_dim": 2}),
    }[source]
    content = read_torch_file(path)
    weights = content["ema_agent" if source == "maniskill" else "model"]
    weights[min(weights)].view(-1)[0] = float("nan")
    assert "holds NaN or infinity" in one_line(load, saved(tmp_path, content), **options)


def test_a_tensor_that_is_missing_or_of_another_size(tmp_path):
    content = read_torch_file(MANISKILL)
    content["ema_agent"]["noise_pred_net.final_conv.1.bias"] = torch.ones(3)
    path = saved(tmp_path, content)
    assert "'final_conv.1.bias' should be [2], but is [3]" in one_line(load_maniskill_diffusion, path, n_groups=4)
    del content["ema_agent"]["noise_pred_net.final_conv.1.bias"]
    assert "should be [2], but is absent" in one_line(load_maniskill_diffusion, saved(tmp_path, content), n_groups=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pred_horizon should be a multiple of 2"),
        ({"pred_horizon": 8, "obs_horizon": 3}, "10 numbers, which is no multiple of obs_horizon=3"),
        ({"pred_horizon": 8, "entries": {"rgb": "camera"}}, "rgb is none of them"),
        ({"pred_horizon": 8, "sampler_steps": 0}, "sampler_steps must be an integer of at least 1"),
    ],
)
def test_maniskills_arguments(options, message):
    assert message in one_line(load_maniskill_diffusion, MANISKILL, **{"pred_horizon": 7, "n_groups": 4} | options)


def test_maniskills_depth(tmp_path):
    content = read_torch_file(MANISKILL)
    encoder = {
        "visual_encoder.cnn.0.weight": torch.ones(16, 4, 3, 3),
        "visual_encoder.fc.0.weight": torch.ones(256, 128),
    }
    content["ema_agent"].update(encoder)
    assert "images of 4 channels: depth is not read" in one_line(
        load_maniskill_diffusion, saved(tmp_path, content), n_groups=4, pred_horizon=8
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dppo_residual_mlp", {}, "action_dim is needed"),
        ("dppo_residual_mlp", {"action_dim": 3}, "decodes 8 numbers, which are not some actions of 3"),
        ("dppo_residual_mlp", {"action_dim": 2, "pred_horizon": 8}, "which are not 8 actions of 2"),
        ("dppo_residual_mlp", {"action_dim": 2, "obs_horizon": 3}, "no multiple of obs_horizon=3"),
        ("dppo_unet", {"n_groups": 4}, "pred_horizon is needed"),
        ("dppo_unet", {"n_groups": 4, "pred_horizon": 5}, "multiple of 2"),
        ("dppo_unet", {"n_groups": 4, "pred_horizon": 4, "action_dim": 3}, "actions of 2 numbers, 3 were expected"),
        ("dppo_fine_tuned", {"action_dim": 2}, "is fine-tuned: fine_tuned_below is needed"),
        ("dppo_residual_mlp", {"action_dim": 2, "normalization": "nowhere.npz"}, "cannot read nowhere.npz"),
        (
            "dppo_residual_mlp",
            {"normalization": DPPO.parent / "normalization.npz", "obs_horizon": 1},
            "reads 10 numbers a step, ",
        ),
    ],
)
def test_dppos_arguments(name, options, message):
    assert message in one_line(load_dppo, FIXTURES / name / "state_3.pt", **options)


def test_dppos_images(tmp_path):
    path = saved(tmp_path, {"model": {"network.backbone.x.weight": torch.ones(2)}})
    assert "reads images" in one_line(load_dppo, path)


def test_images_of_stanford_and_robomimic(tmp_path):
    path = saved(tmp_path, {"cfg": {}, "state_dicts": {"ema_model": {"obs_encoder.x": torch.ones(2)}}})
    assert "reads images" in one_line(load_stanford_diffusion, path)
    content = dict(read_torch_file(ROBOMIMIC))
    config = json.loads(content["config"])
    config["observation"]["modalities"]["obs"]["rgb"] = ["agentview_image"]
    path = saved(tmp_path, content | {"config": json.dumps(config), "variable_state": None})
    assert "reads agentview_image" in one_line(load_robomimic_diffusion, path)


def test_another_algorithm_of_robomimic(tmp_path):
    path = saved(tmp_path, {"algo_name": "bc"})
    assert "its algo_name is 'bc'" in one_line(load_robomimic_diffusion, path)


def test_a_configuration_that_says_too_little(tmp_path):
    content = dict(read_torch_file(STANFORD))
    assert "obs_as_global_cond=false" in one_line(load_stanford_diffusion, saved(tmp_path, content | {"cfg": None}))
    config = {"policy": {"obs_as_global_cond": True, "model": {"n_groups": 4}}}
    path = saved(tmp_path, content | {"cfg": config})
    assert "its configuration should have policy.n_obs_steps, got None" in one_line(load_stanford_diffusion, path)


@pytest.mark.parametrize("source", SOURCES)
def test_too_many_sampler_steps(tmp_path, source):
    assert "sampler_steps must be at most" in one_line(load_source, source, tmp_path, sampler_steps=1001)


def test_an_average_that_is_not_there():
    path = FIXTURES / "dppo_fine_tuned" / "state_3.pt"
    assert "should hold 'ema', it holds itr, model" in one_line(load_dppo, path, action_dim=2, weights="ema")


def test_without_norms_any_width_will_do(tmp_path):
    sizes = UnetSizes(2, 5, (6, 10), 3, 4, film_scale=True, film_layers=1, norm=False)
    state = {f"network.{key}": t for key, t in ConditionalUnet1D(sizes).state_dict().items()}
    state = {key.replace("diffusion_step_encoder", "time_mlp"): t for key, t in state.items()}
    policy = load_dppo(saved(tmp_path, {"model": state}), pred_horizon=4, sampler_steps=10)
    assert policy(torch.zeros(1, 5), torch.zeros(1, 4, 2)).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"eps": 0.1}}, "another eps"),
        ({"config": {"normalize_observation_keys": ["observation.state"]}}, "of some observations only"),
        ({"state_file": "../other.safetensors"}, "outside of the checkpoint"),
    ],
)
def test_lerobots_normaliser_that_is_another_one(tmp_path, changes, message):
    folder = lerobot(tmp_path)
    file = folder / "policy_preprocessor.json"
    content = json.loads(file.read_text())
    step = content["steps"][-1]
    step |= changes | {"config": step["config"] | changes.get("config", {})}
    file.write_text(json.dumps(content))
    assert message in one_line(load_lerobot_diffusion, folder, LEROBOT_STATES)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_no_real_numbers(tmp_path, dtype):
    content = read_torch_file(MANISKILL)
    content["ema_agent"]["noise_pred_net.final_conv.1.bias"] = torch.zeros(2, dtype=dtype)
    assert "'final_conv.1.bias' should be torch.float32" in one_line(
        load_maniskill_diffusion, saved(tmp_path, content), n_groups=4, pred_horizon=8
    )


def test_a_tensor_that_only_claims_its_size(tmp_path):
    content = read_torch_file(MANISKILL)
    content["ema_agent"]["noise_pred_net.down_modules.0.0.blocks.0.block.0.weight"] = torch.zeros(1).expand(10**15)
    one_line(load_maniskill_diffusion, saved(tmp_path, content), n_groups=4, pred_horizon=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obs_horizon": 0}, "obs_horizon must be an integer of at least 1"),
        ({"obs_horizon": -2}, "obs_horizon must be an integer of at least 1"),
        ({"n_groups": -4}, "n_groups must be an integer of at least 1"),
        ({"entries": {"state": None}}, "the name of an entry of the env for state, got None"),
    ],
)
def test_arguments_that_would_pass_for_others(options, message):
    assert message in one_line(load_maniskill_diffusion, MANISKILL, **{"pred_horizon": 8, "n_groups": 4} | options)


@pytest.mark.parametrize("name", ["timestep_spacing", "thresholding"])
def test_a_scheduler_of_stanfords_that_is_another_one(tmp_path, name):
    content = dict(read_torch_file(STANFORD))
    config = {"obs_as_global_cond": True, "n_obs_steps": 2, "horizon": 8, "noise_scheduler": {name: "trailing"}}
    path = saved(tmp_path, content | {"cfg": {"policy": config | {"model": {"n_groups": 4}}}})
    assert f"its noise scheduler has {name}=trailing" in one_line(load_stanford_diffusion, path)
