"""``suite=metaworld task=push-v3``: the tasks of a simulator by its own names for them."""

from __future__ import annotations

from collections.abc import Sequence

from dsrl_torchrl.errors import UserError

#: A suite is a file of ``conf/task/suite/``: what its tasks have in common.
FOLDER = "suite"
#: How the task of a suite is named.
NAMES = ("task", "env_id")


def expand(words: Sequence[str]) -> list[str]:
    """A command line in which ``suite=S task=T`` has become ``task=suite/S task.env.env_id=T``.

    ``env_id=T`` says the same as ``task=T``. Without a suite the words are left as they are.

    Raises:
        UserError: a task without its suite, or a suite without a task.
    """
    pairs = [word.partition("=")[::2] for word in words]
    suite = {name: value for name, value in pairs}.get("suite")
    if suite is None:
        for name, value in pairs:
            if name == "env_id":
                raise UserError(f"env_id={value} needs its suite: suite=<name> env_id={value}")
        return list(words)
    if not {"task", "env_id", "task.env.env_id", "experiment"} & {name.lstrip("+") for name, _ in pairs}:
        raise UserError(f"suite={suite} needs a task: suite={suite} task=<name>")
    expanded = [f"task={FOLDER}/{suite}"]
    for word, (name, value) in zip(words, pairs, strict=True):
        if name != "suite":
            expanded.append(f"task.env.env_id={value}" if name in NAMES else word)
    return expanded
