"""Worker processes by themselves: quiet, and nothing is left of one that has been closed."""

from __future__ import annotations

import gc
import multiprocessing.util
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from multiprocessing import resource_sharer

import pytest

from dsrl_torchrl.collect.spawned_process import (
    LONGEST_TEMPORARY_FOLDER,
    WorkerProcess,
    _stderr_into,
    check_temporary_folder,
    silence_resource_sharer,
    silence_resource_tracker,
)
from dsrl_torchrl.errors import UserError


def holdings():
    """Open files, threads, processes and finalisers of this process."""
    gc.collect()
    processes = sum(issubclass(type(thing), multiprocessing.process.BaseProcess) for thing in gc.get_objects())
    finalisers = len(multiprocessing.util._finalizer_registry)
    return len(os.listdir("/proc/self/fd")), threading.active_count(), processes, finalisers


def test_nothing_is_left_of_a_closed_process():
    def start_and_close(target, *arguments, kill=False):
        process = WorkerProcess(target=target, args=arguments)
        process.start()
        if kill:
            process.kill()
        process.join()
        process._reader.join()
        process.close()

    silence_resource_tracker()
    before = holdings()
    for _ in range(3):
        start_and_close(os.getpid)
        start_and_close(time.sleep, 60, kill=True)
    assert holdings() == before


def leave(code):  # sys.exit itself can't be pickled once wandb has put its own in its place
    raise SystemExit(code)


def test_who_exits_without_a_word_failed():
    process = WorkerProcess(target=leave, args=(3,))
    process.start()
    process.join()
    assert process.end() == "failed: it said nothing (its traceback: collector.num_workers=1)"
    process.close()


def test_nothing_is_left_of_a_process_that_could_not_start():
    silence_resource_tracker()
    before = holdings()
    for _ in range(3):
        try:
            WorkerProcess(target=lambda: None).start()  # a lambda can't be pickled
        except Exception as error:
            assert "pickle" in str(error)
    assert holdings() == before


def test_two_threads_that_start_processes_leave_stderr_where_it_is():
    before = os.fstat(2)
    inside, left = threading.Event(), threading.Event()

    def other():
        with _stderr_into(os.open(os.devnull, os.O_WRONLY)):
            inside.set()
            left.wait()

    thread = threading.Thread(target=other)
    with _stderr_into(os.open(os.devnull, os.O_WRONLY)):
        thread.start()
        inside.wait(0.3)
    left.set()
    thread.join()
    assert os.path.samestat(before, os.fstat(2))


def test_who_dies_while_it_asks_for_a_tensor_is_no_traceback(monkeypatch, capfd):
    said = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: said.append(kind))
    silence_resource_sharer()
    silence_resource_sharer()  # once is enough
    address, _ = resource_sharer.DupFd(0)._id
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(address)
    resource_sharer.stop()  # after what it was asked
    assert said == [] and capfd.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("what is wrong elsewhere"), None)
    assert said == [ValueError]


@pytest.mark.parametrize("excess", [0, 1])
def test_a_temporary_folder_without_room_for_sockets_is_one_line(monkeypatch, excess):
    """As long as a socket's path may be, and a byte longer."""
    short = tempfile.mkdtemp(dir="/tmp")
    folder = f"{short}/" + "x" * (LONGEST_TEMPORARY_FOLDER - len(short) - 1 + excess)
    monkeypatch.setattr(tempfile, "tempdir", folder)
    path = f"{folder}/pymp-12345678/listener-12345678"
    os.makedirs(os.path.dirname(path))
    try:
        with (
            socket.socket(socket.AF_UNIX) as listener,
            pytest.raises(OSError, match="too long") if excess else nullcontext(),
        ):
            listener.bind(path)
    finally:
        shutil.rmtree(short)
    with pytest.raises(UserError, match="set TMPDIR to a shorter one") if excess else nullcontext():
        check_temporary_folder()


def test_no_temporary_folder_is_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", list)
    with pytest.raises(UserError, match="need a folder for temporary files that can be written: set TMPDIR"):
        check_temporary_folder()
