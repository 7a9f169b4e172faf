import pytest
import torch
from tensordict import TensorDict

from dsrl_torchrl.data.episode import Episode
from dsrl_torchrl.errors import UserError


def make(steps=3, observations=4, flags=3, actions=None):
    no = torch.zeros(flags, dtype=torch.bool)
    action = torch.zeros(steps, 2) if actions is None else actions
    return Episode(TensorDict({"observation": torch.zeros(observations, 5)}, [observations]), action, no, no, no)


def test_the_length_is_that_of_the_actions():
    assert len(make()) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"observations": 3},
        {"flags": 4},
        {"steps": 0, "observations": 1, "flags": 0},
        {"actions": torch.zeros(3, 2, 1)},
    ],
)
def test_lengths_that_do_not_belong_together_are_one_line(wrong):
    with pytest.raises(UserError, match=r"an episode of T >= 1 steps has actions \[T, action_dim\]") as error:
        make(**wrong)
    assert "\n" not in str(error.value)
