"""What the tests of the command share."""

import pytest


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch):
    """Run folders go to ``runs/`` below the working directory."""
    monkeypatch.chdir(tmp_path)
