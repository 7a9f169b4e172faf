"""Named tensors on disk."""

from __future__ import annotations

import pytest
import torch

from dsrl_torchrl.errors import CheckpointError
from dsrl_torchrl.tensor_files import load_tensors, save_tensors


def test_a_path_may_be_text_as_the_documentation_has_it(tmp_path):
    save_tensors({"centre": torch.arange(3.0)}, tmp_path / "centre.safetensors")
    assert load_tensors(f"{tmp_path}/centre.safetensors")["centre"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(CheckpointError, match=r"cannot read .*other\.safetensors"):
        load_tensors(f"{tmp_path}/other.safetensors")
