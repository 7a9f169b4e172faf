"""The comparison is fair: the hand-written loop makes the same losses from the same weights, batch after batch."""

from __future__ import annotations

import pytest
import torch

from benchmarks.bare_loop import BareNA, BareSAC
from benchmarks.latent_update import make_loop
from benchmarks.setting import Setting, random_transitions
from dsrl_torchrl.data.decoded_pairs import draw_alias_pairs

SMALL = {"observation": 5, "action": 2, "horizon": 4, "width": 16, "batch_size": 32, "base_width": 16}
SHIPPED = Setting(**SMALL)
PLAIN = Setting(**SMALL, layer_norm=False, fourier_bands=())


def copy(layers, params, names):
    """Weights of our network ``params`` (names ``mlp.<i>.weight``) into the layers of the bare loop."""
    for layer, name in zip(layers, names, strict=True):
        layer.weight.data.copy_(params[name]["weight"].data)
        layer.bias.data.copy_(params[name]["bias"].data.view_as(layer.bias))
        if layer.norm_weight is not None:
            after = params[str(int(name) + 1)]
            layer.norm_weight.data.copy_(after["weight"].data.view_as(layer.norm_weight))
            layer.norm_bias.data.copy_(after["bias"].data.view_as(layer.norm_bias))


def copy_critic(layers, params, setting):
    step = 3 if setting.layer_norm else 2
    copy(layers, params["module", "mlp"], [str(step * i) for i in range(setting.depth + 1)])


def copy_actor(layers, params):
    network = params["module", "0", "module"]
    copy(layers[:-1], network["1"], [str(2 * i) for i in range(len(layers) - 1)])
    copy(layers[-1:], network, ["2"])


def disturb(*params):
    """Networks that differ between members, and a policy that differs between states."""
    for group in params:
        for key, p in group.items(True, True):
            if "mean" not in key and "std" not in key and "centre" not in key and "unit" not in key:
                p.data.add_(0.1 * torch.randn_like(p))


def make_data(setting, loop):
    data = random_transitions(setting, 64)
    return draw_alias_pairs(data, loop.env.decoder.decode, setting.noise, setting.alias_samples, 0.5)


def run_both(setting, algorithm, bare_class, updates=4):
    torch.manual_seed(0)
    options = ("offline_fraction=0", "aw_mle=false", "actor_interval=1", "distillation_interval=1", "backup=min")
    config = setting.algorithm(algorithm, *(f"++algorithm.{option}" for option in options))
    loop = make_loop(setting, config, transitions=64)
    update = loop.update.update
    data = make_data(setting, loop)
    scales = loop.env.decoder.base_policy.normalisation
    extra = [loop.env.decoder.base_policy] if bare_class is BareNA else []
    bare = bare_class(setting, config, data, scales.observation_mean, scales.observation_std, *extra)
    disturb(update.sac.actor_network_params, update.sac.qvalue_network_params)
    copy_actor(bare.actor, update.sac.actor_network_params)
    copy_critic(bare.q_noise, update.sac.qvalue_network_params, setting)
    if bare_class is BareNA:
        disturb(update.action_value.action_value_network_params)
        copy_critic(bare.q_action, update.action_value.action_value_network_params, setting)
        targets = update.action_value.target_action_value_network_params
    else:
        targets = update.sac.target_qvalue_network_params
    disturb(targets)  # unlike the critics
    copy_critic(bare.target, targets, setting)
    for i in range(updates):
        index = torch.randint(len(data), (setting.batch_size,))
        batch = {name: value[index] for name, value in bare.data.items()}
        transitions = data[index].clone()
        if bare_class is BareNA and setting.alias_samples:
            choice = torch.randint(setting.alias_samples, (setting.batch_size,))
            batch |= {"alias_noise": bare.pairs[0][index, choice], "alias_chunk": bare.pairs[1][index, choice]}
            element = torch.arange(setting.batch_size)
            transitions["alias_noise"] = transitions["alias_noise"][element, choice]
            transitions["alias_chunk"] = transitions["alias_chunk"][element, choice]
        else:
            transitions = transitions.exclude("alias_noise", "alias_chunk")
        torch.manual_seed(100 + i)
        by_hand = bare.update(batch)
        torch.manual_seed(100 + i)
        ours = update(transitions)
        yield by_hand, ours


SETTINGS = pytest.mark.parametrize("setting", [SHIPPED, PLAIN], ids=["shipped", "plain"])


@SETTINGS
@pytest.mark.parametrize("num_critics", [2, 3])
def test_sac_losses_are_the_same(setting, num_critics):
    setting = Setting(**{**setting.__dict__, "num_critics": num_critics})
    for by_hand, ours in run_both(setting, "dsrl_sac", BareSAC):
        torch.testing.assert_close(by_hand["critic"], ours["sac/critic_loss"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_hand["actor"], ours["sac/actor_loss"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_hand["alpha"], ours["sac/alpha_loss"], rtol=1e-5, atol=1e-5)


@SETTINGS
@pytest.mark.parametrize("alias_samples", [0, 3], ids=["fresh", "stored"])
def test_na_losses_are_the_same(setting, alias_samples):
    setting = Setting(**{**setting.__dict__, "alias_samples": alias_samples})
    for by_hand, ours in run_both(setting, "dsrl_na", BareNA):
        torch.testing.assert_close(by_hand["critic"], ours["sac/critic_loss"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_hand["alias"], ours["noise_aliasing/loss"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_hand["actor"], ours["sac/actor_loss"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(by_hand["alpha"], ours["sac/alpha_loss"], rtol=1e-5, atol=1e-5)


@SETTINGS
def test_the_loops_run_on_their_own_batches(setting):
    config = setting.algorithm("dsrl_sac")
    data = random_transitions(setting, 64)
    scales = setting.base_policy().normalisation
    loop = BareSAC(setting, config, data, scales.observation_mean, scales.observation_std)
    before = loop.actor[0].weight.detach().clone()
    loop.run(2)
    assert not torch.equal(before, loop.actor[0].weight)
