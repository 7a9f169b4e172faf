"""One algorithm a file: its hyper-parameters, its losses, its update, the policy that acts."""

from dsrl_torchrl.agents.actor_agent import ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import Agent, AgentConfig
from dsrl_torchrl.agents.awr import AWR
from dsrl_torchrl.agents.best_of_n import BestOfN
from dsrl_torchrl.agents.dsrl_aw_mle import DSRLAWMLE
from dsrl_torchrl.agents.dsrl_na import DSRLNA
from dsrl_torchrl.agents.dsrl_sac import DSRLSAC
from dsrl_torchrl.agents.golden_noise import GoldenNoise
from dsrl_torchrl.agents.iql import IQL
from dsrl_torchrl.agents.lp_ds import LPDS
from dsrl_torchrl.agents.lps import LPS
from dsrl_torchrl.agents.ppo import PPO
from dsrl_torchrl.agents.redq import REDQ
from dsrl_torchrl.agents.residual_sac import ResidualSAC
from dsrl_torchrl.agents.td3 import TD3
from dsrl_torchrl.agents.td3_bc import TD3BC

__all__ = [
    "AWR",
    "DSRLAWMLE",
    "DSRLNA",
    "DSRLSAC",
    "IQL",
    "LPDS",
    "LPS",
    "PPO",
    "REDQ",
    "TD3",
    "TD3BC",
    "ActorAgent",
    "ActorConfig",
    "Agent",
    "AgentConfig",
    "BestOfN",
    "GoldenNoise",
    "ResidualSAC",
]
