"""`make run`, as a newcomer types it: it ends with the ready line, and Ctrl-C ends
everything. On a tree that is built already; the cold build is what CI itself does.
"""

import os
import signal
import subprocess

from nf import ROOT, eventually, free_port


def test_make_run_ends_with_the_ready_line(tmp_path):
    log = tmp_path / "make.log"
    port = free_port()
    surroundings = {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("CONFIG", "STATE", "DATA")}
    arguments = f"--port {port} --data-dir {tmp_path / 'dev'}"
    with log.open("wb") as out:
        child = subprocess.Popen(["make", "run", f"ARGS={arguments}"], cwd=ROOT, stdout=out, stderr=out,
                                 env={**os.environ, **surroundings}, start_new_session=True)
    try:
        def ready():
            assert child.poll() is None, log.read_text()
            return "Ready in" in log.read_text()

        eventually("the ready line", ready, 120)
        text = log.read_text()
        assert f"http://127.0.0.1:{port}" in text and "nf run" in text, "addresses, and the next command to try"
        # As the terminal does it: to the whole foreground group.
        os.killpg(child.pid, signal.SIGINT)
        child.wait(timeout=20)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
