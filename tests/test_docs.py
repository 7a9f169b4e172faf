"""README and docs: their code runs as it stands, what they name exists, and code cites equations that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [file for folder in ("dsrl_torchrl", "envs", "conf", "examples") for file in (ROOT / folder).rglob("*.*")]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """What `make demo` leaves behind, untrained: a base policy of PickCube's sizes and stage 2's agent."""
    from dsrl_torchrl import LatentActionEnv
    from dsrl_torchrl.agents import DSRLAWMLE
    from dsrl_torchrl.envs.maniskill import ManiSkillEnv
    from dsrl_torchrl.policies import FlowPolicy, save_policy

    env = ManiSkillEnv("PickCube-v1", max_episode_steps=100)
    size = env.observation_spec["observation"].shape[-1]
    base_policy = FlowPolicy(size, 4, pred_horizon=8).freeze()
    save_policy(base_policy, tmp_path / "runs/demo/base")
    DSRLAWMLE(LatentActionEnv(env, base_policy, gamma=0.98)).save(tmp_path / "runs/demo/stage2")
    env.close()
    monkeypatch.chdir(tmp_path)


@pytest.mark.simulator
def test_readme_steers_with_the_demos_result(demo, capsys):
    (block,) = blocks("README.md")
    exec(block, {"__name__": "readme"})
    assert "success: " in capsys.readouterr().out


@pytest.mark.simulator
def test_any_torchrl_algorithm_on_the_demos_policy(demo, capsys):
    exec(blocks("docs/losses.md")[0], {"__name__": "docs"})
    assert "100 macro steps, " in capsys.readouterr().out


def test_losses_by_themselves(capsys):
    torch.manual_seed(0)
    exec(blocks("docs/losses.md")[1], {"__name__": "docs"})
    assert "160 macro transitions, loss " in capsys.readouterr().out


def test_cited_equations_exist():
    defined = set(re.findall(r"^### Eq\. (\d+):", (ROOT / "docs/method.md").read_text(), re.MULTILINE))
    assert defined == {str(i + 1) for i in range(len(defined))}
    citing = [file for file in SOURCES if file.suffix in {".py", ".yaml"}] + PAGES
    lists = {file: re.findall(r"Eq\. (\d+(?:(?:, | and | to )\d+)*)", file.read_text()) for file in citing}
    cited = {(str(file), number) for file, found in lists.items() for number in re.findall(r"\d+", " ".join(found))}
    assert {number for _, number in cited} <= defined, sorted(cited)
    assert len(cited) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_exist(page):
    """Paths in backticks, of a file in the repository or in the library."""
    named = re.findall(r"`((?:[\w.]+/)+[\w.]*\.(?:py|yaml|json|png|md))`", page.read_text())
    written = ("runs/", "stage1/", "diagnosis/", "demos/")  # by a run
    missing = [
        name
        for name in named
        if not (ROOT / name).exists() and not (ROOT / "dsrl_torchrl" / name).exists() and not name.startswith(written)
    ]
    assert missing == []
