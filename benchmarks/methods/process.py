"""The process of one cell, or of what its task shares: steps of ``dsrl``, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dsrl_torchrl.cli.main import main as dsrl
from dsrl_torchrl.collect.spawned_process import ask_to_end_with_parent

RUN = "from benchmarks.methods.process import main; main()"
FACTS = "frozen.json"


def command(steps: Sequence[str], words: Sequence[str]) -> list[str]:
    """Of a cell; a step ``frozen`` makes what a task shares."""
    return [sys.executable, "-c", RUN, ",".join(steps), *words]


def main() -> None:
    """In that process, which ends with its parent."""
    ask_to_end_with_parent()
    steps, *words = sys.argv[1:]
    if steps == "frozen":
        make_shared(Path(words[0]), words[1] == "True", words[2:])
        return
    for step in steps.split(","):
        try:
            dsrl([step, *words])
        except (Exception, SystemExit) as error:
            interrupted = isinstance(error, SystemExit) and error.code != 1
            if step != "diagnose" or interrupted:
                raise
            print(f"no diagnosis: {error!r}")  # what it cannot measure takes nothing from the result


def make_shared(folder: Path, rollouts: bool, words: list[str]) -> None:
    """The base policy's checkpoint by ``dsrl base``, the rollouts of its prior, and at last a file: hashes, words."""
    from benchmarks.methods.matrix import DEMONSTRATIONS, frozen_words
    from dsrl_torchrl.cli.compose import compose
    from dsrl_torchrl.cli.lock import locked
    from dsrl_torchrl.cli.run import Run
    from dsrl_torchrl.files import file_record, write_json
    from dsrl_torchrl.policies import load_policy

    dsrl(["base", *words, f"output={folder.parent}", f"name={folder.name}"])
    if rollouts:
        config = compose([*words, *frozen_words(folder), f"output={folder}", "name=rollouts"])
        with locked(config.folder), Run(config) as run:
            run.offline_data()
    base = load_policy(folder / "base").content_hash()
    facts = {"base": base, "demonstrations": file_record(folder / DEMONSTRATIONS)["sha256"]} | {"words": words}
    write_json(folder / FACTS, facts)
