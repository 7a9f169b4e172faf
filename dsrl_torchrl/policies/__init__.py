"""Frozen base policies: ``(observation, noise) -> action chunk``."""

from dsrl_torchrl.policies.base_policy import BasePolicy
from dsrl_torchrl.policies.centred import CentredPolicy
from dsrl_torchrl.policies.cloning_loss import BehaviourCloningLoss
from dsrl_torchrl.policies.diffusion import DiffusionBCLoss, DiffusionPolicy
from dsrl_torchrl.policies.flow import FlowBCLoss, FlowPolicy
from dsrl_torchrl.policies.generative import GenerativePolicy
from dsrl_torchrl.policies.identity import IdentityPolicy
from dsrl_torchrl.policies.networks import ChunkMLP, ChunkNetwork, UNet1D, make_network
from dsrl_torchrl.policies.probe import Steerability, probe, steerability
from dsrl_torchrl.policies.shortcut import ShortcutBCLoss, ShortcutPolicy
from dsrl_torchrl.policies.storage import load_policy, save_policy

__all__ = [
    "BasePolicy",
    "BehaviourCloningLoss",
    "CentredPolicy",
    "ChunkMLP",
    "ChunkNetwork",
    "DiffusionBCLoss",
    "DiffusionPolicy",
    "FlowBCLoss",
    "FlowPolicy",
    "GenerativePolicy",
    "IdentityPolicy",
    "ShortcutBCLoss",
    "ShortcutPolicy",
    "Steerability",
    "UNet1D",
    "load_policy",
    "make_network",
    "probe",
    "save_policy",
    "steerability",
]
