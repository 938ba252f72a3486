"""A real model behind the gateway follows its load: twelve clients without a pause make one
replica several, one slow client makes them one again, nobody lets it sleep, and the next call
wakes it; the leader is killed at the peak. No request fails through all of it.
"""

import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import requests
from nf import ROOT, Dev, eventually, holds
from worker import end_all

EXAMPLE = ROOT / "docs/examples/onnx"
SCALING = {"min": 0, "max": 4, "concurrency": 2, "max_wait": "2s", "cold_start": "5s", "idle": "5s"}
JOB = {"tenant_id": "t1", "model_id": "magika", "model_version": "v1", "resources": {"gpu": 0.1}, "scaling": SCALING}
CLIENTS = 12


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    told = subprocess.run(["sh", str(ROOT / "tests/e2e/fetch_magika.sh")], capture_output=True, text=True, check=True)
    magika = {key: Path(value) for key, value in (line.split("=", 1) for line in told.stdout.splitlines())}
    folder = tmp_path_factory.mktemp("scale")
    try:
        with Dev(folder, {"NF_PYTHON": magika["python"]}, ["--set", "scale_every=500ms", "--set", "scale_settle=6s"]) as group:
            publish(group, magika)
            yield group
    finally:
        end_all(folder)


def publish(group, magika):
    files = group.folder / "magika"
    files.mkdir()
    for file in (magika["model"], magika["config"], EXAMPLE / "onnx_server.py"):
        shutil.copy(file, files)
    group.nf("model", "publish", str(files), "--model", "magika", "--version", "v1", "--profile", "onnx-example")


class Clients:
    """Callers that ask without a pause, or with one, through those members that they know of."""

    def __init__(self, group):
        self.source = (ROOT / "src/core/state.rs").read_bytes()
        self.doors, self.pause = list(group.urls), 0.0
        self.answers, self.failures, self.threads = [0] * CLIENTS, [], []
        self.wanted = 0

    def call(self, door, session=requests):
        answer = session.post(f"{door}/serve/t1/magika/infer", data=self.source, timeout=60)
        assert answer.status_code == 200 and answer.json()["label"] == "rust", f"{answer.status_code} {answer.text}"

    def run(self, number):
        session = requests.Session()
        while number < self.wanted:
            door = self.doors[(number + self.answers[number]) % len(self.doors)]
            try:
                self.call(door, session)
                self.answers[number] += 1
            except (requests.RequestException, AssertionError, ValueError, KeyError) as error:
                self.failures.append(f"{time.time():.3f} {door} {error!r}")
            time.sleep(self.pause)

    def set(self, clients, pause=0.0):
        """So many go on, or begin; the others end with the answer that they wait for."""
        there, self.wanted, self.pause = self.wanted, clients, pause
        for thread in self.threads[clients:]:
            thread.join(90)
        del self.threads[clients:]
        for number in range(there, clients):
            self.threads.append(threading.Thread(target=self.run, args=(number,), daemon=True))
            self.threads[-1].start()

    def leave(self, door):
        """Nobody asks at that member any more, and all that were asked have answered."""
        self.doors.remove(door)
        seen = list(self.answers)
        for number in range(self.wanted):
            eventually("each has an answer from elsewhere", lambda n=number: self.answers[n] > seen[n] + 1, 30)


def test_a_real_model_goes_up_down_to_sleep_and_wakes_and_no_request_fails(group):
    job = group.call("POST", "/schedule", JOB).json()["request_id"]
    door = [0]

    def ready():
        return group.job(job, door[0])["ready"]

    def recommended():
        advice = group.nf_json("autoscale", "status", "--tenant", "t1")["items"][0]["autoscaler"]
        return advice["current"], advice["desired"]

    eventually("it serves", lambda: ready() == 1, 90)
    clients = Clients(group)
    try:
        clients.set(CLIENTS)
        eventually("it grows", lambda: ready() >= 3, 60)

        # At the peak the leader dies. Who is connected to it loses that connection, whatever anybody does;
        # everybody else notices nothing.
        leader = group.leader()
        door[0] = (leader + 1) % len(group.urls)
        clients.leave(group.urls[leader])
        answered, most = sum(clients.answers), ready()
        group.kill(leader)
        holds("nothing is taken away", lambda: ready() >= most, 5)
        group.restart(leader)
        eventually("and they go on answering", lambda: sum(clients.answers) > answered + 10 * CLIENTS, 30)
        assert clients.failures == [], clients.failures[:3]

        clients.set(1, pause=0.3)
        eventually("one is enough for one that asks now and then", lambda: ready() == 1, 150)
        eventually("and as many are recommended", lambda: recommended() == (1, 1), 15)
        assert clients.failures == [], clients.failures[:3]
    finally:
        clients.set(0)
    eventually("it sleeps", lambda: ready() == 0, 120)
    eventually("as one that is asleep", lambda: group.get("/services", door[0])["items"][0]["state"] == "ScaledToZero", 30)
    clients.call(group.urls[door[0]])
    assert ready() == 1
    assert clients.failures == [] and all(n > 0 for n in clients.answers), (clients.failures[:3], clients.answers)

    # Whoever led wrote down what it saw: played again, it comes to the same.
    journals = sorted(group.data.rglob("autoscale.jsonl"))
    assert len(journals) >= 2, journals
    for journal in journals:
        group.nf("autoscale", "replay", str(journal))
