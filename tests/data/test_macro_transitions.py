from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torchrl.collectors import Collector

from dsrl_torchrl.data.macro_transitions import MACRO_TRANSITION_KEYS, check_finite, to_macro_transitions
from dsrl_torchrl.errors import NonFiniteError
from tests.latent_env.test_latent_action_env import make_env


def test_the_schema_out_of_a_collector():
    collector = Collector(make_env(), None, frames_per_batch=12, total_frames=12)
    for batch in collector:
        transitions = to_macro_transitions(batch)
        assert transitions.batch_size == (12,)
        assert set(transitions.keys(True, True)) == set(MACRO_TRANSITION_KEYS)
    collector.shutdown()


def test_offline_data_has_no_noise():
    batch = TensorDict({"observation": torch.zeros(2, 3), "next": {"reward": torch.zeros(2, 1)}}, [2])
    assert "action" not in to_macro_transitions(batch).keys()


def test_the_first_bad_entry_is_named():
    batch = TensorDict({"observation": torch.zeros(2, 3), "next": {"reward": torch.tensor([[0.0], [torch.nan]])}}, [2])
    with pytest.raises(NonFiniteError, match=r"next\.reward is NaN or infinite at env step 7"):
        check_finite(batch, 7)
