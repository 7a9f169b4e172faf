"""Limits of a container, on files like the kernel's."""

from __future__ import annotations

import pytest

from dsrl_torchrl.collect import control_group


@pytest.fixture
def group(tmp_path, monkeypatch):
    """The folder of a job's control group below ``tmp_path``."""
    folder = tmp_path / "root" / "slurm" / "job_7"
    folder.mkdir(parents=True)
    (tmp_path / "membership").write_text("1:name=systemd:/other\n0::/slurm/job_7\n")
    monkeypatch.setattr(control_group, "ROOT", tmp_path / "root")
    monkeypatch.setattr(control_group, "MEMBERSHIP", tmp_path / "membership")
    return folder


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text + "\n")


def test_without_limits(group):
    assert control_group.cores_of_group() is None and control_group.memory_of_group() is None
    write(group, cpu_max="max 100000", memory_max="max", memory_current="5")
    assert control_group.cores_of_group() is None and control_group.memory_of_group() is None


def test_where_there_are_no_groups(group, monkeypatch, tmp_path):
    monkeypatch.setattr(control_group, "MEMBERSHIP", tmp_path / "none")
    monkeypatch.setattr(control_group, "ROOT", tmp_path / "none")
    assert control_group.cores_of_group() is None and control_group.memory_of_group() is None


def test_the_page_cache_is_free(group):
    write(group, memory_max="1000", memory_current="900", memory_stat="anon 200\ninactive_file 300\nactive_file 50")
    assert control_group.memory_of_group() == 450


def test_the_tightest_of_a_group_and_those_above_it(group, tmp_path):
    write(group, cpu_max="400000 100000", memory_max="1000", memory_current="10")
    write(group.parent, cpu_max="150000 100000", memory_max="500", memory_current="100")
    write(tmp_path, cpu_max="1 100000", memory_max="1", memory_current="0")  # not a group: above the root
    assert control_group.cores_of_group() == 1.5 and control_group.memory_of_group() == 400


def test_a_container_sees_its_own_group_as_the_root(group, tmp_path):
    (tmp_path / "membership").write_text("0::/../host/docker/abc\n")
    write(tmp_path / "root", cpu_max="200000 100000")
    assert control_group.cores_of_group() == 2
