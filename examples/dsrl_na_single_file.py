"""DSRL-NA in one file of plain PyTorch: steer a frozen policy by reinforcement learning on its noise.

    python examples/dsrl_na_single_file.py --env toy
    python examples/dsrl_na_single_file.py --env PickCube-v1 --base-policy runs/demo/base --total-env-steps 60000

A diffusion or flow policy turns noise into actions, ``a = decode(s, w)``. DSRL-NA (Wagenmaker et al. 2025, arXiv
2506.15799) learns which noise to give it: ``Q^A(s, a)`` by TD in action space, distilled into ``Q^W(s, w)`` in noise
space, on which SAC's actor ``π^W(w | s)`` climbs. One update equals that of ``dsrl_torchrl.agents.DSRLNA``.
"""

from __future__ import annotations

import argparse
import ast
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Args:
    """Options, each ``--its-name value`` on the command line."""

    env: str = "toy"  # toy, or a ManiSkill task
    base_policy: str = ""  # folder of a saved base policy (`dsrl base`); the toy has its own
    max_episode_steps: int = 100  # of the ManiSkill task
    num_envs: int = 1  # in one batch; above 1 ManiSkill needs GPU simulation
    act_horizon: int = 8  # actions of a chunk that are executed
    device: str = "cpu"
    seed: int = 0
    total_env_steps: int = 6_000  # primitive steps, warm-up included
    warmup_env_steps: int = 2_000  # with the base policy's own noise, before the first update
    eval_env_steps: int = 2_000  # between evaluations
    eval_episodes: int = 50
    utd: int = 2  # updates per macro step
    batch_size: int = 256
    gamma: float = 0.98  # per primitive step; the bootstrap uses gamma^k
    tau: float = 0.01  # Polyak rate of the target critics
    actor_lr: float = 2e-4
    critic_lr: float = 5e-4
    alpha_lr: float = 3e-4
    alpha_init: float = 0.03  # first temperature; with -1/0 rewards 0.1 is an upper bound
    target_entropy_per_dim: float = -0.5  # for noise scaled to [-1, 1]; the official runs use 0
    action_magnitude: float = 1.5  # bound of the noise, in standard deviations of the prior
    num_critics: int = 2  # members of each ensemble
    num_cells: tuple[int, ...] = (128, 128, 128)  # widths of the hidden layers
    layer_norm: bool = True  # of the critics (Ball et al. 2023, RLPD, section 4.2)
    fourier_bands: tuple[float, ...] = (0.5, 1.0)  # of the observation's features (Yang et al. 2022)
    chunk_gain: float = 5.0  # of Q^A's chunk input: noise moves a base policy's actions by a fraction of their range


def macro_step(env, s: Tensor, chunk: Tensor, gamma: float) -> dict[str, Tensor]:
    """Executes ``chunk`` ``[N, act_horizon, action_dim]``; each env's episode may end inside it, after k actions.

    R = Σ_{j<k} γ^j r_j; s' follows action k-1; a time limit truncates. ``env``: ManiSkill's batched gym API, tensors.
    """
    alive = torch.ones(len(s), dtype=torch.bool)
    terminated, success = torch.zeros_like(alive), torch.zeros_like(alive)
    reward, k = torch.zeros(len(s)), torch.zeros(len(s), dtype=torch.int64)
    for j in range(chunk.shape[1]):
        observation, _, terminated_now, truncated_now, info = env.step(chunk[:, j])
        s = torch.where(alive.unsqueeze(-1), observation, s)
        reward += gamma**j * alive * (info["success"].float() - 1.0)  # -1 a step, 0 on success
        k += alive
        success |= alive & info["success"]
        terminated |= alive & terminated_now
        alive = alive & ~terminated_now & ~truncated_now
        if not alive.any():
            break
    return {"s_next": s, "reward": reward, "k": k, "terminated": terminated, "done": ~alive, "success": success}


class ToyEnv:
    """A point that must reach the middle of a square within 16 steps."""

    def __init__(self, num_envs: int):
        self.position, self.elapsed = torch.zeros(num_envs, 2), torch.zeros(num_envs, dtype=torch.int64)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[Tensor, dict]:
        generator = None if seed is None else torch.Generator(self.position.device).manual_seed(seed)
        start = 2 * torch.rand(self.position.shape, generator=generator) - 1
        chosen = slice(None) if options is None else options["env_idx"]
        self.position[chosen], self.elapsed[chosen] = start[chosen], 0
        return self.position.clone(), {}

    def step(self, action: Tensor) -> tuple[Tensor, None, Tensor, Tensor, dict]:
        self.position, self.elapsed = (self.position + 0.1 * action).clamp(-1, 1), self.elapsed + 1
        success = self.position.abs().amax(-1) <= 0.1
        return self.position.clone(), None, success, self.elapsed >= 16, {"success": success}


def toy_policy(s: Tensor, noise: Tensor) -> Tensor:
    """A clumsy base policy, 0.4 of full speed and noise: ``[B, 2]``, ``[B, 4, 2]`` -> ``[B, 4, 2]``."""
    return ((-10 * s).clamp(-0.4, 0.4).unsqueeze(-2) + 0.5 * noise).clamp(-1, 1)


def make_env_and_policy(args: Args):
    """The env, the frozen policy ``(s, noise) -> chunk``, its noise's shape, mean and std of the observation."""
    if args.env == "toy":
        return ToyEnv(args.num_envs), toy_policy, (4, 2), (torch.zeros(2), torch.ones(2))
    import gymnasium

    from dsrl_torchrl.envs.headless import import_mani_skill
    from dsrl_torchrl.policies import load_policy

    policy = load_policy(args.base_policy or exit("--base-policy is needed: a folder of `dsrl base`")).to(args.device)
    import_mani_skill()  # where nothing can render, too; it registers the tasks
    options: dict = {"num_envs": args.num_envs, "max_episode_steps": args.max_episode_steps, "reward_mode": "none"}
    env = gymnasium.make(args.env, control_mode=policy.control_mode, obs_mode="state", render_backend="none", **options)
    return env, policy, (policy.pred_horizon, policy.action_dim), policy.observation_statistics("observation")


class Actor(nn.Module):
    """``π^W(w | s)``: a Gaussian squashed into ``|w_i| <= action_magnitude``."""

    def __init__(self, features: int, latent_dim: int, args: Args) -> None:
        super().__init__()
        layers = [(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise([features, *args.num_cells])]
        self.hidden = nn.Sequential(*[module for layer in layers for module in layer])
        self.head = nn.Linear(args.num_cells[-1], 2 * latent_dim)
        # The first policy is the same everywhere: mean at zero noise, standard deviation 0.5 before the squashing.
        nn.init.uniform_(self.head.weight, -1e-3, 1e-3)
        nn.init.zeros_(self.head.bias)
        self.magnitude = args.action_magnitude

    def forward(self, x: Tensor, spread: float = 1.0) -> tuple[Tensor, Tensor]:
        """``w = m tanh(u)``, ``u ~ N(loc, scale)`` (``spread=0``: ``u = loc``) ``[B, latent_dim]``; ``log π(w|s)``."""
        loc, raw = self.head(self.hidden(x)).chunk(2, -1)
        # Bounds as in TorchRL's TanhNormal(tanh_loc=True) and biased_softplus_0.5: gradients never quite vanish.
        loc, scale = 5 * torch.tanh(loc / 5), F.softplus(raw + math.log(math.expm1(0.5 - 0.01))) + 0.01
        noise = spread * torch.randn_like(loc)
        u = loc + scale * noise
        squash = math.log(self.magnitude) + 2 * (math.log(2) - u - F.softplus(-2 * u))  # log |dw/du|
        log_prob = (-0.5 * noise.square() - scale.log() - 0.5 * math.log(2 * math.pi) - squash).sum(-1)
        return self.magnitude * torch.tanh(u), log_prob


class Critics(nn.Module):
    """An ensemble ``Q_1 ... Q_N``, one batched product per layer; the action enters times ``gain``."""

    def __init__(self, inputs: int, gain: float, args: Args) -> None:
        super().__init__()
        self.gain, sizes, n = gain, [inputs, *args.num_cells, 1], args.num_critics
        self.weight, self.bias, self.norm = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):  # initialised as nn.Linear, each member by itself
            self.weight.append(torch.empty(n, fan_out, fan_in).uniform_(-(fan_in**-0.5), fan_in**-0.5))
            self.bias.append(torch.empty(n, 1, fan_out).uniform_(-(fan_in**-0.5), fan_in**-0.5))
        for width in sizes[1:-1] if args.layer_norm else []:  # LayerNorm's scale and shift
            self.norm.extend([torch.ones(n, 1, width), torch.zeros(n, 1, width)])

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """Features ``[B, F]``, noise ``[B, latent_dim]`` or chunk ``[B, act_horizon, action_dim]`` -> ``[N, B]``."""
        h = torch.cat([x, self.gain * action.flatten(1)], -1).expand(len(self.bias[0]), -1, -1)
        h = torch.baddbmm(self.bias[0], h, self.weight[0].mT)
        for i in range(1, len(self.weight)):
            if len(self.norm):
                h = torch.addcmul(self.norm[2 * i - 1], F.layer_norm(h, h.shape[-1:]), self.norm[2 * i - 2])
            h = torch.baddbmm(self.bias[i], torch.relu(h), self.weight[i].mT)
        return h.squeeze(-1)


class DSRLNA:
    """Actor, critics and temperature; ``decode(s [B, obs_dim], w [B, latent_dim]) -> [B, act_horizon, action_dim]``."""

    def __init__(self, args: Args, decode: Callable, latent_dim: int, chunk_dim: int, mean: Tensor, std: Tensor):
        self.args, self.decode, self.latent_dim, self.mean, self.std = args, decode, latent_dim, mean, std
        features = len(mean) * (1 + 2 * len(args.fourier_bands))
        self.actor = Actor(features, latent_dim, args)
        self.q_noise = Critics(features + latent_dim, 1 / args.action_magnitude, args)
        self.q_action = Critics(features + chunk_dim, args.chunk_gain, args)
        self.q_target = copy.deepcopy(self.q_action)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(args.alpha_init)))
        # The density lives in ±action_magnitude, where the entropy is larger by log(action_magnitude) per dimension.
        self.target_entropy = latent_dim * (args.target_entropy_per_dim + math.log(args.action_magnitude))
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=args.actor_lr, fused=True)
        self.q_noise_optimiser = torch.optim.Adam(self.q_noise.parameters(), lr=args.critic_lr, fused=True)
        self.q_action_optimiser = torch.optim.Adam(self.q_action.parameters(), lr=args.critic_lr, fused=True)
        self.alpha_optimiser = torch.optim.Adam([self.log_alpha], lr=args.alpha_lr, fused=True)

    def features(self, s: Tensor) -> Tensor:
        """``[z, sin(π f z), cos(π f z), ...]`` of the standardised observation ``z``: what every network sees."""
        z = ((s - self.mean) / self.std).clamp(-10.0, 10.0)
        waves = [wave(math.pi * band * z) for band in self.args.fourier_bands for wave in (torch.sin, torch.cos)]
        return torch.cat([z, *waves], -1)

    @torch.no_grad()
    def td_target(self, x_next: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """``y = R + γ^k (1 - terminated) (min_i Q^A_targ,i(s', decode(s', w')) - α log π(w'|s'))``, ``w' ~ π^W``."""
        w, log_prob = self.actor(x_next)
        q = self.q_target(x_next, self.decode(batch["s_next"], w)).amin(0) - self.log_alpha.exp() * log_prob
        return batch["reward"] + self.args.gamma ** batch["k"] * ~batch["terminated"] * q

    def q_action_loss(self, x: Tensor, x_next: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """``Σ_i mean (Q^A_i(s, a) - y)²``: TD in action space, whatever noise made the data."""
        return (self.q_action(x, batch["chunk"]) - self.td_target(x_next, batch)).square().sum(0).mean()

    def distillation_loss(self, x: Tensor, s: Tensor) -> Tensor:
        """Noise aliasing: ``Σ_i mean (Q^W_i(s, w) - Q^A_i(s, decode(s, w)))²``, ``w ~ N(0, I)``, member by member."""
        with torch.no_grad():
            w = torch.randn(len(s), self.latent_dim, device=s.device)
            y = self.q_action(x, self.decode(s, w))  # (N, B)
        return (self.q_noise(x, w) - y).square().sum(0).mean()

    def actor_losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """SAC on ``Q^W``: ``E[α log π(w|s) - min_i Q^W_i(s, w)]``, and ``-log α (log π + target entropy)``."""
        w, log_prob = self.actor(x)
        self.q_noise.requires_grad_(False)
        q = self.q_noise(x, w).amin(0)
        self.q_noise.requires_grad_(True)
        actor_loss = (self.log_alpha.detach().exp() * log_prob - q).mean()
        return actor_loss, -(self.log_alpha * (log_prob.detach() + self.target_entropy)).mean()

    def update(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """One update on ``s``, ``chunk``, ``s_next``, ``reward``, ``k``, ``terminated`` ``[B, ...]``; the losses."""
        x, x_next = self.features(batch["s"]), self.features(batch["s_next"])
        losses = {"q_action": step(self.q_action_optimiser, self.q_action_loss(x, x_next, batch))}
        losses["q_noise"] = step(self.q_noise_optimiser, self.distillation_loss(x, batch["s"]))
        actor_loss, alpha_loss = self.actor_losses(x)
        losses |= {"actor": step(self.actor_optimiser, actor_loss), "alpha": step(self.alpha_optimiser, alpha_loss)}
        with torch.no_grad():  # θ_targ <- τ θ + (1 - τ) θ_targ
            torch._foreach_lerp_([*self.q_target.parameters()], [*self.q_action.parameters()], self.args.tau)
        return losses


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """A gradient step; returns the loss, detached."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


def evaluate(env, act: Callable[[Tensor], Tensor], args: Args) -> float:
    """Success rate of ``act(s) -> chunk`` over ``eval_episodes`` starts that training never sees."""
    successes: list[bool] = []
    while len(successes) < args.eval_episodes:
        s, _ = env.reset(seed=1_000_000_000 + len(successes))
        running, succeeded = torch.ones(len(s), dtype=torch.bool), torch.zeros(len(s), dtype=torch.bool)
        while running.any():
            out = macro_step(env, s, act(s), args.gamma)
            succeeded, running, s = succeeded | (running & out["success"]), running & ~out["done"], out["s_next"]
        successes += succeeded.tolist()
    return sum(successes) / len(successes)


def main(args: Args) -> dict[str, float]:
    """Trains; returns the success rates of the base policy and of the steered one."""
    torch.set_default_device(args.device)
    torch.manual_seed(args.seed)
    env, policy, (horizon, action_dim), (mean, std) = make_env_and_policy(args)
    latent_dim, act_horizon = horizon * action_dim, min(args.act_horizon, horizon)

    def decode(s: Tensor, w: Tensor) -> Tensor:  # (B, act_horizon, action_dim)
        return policy(s, w.view(-1, horizon, action_dim))[:, :act_horizon]

    @torch.no_grad()
    def act(s: Tensor, spread: float | None = None) -> Tensor:  # None: the base policy, noise from its prior
        prior = spread is None
        return decode(s, torch.randn(len(s), latent_dim) if prior else agent.actor(agent.features(s), spread)[0])

    agent = DSRLNA(args, decode, latent_dim, act_horizon * action_dim, mean, std)
    replay, losses, stored, env_steps = {}, {}, 0, 0
    rates = {"base": evaluate(env, act, args)}
    print(f"base policy: success {rates['base']:.2f}", flush=True)
    s, _ = env.reset(seed=args.seed)
    while env_steps < args.total_env_steps:
        chunk = act(s, spread=None if env_steps < args.warmup_env_steps else 1.0)
        out = macro_step(env, s, chunk, args.gamma)
        for name, value in {**out, "s": s, "chunk": chunk}.items():
            if name not in replay:  # a macro step takes at least one env step
                replay[name] = torch.zeros(args.total_env_steps + len(s), *value.shape[1:], dtype=value.dtype)
            replay[name][stored : stored + len(s)] = value
        stored, before, s = stored + len(s), env_steps, out["s_next"]
        env_steps += int(out["k"].sum())
        if out["done"].any():
            s, _ = env.reset(options={"env_idx": out["done"].nonzero().squeeze(-1)})
        for _ in range(args.utd * len(s) if env_steps >= args.warmup_env_steps else 0):
            index = torch.randint(stored, (args.batch_size,))
            losses = agent.update({name: value[index] for name, value in replay.items()})
        if env_steps // args.eval_env_steps > before // args.eval_env_steps or env_steps >= args.total_env_steps:
            rates["steered"] = evaluate(env, lambda s: act(s, spread=0.0), args)
            shown = {name: f"{loss:.3g}" for name, loss in losses.items()}
            print(f"{env_steps} env steps: success {rates['steered']:.2f}, losses {shown}", flush=True)
            s, _ = env.reset()
    return rates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for f in fields(Args):
        read = str if f.type == "str" else ast.literal_eval
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=read, default=f.default)
    main(Args(**vars(parser.parse_args())))
