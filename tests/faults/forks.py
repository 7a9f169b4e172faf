"""``dsrl`` commands out of one process that has imported everything: a try costs a second in place of five.

``python -m tests.faults.forks`` takes one command after the other as a line of JSON on its stdin. For each it forks a
child, prints the child's process id, and when that has ended how it ended. The child does what ``python -m
dsrl_torchrl`` does after its imports, to the interpreter's exit, in a session of its own.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
from typing import Any

from dsrl_torchrl.cli.main import main

#: What changes the file system, by the names of Python's audit events.
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR


def serve() -> None:
    """Returns in the children alone."""
    for line in iter(sys.stdin.readline, ""):
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(command)
            return
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    sys.exit()


def _become(command: dict[str, Any]) -> None:
    """The command's arguments, streams and fault."""
    os.setsid()
    os.chdir(command["working_directory"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(command[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = ["dsrl", *command["arguments"]]
    if command["file_size"] is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (command["file_size"], hard))
    if command["folder"] is not None:
        sys.addaudithook(_Operations(command["folder"], command["fault"]))


class _Operations:
    """Notes each operation below a folder in ``<folder>.operations``, and sends this process the signal of a fault.

    ``fault`` is ``(n, signal)``, before the ``n``-th operation, or ``(text, signal)``, before the first with this text
    in its path.
    """

    def __init__(self, folder: str, fault: tuple[int | str, int] | None) -> None:
        self.folder, self.fault, self.count = folder, fault, 0
        self.notes = os.open(f"{folder}.operations", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or (event == "open" and not arguments[2] & WRITING):
            return
        path = _path(*arguments)
        if not path.startswith(self.folder + os.sep):
            return
        self.count += 1
        os.write(self.notes, f"{event} {path[len(self.folder) + 1 :]}\n".encode())
        if self.fault is not None and (self.fault[0] == self.count or str(self.fault[0]) in path):
            number, self.fault = self.fault[1], None
            os.kill(os.getpid(), number)


def _path(name: Any, *arguments: Any) -> str:
    """What an operation is about; ``shutil.rmtree`` names files relative to an open folder."""
    if isinstance(name, int):
        return ""
    path, folder = os.fsdecode(name), arguments[-1]
    if not path.startswith(os.sep) and type(folder) is int and folder >= 0:
        with contextlib.suppress(OSError):
            return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return path


if __name__ == "__main__":
    import h5py  # noqa: F401  what the command imports late
    import matplotlib.pyplot as plt

    import dsrl_torchrl.cli.compose
    import dsrl_torchrl.cli.lock
    import dsrl_torchrl.cli.run  # noqa: F401

    plt.figure().savefig(io.BytesIO())  # which finds the fonts
    plt.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the suite was started in the background
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not fork"
    print("ready", flush=True)
    serve()
    main()
