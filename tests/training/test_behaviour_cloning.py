"""Behaviour cloning end to end: both modes of a two-mode expert, EMA, NaN."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import NonFiniteError, UserError
from dsrl_torchrl.policies import (
    DiffusionBCLoss,
    DiffusionPolicy,
    FlowBCLoss,
    FlowPolicy,
    ShortcutBCLoss,
    ShortcutPolicy,
    load_policy,
    save_policy,
)
from dsrl_torchrl.training.behaviour_cloning import train_base_policy

KINDS = {
    "flow": (FlowPolicy, FlowBCLoss),
    "diffusion": (DiffusionPolicy, DiffusionBCLoss),
    "shortcut": (ShortcutPolicy, ShortcutBCLoss),
}
LEFT, RIGHT = -0.5, 0.7


def two_mode_dataset(n: int = 2000) -> TensorDict:
    """Half the experts go left, half right, whatever they see."""
    generator = torch.Generator().manual_seed(0)
    modes = torch.where(torch.arange(n) % 2 == 0, LEFT, RIGHT)[:, None, None].expand(n, 2, 1)
    return TensorDict(
        {
            "observation": torch.randn(n, 2, generator=generator),
            "action": modes + 0.03 * torch.randn(n, 2, 1, generator=generator),
        },
        [n],
    )


def make(kind, **kwargs):
    policy_class, loss_class = KINDS[kind]
    torch.manual_seed(0)
    policy = policy_class(2, 1, 2, network={"kind": "mlp", "width": 64, "depth": 2}, **kwargs)
    return policy, loss_class(policy)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sampler_steps"), [("flow", 20), ("diffusion", 20), ("shortcut", 8)])
def test_both_modes_are_recovered(kind, sampler_steps):
    policy, loss = make(kind, sampler_steps=sampler_steps)
    trained = train_base_policy(policy, loss, two_mode_dataset(), steps=2000, lr=3e-3, ema_decay=0.99)
    assert trained is policy
    assert trained.frozen
    with torch.no_grad():
        chunk = trained(torch.randn(2000, 2), torch.randn(2000, 2, 1)).squeeze(-1)
    right = chunk.mean(-1) > 0.1
    assert 0.42 < right.float().mean() < 0.58
    assert chunk[right].mean().item() == pytest.approx(RIGHT, abs=0.05)
    assert chunk[~right].mean().item() == pytest.approx(LEFT, abs=0.05)
    assert chunk[right].std() < 0.12
    assert chunk[~right].std() < 0.12
    assert ((chunk[:, 0] - chunk[:, 1]).abs() < 0.3).float().mean() > 0.95


def test_reproducible_and_leaves_the_global_generator_alone(tmp_path):
    policies = []
    for _ in range(2):
        policy, loss = make("flow")
        state = torch.get_rng_state()
        policies.append(train_base_policy(policy, loss, two_mode_dataset(100), steps=20, seed=3))
        assert torch.equal(state, torch.get_rng_state())
    first, second = (p.state_dict() for p in policies)
    assert all(torch.equal(first[k], second[k]) for k in first)
    loaded = load_policy(save_policy(policies[0], tmp_path)).state_dict()
    assert all(torch.equal(first[k], loaded[k]) for k in first)


def test_ema_weights_are_returned():
    results = {}
    for ema_decay in (0.0, 0.5):
        policy, loss = make("flow")
        results[ema_decay] = train_base_policy(
            policy, loss, two_mode_dataset(100), steps=10, ema_decay=ema_decay
        ).state_dict()
    name = "network.layers.0.weight"
    assert not torch.equal(results[0.0][name], results[0.5][name])


def test_log_and_existing_scales():
    policy, loss = make("flow")
    policy.fit_scales(torch.randn(50, 2), 5 * torch.rand(50, 2, 1))
    high = policy.action_high.clone()
    seen = []
    train_base_policy(policy, loss, two_mode_dataset(100), steps=150, log=lambda s, m: seen.append((s, m)))
    assert [s for s, _ in seen] == [100, 150]
    assert set(seen[0][1]) == {"base/loss_flow_bc", "base/lr"}
    assert torch.equal(policy.action_high, high)


def test_quantile_scaling_is_kept_on_disk(tmp_path):
    dataset = two_mode_dataset(1000)
    dataset["action"][3, 1] = 40.0
    before = dataset.clone()
    ranges = {}
    for scaling in ("minmax", "quantile"):
        policy, loss = make("flow")
        train_base_policy(policy, loss, dataset, steps=3, action_scaling=scaling)
        loaded = load_policy(save_policy(policy, tmp_path / scaling))
        ranges[scaling] = float(loaded.action_low), float(loaded.action_high)
        assert torch.equal(loaded.normalise_action(dataset["action"]), policy.normalise_action(dataset["action"]))
    assert ranges["minmax"][1] == 40.0
    assert -0.7 < ranges["quantile"][0] < LEFT and RIGHT < ranges["quantile"][1] < 0.9
    assert (dataset == before).all()  # the caller's data stay


def test_non_finite_loss_names_quantity_and_step():
    policy, loss = make("flow")
    with pytest.raises(NonFiniteError, match=r"loss_flow_bc is NaN or infinite at base policy step \d+"):
        train_base_policy(policy, loss, two_mode_dataset(100), steps=50, lr=1e9)


def test_renamed_keys_and_padding():
    policy, loss = make("flow")
    loss.set_keys(action="chunk", valid="mask")
    dataset = two_mode_dataset(100).rename_key_("action", "chunk")
    dataset["mask"] = torch.tensor([True, False]).expand(100, 2)
    dataset["chunk"][:, 1] = 50.0
    train_base_policy(policy, loss, dataset, steps=5)
    assert policy.action_high < 1


def test_bad_arguments_are_one_line():
    policy, loss = make("flow")
    dataset = two_mode_dataset(100)
    with pytest.raises(UserError, match="holds another one"):
        train_base_policy(make("flow")[0], loss, dataset, steps=5)
    with pytest.raises(UserError, match="steps must be"):
        train_base_policy(policy, loss, dataset, steps=0)
    with pytest.raises(UserError, match="action_scaling must be one of minmax, quantile, got 'max'"):
        train_base_policy(policy, loss, dataset, steps=5, action_scaling="max")
    with pytest.raises(UserError, match="ema_decay"):
        train_base_policy(policy, loss, dataset, steps=5, ema_decay=1.0)
    dataset["action"][7] = float("nan")
    with pytest.raises(UserError, match="action data holds NaN"):
        train_base_policy(policy, loss, dataset, steps=5)
