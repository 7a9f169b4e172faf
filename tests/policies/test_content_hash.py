from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import BasePolicy
from dsrl_torchrl.policies.content_hash import policy_hash, tensors_hash
from tests.policies.conftest import make_policy


def test_the_hash_is_of_values():
    policy = make_policy("flow")
    expected = policy_hash(policy)
    assert expected == policy.content_hash() == policy_hash(make_policy("flow").freeze())
    for parameter in policy.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.mT.contiguous().mT  # other strides, same values
    assert policy_hash(policy) == expected
    assert policy_hash(policy.bfloat16()) != expected


def test_everything_that_a_chunk_depends_on_is_in_it():
    changes = (
        {},
        {"in_keys": ["state"]},
        {"in_keys": [("robot", "state")]},
        {"obs_horizon": 2},
        {"noise_horizon": 1},
        {"noise_dim": 5},
        {"first_action": 1},
    )
    hashes = [policy_hash(BasePolicy(2, 3, **change)) for change in changes] + [policy_hash(BasePolicy(2, 4))]
    assert len(set(hashes)) == len(hashes)
    assert policy_hash(make_policy("flow", sampler_steps=3)) != policy_hash(make_policy("flow", sampler_steps=4))


def test_tensors_by_name_dtype_shape_and_value():
    x = torch.zeros(2, 3)
    variants = ({"a": x}, {"b": x}, {"a": x.double()}, {"a": x.mT}, {"a": x + 1}, {"a": x, "b": x}, {})
    assert len({tensors_hash(tensors) for tensors in variants}) == len(variants)
    assert tensors_hash({"a": x, "b": x + 1}) == tensors_hash({"b": x + 1, "a": x})
    assert tensors_hash({"a": torch.zeros(3, 2).mT}) == tensors_hash({"a": x})


def test_a_config_that_is_no_json_is_one_line():
    policy = BasePolicy(2, 3)
    policy.config = {"dtype": torch.float32}
    with pytest.raises(UserError, match="BasePolicy cannot be hashed: its config should hold JSON values") as error:
        policy_hash(policy)
    assert "\n" not in str(error.value)
