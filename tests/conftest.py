"""Makes `nf.py` importable from every folder of tests, and sees to it that no test leaves a replica behind."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

LINGER = 5.0  # seconds that a replica which was told to stop may take to be gone


def replicas(below):
    """Programs that agents of this test run started: {pid: command line}."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            started = f"\0NF_REPLICA_DIR={below}/".encode() in b"\0" + (process / "environ").read_bytes()
            words = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
            if started and words:
                found[int(process.name)] = words[:300]
        except OSError:
            continue
    return found


@pytest.fixture(scope="module", autouse=True)
def no_replica_stays(tmp_path_factory):
    """Replicas outlive their agent, so whoever ends a group has to end what runs on it first."""
    yield
    below, until = tmp_path_factory.getbasetemp(), time.monotonic() + LINGER
    while (left := replicas(below)) and time.monotonic() < until:
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"left behind: {left}"
