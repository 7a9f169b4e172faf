"""TorchRL's own losses on macro transitions: their TD targets, by hand, bootstrap with γ^k (Eq. 4)."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import DDPGLoss, SACLoss, TD3Loss, ValueEstimators

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.objectives.macro_discount import STEPS_ENTRY, use_macro_discount

GAMMA, B, OBS, ACTION = 0.875, 6, 3, 2  # γ is exact in float32, in which TorchRL keeps it
K = torch.tensor([1, 2, 3, 4, 3, 2]).unsqueeze(-1)


class Q(nn.Linear):
    """``weight · [s, a] + bias``."""

    def __init__(self):
        super().__init__(OBS + ACTION, 1, dtype=torch.float64)

    def forward(self, observation, action):
        return super().forward(torch.cat([observation, action], -1))


def make_q():
    return ValueOperator(Q(), in_keys=["observation", "action"])


def make_deterministic_actor():
    network = nn.Sequential(nn.Linear(OBS, ACTION, dtype=torch.float64), nn.Tanh())
    return TensorDictModule(network, in_keys=["observation"], out_keys=["action"])


def make_sac():
    network = nn.Sequential(nn.Linear(OBS, 2 * ACTION, dtype=torch.float64), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"], distribution_class=TanhNormal,
    )  # fmt: skip
    return SACLoss(actor, make_q(), alpha_init=1e-9, fixed_alpha=True)


def make_td3():
    return TD3Loss(make_deterministic_actor(), make_q(), bounds=(-1, 1), policy_noise=0.0)


def make_ddpg():
    return DDPGLoss(make_deterministic_actor(), make_q(), delay_actor=True, delay_value=True)


def make_batch():
    torch.manual_seed(1)
    terminated = torch.tensor([0, 0, 1, 0, 0, 1], dtype=torch.bool).unsqueeze(-1)
    done = torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.bool).unsqueeze(-1)  # the second one is truncated
    following = {"observation": torch.randn(B, OBS).double(), "reward": torch.randn(B, 1).double()}
    following |= {"terminated": terminated, "done": done, "steps_to_next_obs": K}
    root = {"observation": torch.randn(B, OBS).double(), "action": torch.rand(B, ACTION).double()}
    root["steps_to_next_obs"] = torch.full((B, 1), 99)  # the previous macro step's: must not be read
    return TensorDict({**root, "next": following}, [B])


def linear(weights, following, action):
    """``min_i Q_targ,i(s', a')``, ``[B]``."""
    x = torch.cat([following["observation"], action], -1)
    each = x @ weights["module", "weight"].reshape(-1, OBS + ACTION).T + weights["module", "bias"].reshape(-1)
    return each.min(-1)[0]


def sac_value(loss, following):
    """The critics are made blind to the action, and α is nothing: no need to know what was drawn."""
    for params in (loss.qvalue_network_params, loss.target_qvalue_network_params):
        params["module", "weight"].data[..., OBS:] = 0
    return linear(loss.target_qvalue_network_params, following, torch.zeros(B, ACTION).double())


def next_action(loss, following):
    params = loss.target_actor_network_params
    weight, bias = params["module", "0", "weight"], params["module", "0", "bias"]
    return torch.tanh(following["observation"] @ weight.T + bias)


def td3_value(loss, following):
    return linear(loss.target_qvalue_network_params, following, next_action(loss, following))


def ddpg_value(loss, following):
    return linear(loss.target_value_network_params, following, next_action(loss, following))


LOSSES = {
    "sac": (make_sac, sac_value, lambda loss, td: loss._compute_target_v2(td)),
    "td3": (make_td3, td3_value, lambda loss, td: loss.value_loss(td)[1]["target_value"]),
    "ddpg": (make_ddpg, ddpg_value, lambda loss, td: loss.loss_value(td)[1]["target_value"]),
}


@pytest.fixture(params=LOSSES)
def case(request):
    torch.manual_seed(0)
    make, value, target = LOSSES[request.param]
    return use_macro_discount(make(), GAMMA), value, target


def test_target_equals_the_equation(case):
    loss, value, target = case
    batch = make_batch()
    following = batch["next"]
    v = value(loss, following)
    alive = (~following["terminated"].squeeze(-1)).double()  # truncation bootstraps
    y = following["reward"].squeeze(-1) + GAMMA ** K.squeeze(-1) * alive * v
    torch.testing.assert_close(target(loss, batch).detach(), y.detach(), rtol=1e-6, atol=1e-9)


def test_one_step_each_is_torchrls_own_target(case, request):
    loss, _, target = case
    batch = make_batch()
    batch["next", "steps_to_next_obs"].fill_(1)
    torch.manual_seed(3)
    ours = target(loss, batch)
    loss.make_value_estimator(ValueEstimators.TD0, gamma=GAMMA)
    torch.manual_seed(3)
    torch.testing.assert_close(ours, target(loss, batch.exclude("steps_to_next_obs")))


def test_a_batch_without_its_step_counts_is_refused(case):
    """TorchRL's own TD(0) takes k = 1."""
    loss, _, target = case
    with pytest.raises(UserError, match=r"needs \('next', 'steps_to_next_obs'\).*no such entry"):
        target(loss, make_batch().exclude(STEPS_ENTRY))


def test_in_keys_are_all_that_it_reads(case):
    loss, _, target = case
    batch = make_batch()
    torch.manual_seed(3)
    expected = target(loss, batch)
    torch.manual_seed(3)
    torch.testing.assert_close(target(loss, batch.select(*loss.in_keys, strict=False)), expected)


def test_keys_renamed_later_are_followed(case):
    loss, _, target = case
    batch = make_batch()
    torch.manual_seed(3)
    expected = target(loss, batch)
    loss.set_keys(reward="r", terminated="t")
    following = batch["next"]
    following.rename_key_("reward", "r").rename_key_("terminated", "t")
    torch.manual_seed(3)
    torch.testing.assert_close(target(loss, batch), expected)
