"""The behaviour-cloning losses as TorchRL ``LossModule``s, and their values."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import DiffusionBCLoss, FlowBCLoss, ShortcutBCLoss

from .conftest import make_policy

LOSSES = {"flow": FlowBCLoss, "diffusion": DiffusionBCLoss, "shortcut": ShortcutBCLoss}


def make_loss(policy, **kwargs):
    return LOSSES[policy.policy_type](policy, **kwargs)


def make_batch(policy, *batch: int):
    return TensorDict(
        {
            "observation": 3 + 2 * torch.randn(*batch, policy.observation_dim),
            "action": torch.rand(*batch, policy.pred_horizon, policy.action_dim),
        },
        batch,
    )


def value(loss, batch, seed=0):
    torch.manual_seed(seed)
    return loss(batch)[loss.loss_key]


def normalised(policy, batch):
    scale, low, high = policy.observation_scale, policy.action_low, policy.action_high
    return (batch["observation"] - scale.mean) / scale.std, 2 * (batch["action"] - low) / (high - low) - 1


def test_flow_loss_value():
    policy = make_policy("flow")
    batch = make_batch(policy, 16)
    observation, action = normalised(policy, batch)
    torch.manual_seed(0)
    noise, t = torch.randn(16, 5, 3), torch.rand(16)
    x_t = torch.lerp(noise, action, t[:, None, None])
    expected = torch.nn.functional.mse_loss(policy.network(observation, x_t, t), action - noise)
    torch.testing.assert_close(value(FlowBCLoss(policy), batch), expected)


def test_diffusion_loss_value():
    policy = make_policy("diffusion")
    batch = make_batch(policy, 16)
    observation, action = normalised(policy, batch)
    torch.manual_seed(0)
    noise, t = torch.randn(16, 5, 3), torch.randint(100, (16,))
    signal = policy.alpha_bars[t].view(16, 1, 1)
    x_t = signal**0.5 * action + (1 - signal) ** 0.5 * noise
    expected = torch.nn.functional.mse_loss(policy.network(observation, x_t, t / 100), noise)
    torch.testing.assert_close(value(DiffusionBCLoss(policy), batch), expected)


def test_reductions(trainable):
    batch = make_batch(trainable, 4, 6)
    elements, mean, total = (value(make_loss(trainable, reduction=r), batch) for r in ("none", "mean", "sum"))
    assert elements.shape == (4, 6, trainable.pred_horizon)
    torch.testing.assert_close(elements.mean(), mean)
    torch.testing.assert_close(elements.sum(), total)
    with pytest.raises(UserError, match="none, mean, sum, got 'max'"):
        make_loss(trainable, reduction="max")


def test_padded_actions_do_not_count(trainable):
    batch = make_batch(trainable, 8)
    elements = value(make_loss(trainable, reduction="none"), batch)
    valid = torch.rand(8, trainable.pred_horizon) < 0.6
    batch["valid"] = valid
    torch.testing.assert_close(value(make_loss(trainable), batch), elements[valid].mean())
    torch.testing.assert_close(value(make_loss(trainable, reduction="none"), batch), elements * valid)


def test_set_keys(trainable):
    batch = make_batch(trainable, 8)
    batch["valid"] = torch.rand(8, trainable.pred_horizon) < 0.6
    loss = make_loss(trainable)
    assert loss.in_keys == ["observation", "action"]
    expected = value(loss, batch)
    loss.set_keys(observation=("data", "state"), action=("data", "chunk"), valid=("data", "mask"))
    renamed = TensorDict(
        {"data": {"state": batch["observation"], "chunk": batch["action"], "mask": batch["valid"]}}, [8]
    )
    assert loss.in_keys == [("data", "state"), ("data", "chunk")]
    torch.testing.assert_close(value(loss, renamed), expected)
    with pytest.raises(ValueError, match="not an accepted tensordict key"):
        loss.set_keys(reward="reward")


def test_the_loss_reads_the_policys_entry_and_is_made_by_the_policy():
    for policy_type, loss_class in LOSSES.items():
        policy = make_policy(policy_type, in_key=("robot", "state"))
        loss = policy.cloning_loss()
        assert type(loss) is loss_class
        assert loss.in_keys == [("robot", "state"), "action"]
        batch = make_batch(policy, 8)
        expected = value(make_loss(make_policy(policy_type)), batch)
        torch.testing.assert_close(value(loss, batch.rename_key_("observation", ("robot", "state"))), expected)


def test_dispatch_and_select_out_keys(trainable):
    batch = make_batch(trainable, 8)
    loss = make_loss(trainable)
    assert loss.out_keys == [loss.loss_key]
    torch.manual_seed(0)
    dispatched = loss(observation=batch["observation"], action=batch["action"])
    torch.testing.assert_close(dispatched, value(loss, batch))
    assert list(loss.select_out_keys(loss.loss_key)(batch).keys()) == [loss.loss_key]


def test_state_dict_round_trip(trainable):
    batch = make_batch(trainable, 8)
    loss = make_loss(trainable)
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in loss.state_dict().items()}
    before = value(loss, batch)
    with torch.no_grad():
        for p in loss.parameters():
            p.add_(0.1)
    assert value(loss, batch) != before
    loss.load_state_dict(state)
    torch.testing.assert_close(value(loss, batch), before)


def test_gradient_reaches_the_policy_and_its_scales_are_shared(trainable):
    loss = make_loss(trainable)
    assert {id(p) for p in loss.parameters()} == {id(p) for p in trainable.parameters()}
    batch = make_batch(trainable, 8)
    value(loss, batch).backward()
    assert all(p.grad is not None for p in trainable.parameters())
    before = value(loss, batch)
    trainable.fit_scales(torch.randn(50, trainable.observation_dim), 9 * torch.rand(50, 5, 3))
    assert value(loss, batch) != before


def test_bad_input_is_one_line(trainable):
    batch = make_batch(trainable, 8)
    batch["action"] = batch["action"][:, :-1]
    with pytest.raises(UserError, match=r"action \[8, 4, 3\]"):
        make_loss(trainable)(batch)
    for policy_type in LOSSES.keys() - {trainable.policy_type}:
        with pytest.raises(UserError, match="trains a"):
            LOSSES[policy_type](trainable)
    with pytest.raises(UserError, match="frozen"):
        make_loss(trainable.freeze())
