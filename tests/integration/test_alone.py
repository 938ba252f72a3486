"""What goes on where a worker's agent, or the driver below it, does not: logs stay short while no agent is there to cut
them, and replicas are adopted and served by an agent whose driver hangs.
"""

import json
import shutil
import signal
import subprocess
import time

import pytest
from nf import eventually, holds
from worker import SERVER, Asker, address, lab, processes

# Says some megabytes a second, and answers.
CHATTY = (
    """
import threading
def talk():
    line = "x" * 1023
    while True:
        for _ in range(512): print(line)
        time.sleep(0.1)
"""
    + SERVER.replace("Server((", "threading.Thread(target=talk, daemon=True).start()\nServer((", 1)
)
ROTATE_AT = 8 << 20  # as src/agent/logs.rs has it
BETWEEN = 30 << 20  # more than it says between two looks on a busy machine, and less than it says in all
# A driver that hangs for as long as the file is there.
DRIVER = """
#include <stdlib.h>
#include <unistd.h>
int nvmlInit_v2(void) { while (access(getenv("DRIVER_HANGS"), F_OK) == 0) usleep(10000); return 9; }
"""


def publish(group, folder, model, program):
    files = folder / model
    files.mkdir()
    (files / "server.py").write_text(program)
    runtime = folder / f"{model}.json"
    runtime.write_text(json.dumps({"argv": ["{python}", "-u", "{model}", "{host}", "{port}"]}))
    group.member.nf("model", "publish", str(files), "--model", model, "--version", "v1", "--runtime", str(runtime))


def on_worker(group, name, **more):
    group.schedule(name, constraints={"node": "w1"}, **{"resources": {"cpu": 0.1}, **more})
    return group.replicas(name)[0]


def test_a_log_stays_short_while_no_agent_is_there(tmp_path):
    with lab(tmp_path) as group:
        publish(group, tmp_path, "chatty", CHATTY)
        on_worker(group, "chatty", model_id="chatty")
        pids, keepers = group.pids(), lambda: processes("keep-logs", f"{tmp_path}/")
        keeper = eventually("logs are kept", keepers)
        group.end(signal.SIGKILL)
        (log,) = (tmp_path / "worker/data/nodes/w1/logs/w1").glob("chatty.*.log")
        before, seen = log.with_suffix(".log.1"), set()

        def short():
            if before.exists():
                seen.add(before.stat().st_ino)
            return log.stat().st_size < ROTATE_AT + BETWEEN and len(list(log.parent.glob("chatty.*"))) <= 3

        holds("it is short", short, 16)
        assert len(seen) > 2, "it was cut again and again, so it said more than is left of it"
        assert group.pids() == pids, "and it runs on"
        group.start()
        assert (group.pids(), keepers()) == (pids, keeper), "adopted, and the same keeper"
        group.stop("chatty")
        group.end(signal.SIGINT)
        eventually("with the last replica and the agent the keeper ends", lambda: keepers() == [], 15)
        group.start()


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler for a driver that hangs")
def test_replicas_are_adopted_and_served_while_the_driver_hangs(tmp_path):
    driver, hangs = tmp_path / "driver", tmp_path / "hangs"
    driver.mkdir()
    (driver / "nvml.c").write_text(DRIVER)
    make = ["cc", "-shared", "-fPIC", "-o", driver / "libnvidia-ml.so.1", driver / "nvml.c"]
    subprocess.run([str(word) for word in make], check=True, timeout=60)
    with lab(tmp_path) as group:
        replica = on_worker(group, "cpu")
        pids, asker = group.pids(), Asker(address(replica))
        group.end(signal.SIGKILL)
        # As an earlier start wrote it down: there is a GPU.
        gpu = {"uuid": "GPU-1", "kind": "Gpu", "device_type": "T4-16G", "memory": 16 << 30, "island": 0, "mig_profile": None,
               "healthy": True, "sharing": "None"}
        (tmp_path / "worker/data/gpus.json").write_text(json.dumps([gpu]))
        hangs.touch()
        group.settings |= {"LD_LIBRARY_PATH": driver, "DRIVER_HANGS": hangs}
        began = time.monotonic()
        group.start()
        node = lambda: group.node("w1")
        eventually("its node is said to be there", lambda: node()["state"] == "Ready" and not node()["simulated"])
        assert time.monotonic() - began < 15, "before it would be Unknown"
        assert [d["health"] for d in node()["devices"]] == ["Unhealthy"], "nobody gets what can't be seen"
        assert group.pids() == pids and group.replicas("cpu")[0]["generation"] == replica["generation"]
        assert address(replica) in [e["address"] for e in group.member.get("/endpoints?tenant_id=t1")["items"] if e["traffic"]]
        # What needs no device starts there, and what runs there stops.
        on_worker(group, "second")
        group.member.nf("stop", "second", "--yes")
        group.member.wait_state("second", "Cancelled")
        assert "the GPU driver does not answer" in group.worker.output
        assert asker.end() == []
        group.stop("cpu")
        hangs.unlink()
