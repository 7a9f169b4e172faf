"""dsrl-torchrl: diffusion steering by reinforcement learning, as TorchRL components."""

from dsrl_torchrl.latent_env.latent_action_env import LatentActionEnv
from dsrl_torchrl.latent_env.macro_step import MacroStep, make_macro_env
from dsrl_torchrl.latent_env.noise_decoder import NoiseDecoder

__all__ = ["LatentActionEnv", "MacroStep", "NoiseDecoder", "make_macro_env"]
