"""One algorithm a file: its hyper-parameters, its losses, its update, the policy that acts."""

from dsrl_torchrl.agents.actor_agent import ActorAgent, ActorConfig
from dsrl_torchrl.agents.agent import Agent, AgentConfig
from dsrl_torchrl.agents.best_of_n import BestOfN
from dsrl_torchrl.agents.dsrl_aw_mle import DSRLAWMLE
from dsrl_torchrl.agents.dsrl_na import DSRLNA
from dsrl_torchrl.agents.dsrl_sac import DSRLSAC
from dsrl_torchrl.agents.ppo import PPO
from dsrl_torchrl.agents.td3 import TD3

__all__ = [
    "DSRLAWMLE",
    "DSRLNA",
    "DSRLSAC",
    "PPO",
    "TD3",
    "ActorAgent",
    "ActorConfig",
    "Agent",
    "AgentConfig",
    "BestOfN",
]
