"""What every base policy has, whatever made it: sizes, range, freezing, hash, pickling."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy


class Linear(BasePolicy):
    """chunk = W noise + first entry."""

    def __init__(self, **kwargs):
        super().__init__(2, 3, **kwargs)
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, observation, noise):
        return noise @ self.weight + observation[..., None, :1]


class Server(Linear):
    """A policy in another process."""

    differentiable = False
    picklable = False

    def content_hash(self):
        return None


def test_defaults_are_one_observation_and_a_noise_for_every_action():
    policy = BasePolicy(2, 3)
    assert policy.in_keys == ["observation"]
    assert (policy.obs_horizon, policy.noise_horizon, policy.noise_dim, policy.first_action) == (1, 3, 2, 0)
    assert (policy.differentiable, policy.picklable, policy.frozen) == (True, True, False)
    assert policy.action_low.tolist() == [-1, -1] and policy.action_high.tolist() == [1, 1]
    assert policy.observation_statistics("observation") is None
    assert policy.device == torch.device("cpu")
    with pytest.raises(NotImplementedError):
        policy(torch.zeros(2), torch.zeros(3, 2))


def test_nested_entries_may_come_as_lists_from_a_config():
    assert BasePolicy(2, 3, in_keys=["pixels", ["agent", "state"]]).in_keys == ["pixels", ("agent", "state")]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"obs_horizon": 0}, "obs_horizon must be an integer of at least 1, got 0"),
        ({"noise_horizon": 0}, "noise_horizon must be an integer of at least 1, got 0"),
        ({"noise_dim": 1.5}, "noise_dim must be an integer of at least 1, got 1.5"),
        ({"first_action": -1}, "first_action must be an integer of at least 0, got -1"),
        ({"first_action": 3}, r"first_action must be below pred_horizon \(3\), got 3"),
        ({"first_action": True}, "first_action must be an integer"),
    ],
)
def test_bad_sizes_are_one_line(kwargs, match):
    with pytest.raises(UserError, match=match) as error:
        BasePolicy(2, 3, **kwargs)
    assert "\n" not in str(error.value)


def test_actions_are_measured_in_the_policys_range():
    policy = BasePolicy(2, 3)
    policy.action_low.copy_(torch.tensor([-2.0, 0.0]))
    policy.action_high.copy_(torch.tensor([2.0, 4.0]))
    actions = torch.tensor([[-2.0, 0.0], [0.0, 3.0], [2.0, 4.0]])
    assert policy.normalise_action(actions).tolist() == [[-1, -1], [0, 0.5], [1, 1]]
    torch.testing.assert_close(policy.denormalise_action(policy.normalise_action(actions)), actions)
    assert policy.state_dict().keys() == {"action_low", "action_high"}


def test_decoding_picks_the_entries_and_converts_them_to_the_policys_dtype():
    policy = Linear(in_keys=["state"])
    observations = TensorDict({"state": torch.randn(4, 2).double(), "other": torch.zeros(4, 1)}, [4])
    noise = torch.randn(4, 3, 2).double()
    chunk = policy.decode(observations, noise)
    assert policy.dtype == torch.float32 and chunk.dtype == torch.float64
    assert torch.equal(chunk.float(), policy(observations["state"].float(), noise.float()))
    assert BasePolicy(2, 3).dtype is None  # no parameters: the entries come as they are


def test_a_policy_of_several_dtypes_gets_its_entries_as_they_are():
    """A bfloat16 tower would round the states that a float32 head reads."""
    policy = Linear(in_keys=["state"])
    policy.tower = nn.Linear(2, 2, dtype=torch.bfloat16)
    policy.register_parameter("ids", nn.Parameter(torch.arange(3), requires_grad=False))
    assert policy.dtype is None
    policy.forward = lambda state, noise: noise + state.unsqueeze(-2)
    state, noise = torch.randn(4, 2), torch.randn(4, 3, 2)
    assert torch.equal(policy.decode(TensorDict({"state": state}, [4]), noise), noise + state.unsqueeze(-2))
    assert policy.bfloat16().dtype == torch.bfloat16
    policy.weight.data = policy.weight.data.float()
    assert policy.freeze().dtype is None


def test_freezing_is_for_good():
    policy = Linear()
    assert policy.train().training and not policy.frozen
    assert policy.freeze() is policy
    assert policy.frozen and not policy.train().training and not policy.weight.requires_grad


def test_the_hash_follows_the_weights_and_may_be_none():
    policy = Linear()
    before = policy.content_hash()
    assert before == Linear().content_hash()
    policy.freeze().train()
    assert policy.content_hash() == before  # it computes the same
    policy.weight.data[0, 1] = 1e-3
    assert policy.content_hash() != before
    policy.weight.data[0, 1] = 0.0
    assert policy.content_hash() == before
    policy.action_high.mul_(2)
    assert policy.content_hash() != before
    assert Server().content_hash() is None


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy], ids=lambda f: f.__name__)
def test_a_server_is_neither_sent_nor_copied(send):
    with pytest.raises(
        UserError, match="Server cannot be sent to another process or copied: put make_macro_env"
    ) as error:
        send(nn.Sequential(Server()) if send is copy.deepcopy else Server())
    assert "\n" not in str(error.value)


def test_others_are():
    policy = Linear().freeze()
    observation, noise = torch.randn(4, 2), torch.randn(4, 3, 2)
    for again in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert again.frozen and torch.equal(again(observation, noise), policy(observation, noise))
