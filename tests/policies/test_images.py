"""Base policies that read images."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.errors import UserError
from dsrl_torchrl.policies import load_policy, probe, save_policy
from dsrl_torchrl.training.behaviour_cloning import train_base_policy

from .conftest import OBSERVATION_DIM, POLICIES, make_policy

SHAPES = [(6, 16, 16), (3, 12, 20)]  # a history of two frames, another camera


@pytest.fixture(params=POLICIES)
def seeing(request):
    """A policy of every kind with two cameras."""
    return make_policy(request.param, image_keys=["front", ("wrist", "rgb")], image_shapes=SHAPES)


def entries(*batch: int) -> TensorDict:
    images = [torch.randint(256, (*batch, *shape), dtype=torch.uint8) for shape in SHAPES]
    return TensorDict(
        {
            "observation": torch.randn(*batch, OBSERVATION_DIM),
            "front": images[0],
            "wrist": TensorDict({"rgb": images[1]}, batch),
        },
        batch,
    )


def test_it_keeps_the_contract(seeing, tmp_path):
    seen, noise = entries(4, 3), torch.randn(4, 3, 5, 3)
    policy = seeing.freeze()
    assert policy.in_keys == ["observation", "front", ("wrist", "rgb")]
    chunk = policy.decode(seen, noise)
    one = policy.decode(seen[2, 1], noise[2, 1])
    torch.testing.assert_close(chunk[2, 1], one)
    for key in policy.in_keys:  # every entry counts
        other = seen.clone()
        other.set(key, other.get(key).flip(0))
        assert not torch.allclose(policy.decode(other, noise)[0], chunk[0])
    probe(policy, seen.reshape(-1))
    loaded = load_policy(save_policy(policy, tmp_path))
    assert torch.equal(loaded.decode(seen, noise), chunk)
    assert loaded.in_keys == policy.in_keys and loaded.content_hash() == policy.content_hash()


def test_it_decodes_in_16_bits(seeing):
    seen, noise = entries(8), torch.randn(8, 5, 3)
    expected = seeing.freeze().decode(seen, noise)
    narrow = seeing.bfloat16()
    chunk = narrow.decode(seen, noise)
    assert chunk.dtype == torch.float32 and narrow.encode(seen).dtype == torch.float32
    assert (chunk - expected).abs().mean() < 0.05 * expected.abs().mean()


def test_a_missing_or_a_misshapen_image_is_named(seeing):
    seen, noise = entries(2), torch.randn(2, 5, 3)
    with pytest.raises(UserError, match=r"expected images .*front.*got \[\]"):
        seeing(seen["observation"], noise)
    with pytest.raises(UserError, match=r"\[2, 6, 16, 16\].*got \[\[2, 3, 16, 16\]"):
        seeing(seen["observation"], seen["front"][:, :3], seen["wrist", "rgb"], noise)
    with pytest.raises(UserError, match="1 image_keys, but 0 image_shapes"):
        make_policy("flow", image_keys=["front"])


def test_cloning_learns_from_the_image_alone():
    """The action is what the image's brightness tells; the flat entry tells nothing."""
    torch.manual_seed(0)
    policy = POLICIES["flow"](1, 1, 1, image_keys=["front"], image_shapes=[(3, 8, 8)], network={"kind": "mlp"})
    level = torch.rand(256, 1)
    image = (255 * level).view(256, 1, 1, 1).expand(256, 3, 8, 8).to(torch.uint8)
    data = TensorDict({"observation": torch.randn(256, 1), "front": image, "action": level.unsqueeze(1)}, [256])
    policy = train_base_policy(policy, policy.cloning_loss(), data, steps=150, batch_size=64)
    error = (policy.decode(data, torch.zeros(256, 1, 1)).squeeze(-1) - level).abs().mean()
    assert error < 0.05  # 0.25 for the mean action
