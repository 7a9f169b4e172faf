"""A hand-written loop and an agent of ours, from the same weights, on the same batches and noises."""

from __future__ import annotations

import torch

from benchmarks.bare_loop import BareSAC
from benchmarks.setting import Setting, random_transitions

SMALL = {"observation": 5, "action": 2, "horizon": 4, "width": 16, "batch_size": 32, "base_width": 16}
SHIPPED = Setting(**SMALL)
PLAIN = Setting(**SMALL, layer_norm=False, fourier_bands=())
NAMES = {"q_action": "q_action/loss", "q_noise": "q_noise/loss", "actor": "actor/loss", "alpha": "actor/alpha_loss"}


def ensembles(agent, bare):
    """Hand-written ensembles and ours."""
    if isinstance(bare, BareSAC):
        params, targets = agent.sac.qvalue_network_params, agent.sac.target_qvalue_network_params
        return {bare.q_noise: params, bare.q_target: targets}
    loss = agent.q_action_loss
    return {
        bare.q_noise: agent.aliasing_loss.q_noise_params,
        bare.q_action: loss.q_action_params,
        bare.q_target: loss.target_q_action_params,
    }


def assert_same_updates(setting, algorithm, bare_class, updates=4):
    """Losses of every update, and all weights after the last."""
    torch.manual_seed(0)
    agent, data = setting.agent(algorithm), random_transitions(setting, 64)
    bare = bare_class(setting, agent.config, data, agent.decoder.base_policy)
    pairs = ensembles(agent, bare)
    networks = [params["module", "mlp"].values(True, True) for params in pairs.values()]
    disturb(agent.actor.parameters(), *networks)  # targets, too
    copy_actor(bare.actor, agent.actor)
    for own, params in pairs.items():
        copy_critics(own, params)
    for i in range(updates):
        index = torch.randint(len(data), (setting.batch_size,))
        torch.manual_seed(100 + i)
        by_hand = bare.update({name: value[index] for name, value in bare.data.items()})
        torch.manual_seed(100 + i)
        ours = agent.update(data[index].clone(), agent.parts(agent.config.critic_only_updates))
        for name, loss in by_hand.items():
            torch.testing.assert_close(loss, ours[NAMES[name]], rtol=1e-5, atol=1e-5)
    for own, params in pairs.items():
        for by_hand, our in zip(critic_tensors(own), ensemble_tensors(own, params), strict=True):
            torch.testing.assert_close(by_hand.data, our.data, rtol=1e-5, atol=1e-5)
    hidden, head, *_ = agent.actor.module[0].module
    for by_hand, our in zip(bare.actor.parameters(), [*hidden.parameters(), *head.parameters()], strict=True):
        torch.testing.assert_close(by_hand.data, our.data, rtol=1e-5, atol=1e-5)


def disturb(*groups):
    """Networks that differ between members, targets and states."""
    for group in groups:
        for p in group:
            p.data.add_(0.1 * torch.randn_like(p))


def copy_actor(bare, actor):
    """Our latent policy into :class:`examples.dsrl_na_single_file.Actor`."""
    hidden, head, *_ = actor.module[0].module
    bare.hidden.load_state_dict(hidden.state_dict())
    bare.head.load_state_dict(head.state_dict())


def copy_critics(bare, params):
    """An ensemble's parameters into :class:`examples.dsrl_na_single_file.Critics`."""
    for own, given in zip(critic_tensors(bare), ensemble_tensors(bare, params), strict=True):
        own.data.copy_(given.data)


def critic_tensors(bare):
    """Weights, biases, then LayerNorm's."""
    return [*bare.weight, *bare.bias, *bare.norm]


def ensemble_tensors(bare, params):
    """The same of our ensemble, in the same shapes."""
    mlp = params["module", "mlp"]
    step = 3 if len(bare.norm) else 2  # linear (, norm), activation
    linear = [mlp[str(step * i)] for i in range(len(bare.weight))]
    norms = [mlp[str(step * i + 1)] for i in range(len(bare.weight) - 1)] if len(bare.norm) else []
    rows = [layer["bias"].unsqueeze(1) for layer in linear]
    return [
        *(layer["weight"] for layer in linear),
        *rows,
        *(norm[name].unsqueeze(1) for norm in norms for name in ("weight", "bias")),
    ]
