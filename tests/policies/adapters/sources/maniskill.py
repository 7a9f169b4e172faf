"""Fixtures of ManiSkill's diffusion-policy baseline, made with the agents of its `train.py` and `train_rgbd.py`.

PYTHONPATH=.:<its checkout>/examples/baselines/diffusion_policy python -m tests.policies.adapters.sources.maniskill
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from tests.policies.adapters.portable_weights import fill

FIXTURES = Path(__file__).parents[1] / "fixtures"
STEPS, STATE, ACTION, HISTORY, HORIZON = 8, 5, 2, 2, 8
#: What the training imports and an agent does not use.
STUBS = [f"diffusion_policy.{name}" for name in ("evaluate", "make_env", "utils")]
STUBS += ["distutils", "distutils.util", "gymnasium", "gymnasium.vector", "gymnasium.vector.vector_env", "tyro", "tqdm"]
STUBS += ["mani_skill" + name for name in ("", ".utils", ".utils.wrappers", ".utils.wrappers.flatten")]
STUBS += ["mani_skill.utils.gym_utils", "mani_skill.utils.registration", "torch.utils.tensorboard"]
CASES = {"maniskill_state": "train", "maniskill_rgb": "train_rgbd"}


def main() -> None:
    """Writes a checkpoint and the chunk that its code decodes for each case."""
    from diffusers import DDIMScheduler, DDPMScheduler, optimization, training_utils  # noqa: F401, before the stubs

    for name in STUBS:
        sys.modules.setdefault(name, mock.MagicMock())

    for name, module in CASES.items():
        torch.manual_seed(0)
        rgb = module == "train_rgbd"
        source = importlib.import_module(module)
        arguments = source.Args(
            obs_horizon=HISTORY,
            act_horizon=HORIZON - HISTORY + 1,
            pred_horizon=HORIZON,
            diffusion_step_embed_dim=4,
            unet_dims=[8, 16],
            n_groups=4,
        )
        env, one = mock.MagicMock(), torch.ones(ACTION)
        env.single_action_space.high, env.single_action_space.low, env.single_action_space.shape = one, -one, (ACTION,)
        env.single_observation_space = {"state": _Box(HISTORY, STATE), "rgb": _Box(HISTORY, 16, 16, 6)}
        if not rgb:
            env.single_observation_space = _Box(HISTORY, STATE)
        agent = source.Agent(env, arguments).eval()
        folder = FIXTURES / name
        folder.mkdir(exist_ok=True)
        if rgb:
            agent.load_state_dict(fill(agent.state_dict()))
            shapes = {key: list(t.shape) for key, t in agent.state_dict().items()}
            (folder / "shapes.json").write_text(json.dumps(shapes))
        else:
            last = {key: t + 0.1 for key, t in agent.state_dict().items()}
            torch.save({"agent": last, "ema_agent": agent.state_dict()}, folder / "best_eval_success_at_end.pt")

        agent.noise_scheduler = DDIMScheduler(
            num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type="epsilon"
        )
        agent.noise_scheduler.set_timesteps(STEPS)
        entries = {"state": torch.randn(3, HISTORY, STATE)}
        if rgb:
            entries["rgb"] = torch.randint(0, 256, (3, HISTORY, 6, 16, 16), dtype=torch.uint8)
        noise = torch.randn(3, HORIZON, ACTION)
        given = {key: e.permute(0, 1, 3, 4, 2) if key == "rgb" else e for key, e in entries.items()}
        with mock.patch("torch.randn", lambda *args, noise=noise, **kwargs: noise.clone()):
            chunk = agent.get_action(given if rgb else given["state"])
        save_file({**entries, "noise": noise, "chunk": chunk.contiguous()}, folder / "case.safetensors")
        print(name, tuple(chunk.shape), float(chunk.abs().max()))


class _Box:
    def __init__(self, *shape: int) -> None:
        self.shape = shape


if __name__ == "__main__":
    main()
