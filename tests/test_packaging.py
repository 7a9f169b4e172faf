"""The wheel: what it holds, what it must not put beside a user's packages, and that the core needs no extras."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
EXTRAS = [
    "gymnasium",
    "h5py",
    "hydra",
    "imageio",
    "mani_skill",
    "matplotlib",
    "metaworld",
    "msgpack",
    "mujoco",
    "omegaconf",
    "tensorboard",
    "tqdm",
    "wandb",
    "websockets",
]
CORE = [
    "dsrl_torchrl",
    "dsrl_torchrl.agents",
    "dsrl_torchrl.data.macro_transitions",
    "dsrl_torchrl.data.replay",
    "dsrl_torchrl.latent_env",
    "dsrl_torchrl.networks",
    "dsrl_torchrl.objectives",
    "dsrl_torchrl.policies",
]


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> list[str]:
    """What a wheel holds. It is built from a copy: a build folder left in the checkout would leak into it."""
    source, wheels = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    for folder in ("dsrl_torchrl", "conf", "envs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(wheels), str(source)], check=True)
    return ZipFile(next(wheels.glob("*.whl"))).namelist()


def test_wheel_has_one_top_level_package(names):
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dsrl_torchrl"}


def test_wheel_holds_every_module_and_yaml(names):
    """Also says when a new package is missing in pyproject.toml's list."""
    inside = {"dsrl_torchrl": "dsrl_torchrl", "conf": "dsrl_torchrl/conf", "envs": "dsrl_torchrl/envs"}
    expected = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in inside.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".yaml", ".typed"}
    }
    assert expected <= set(names)
    assert "dsrl_torchrl/py.typed" in names


def test_listed_packages_exist():
    listed = re.findall(r'^    "(dsrl_torchrl[\w.]*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert len(listed) > 10
    folders = [re.sub(r"^dsrl_torchrl/(conf|envs)$", r"\1", name.replace(".", "/")) for name in listed]
    assert [folder for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_core_imports_without_extras():
    """An entry of None in ``sys.modules`` makes an import fail as if the package were not installed."""
    script = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))\nimport " + ", ".join(CORE)
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0"])
def test_pins_take_every_patch_release_of_the_pythons_of_make_install(python):
    """Debian's 3.11.2 could not install a pin that asked for 3.11.5."""
    pins = [line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    refused, found = [], 0
    for name in pins:
        try:
            wanted = metadata(name)["Requires-Python"]
        except PackageNotFoundError:
            continue
        found += 1
        if wanted and python not in SpecifierSet(wanted):
            refused.append(f"{name} {wanted}")
    assert not refused and found > 100
