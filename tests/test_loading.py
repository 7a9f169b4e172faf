"""Nothing that the package reads can run code: no call in it unpickles."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNPICKLES = re.compile(
    r"^\s*(?:import|from)\s+(?!pickle import UnpicklingError$)(?:pickle|cloudpickle|dill|joblib|shelve|marshal)\b"
    r"|(?<!safetensors\.)torch\.load\((?!.*weights_only=True)|\bnp\.load\((?!.*allow_pickle=False)|allow_pickle=True|load_memmap\(|tensordict\.load\("
    r"|yaml\.(?:load|unsafe_load|full_load)\(",
    re.MULTILINE,
)


def test_no_source_unpickles():
    sources = [
        path for name in ("dsrl_torchrl", "envs", "examples", "benchmarks") for path in (ROOT / name).rglob("*.py")
    ]
    found = {str(path): UNPICKLES.findall(path.read_text()) for path in sources}
    assert len(sources) > 100 and not {path: calls for path, calls in found.items() if calls}
