"""Makes `nf.py` importable from every folder of tests, and sees to it that no test leaves a replica behind."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

LINGER = 5.0  # seconds that a replica which was told to stop may take to be gone


def replicas():
    """Programs that an agent on this machine started: {pid: command line}."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            started = b"\0NF_REPLICA_DIR=" in b"\0" + (process / "environ").read_bytes()
            words = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
            if started and words:
                found[int(process.name)] = words[:300]
        except OSError:
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def no_replica_stays():
    """Replicas outlive their agent, so whoever ends a group has to end what runs on it first."""
    others = replicas()
    yield
    until = time.monotonic() + LINGER
    while (left := {pid: words for pid, words in replicas().items() if pid not in others}) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"left behind: {left}"
