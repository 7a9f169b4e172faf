"""What the images of a run take."""

from __future__ import annotations

import pytest

from dsrl_torchrl.cli import latent_env
from dsrl_torchrl.cli.latent_env import available_memory, check_image_memory, image_memory
from dsrl_torchrl.errors import UserError


def test_the_frames_of_every_transition():
    assert image_memory([(3, 64, 64), (6, 8, 8)], offline=10, online=100) == (12_288 + 384) * 130


def test_what_does_not_fit_is_refused_in_one_line():
    assert check_image_memory(1_500_000_000, None) == check_image_memory(1_500_000_000, 2 * 10**9)
    with pytest.raises(UserError, match=r"about 1\.50 GB of memory, but 1\.00 GB are available: .*base_features"):
        check_image_memory(1_500_000_000, 10**9)


@pytest.mark.parametrize(("limit", "free"), [(None, 61_440), (10**9, 61_440), (1_000, 1_000)])
def test_available_memory_is_that_of_the_system_and_of_the_container(tmp_path, monkeypatch, limit, free):
    monkeypatch.setattr(latent_env, "memory_of_group", lambda: limit)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:   60 kB\n")
    assert available_memory(meminfo) == free
    assert available_memory(tmp_path / "none") is None
