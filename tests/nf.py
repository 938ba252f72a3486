"""Real `nf` processes for tests: start, ask, kill, and leave nothing behind.

Every process runs on free loopback ports with data, run files and contexts below
a temporary folder. Waiting is `eventually`, never a bare sleep. It does not know
what a test checks.
"""

import json
import os
import random
import signal
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", Path.home() / ".cache/neural-fabric/target"))
NF = Path(os.environ.get("NF", TARGET / "debug/nf"))
STEP = 0.05  # seconds between two looks
GIVEN = set()  # first ports that `free_port` gave to this test run


def eventually(what, look, limit=20.0):
    """What `look` returns, once it is truthy and raises nothing; fails with the last reason."""
    until = time.monotonic() + limit
    last = "nothing yet"
    while True:
        try:
            value = look()
            if value:
                return value
            last = f"got {value!r}"
        except (AssertionError, OSError, KeyError, ValueError, requests.RequestException) as error:
            last = f"{type(error).__name__}: {error}"
        if time.monotonic() > until:
            raise AssertionError(f"{what}: not within {limit} s; {last}")
        time.sleep(STEP)


def holds(what, look, seconds):
    """Fails as soon as `look` is not true any more; returns after so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert look(), f"{what}: no longer, {until - time.monotonic():.1f} s before the end"
        time.sleep(10 * STEP)


def free_port():
    """A port P such that P..P+9 are free: public, peer, and what a test adds.

    It is let go before the process binds it, so it comes from below the ports that
    Linux hands out by itself (32768 on): there, any connection of anybody could take
    it in between. Replicas have 17000-17699 and 20000-31999.
    """
    for start in random.sample(range(9_000, 16_900, 10), 300):
        if start in GIVEN:
            continue
        with ExitStack() as held:
            try:
                for port in range(start, start + 10):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        GIVEN.add(start)
        return start
    raise AssertionError("no ten free ports in a row between 9000 and 16900")


def free_dev_port():
    """The same for `nf dev`, whose replicas' ports follow from its own (src/cli/dev/ports.rs): another
    group on this machine may have the same ones, and each port that it uses costs a replica a try."""
    for _ in range(40):
        start = free_port()
        firsts = [20_000 + public // 10 % 20 * 600 for public in range(start, start + 30, 10)]
        try:
            for port in (first + n for first in firsts for n in range(16)):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return start
    return free_port()


class Process:
    """One `nf` process and what it wrote."""

    def __init__(self, folder, args, settings=None, name="nf", program=NF):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log = folder, folder / f"{name}.log"
        # Nothing of the tester's own settings may leak in.
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "NF_VENV")}
        self.environment = {
            **kept,
            "XDG_CONFIG_HOME": str(folder / "config"),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_DATA_HOME": str(folder / "share"),
            "NF_RUN_DIR": str(folder / "runs"),
            **{k: str(v) for k, v in (settings or {}).items()},
        }
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                [str(program), *args], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def wait(self, limit):
        """The exit code; fails when it takes longer."""
        return self.child.wait(timeout=limit)

    def stop(self, limit=15):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
        try:
            self.child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise AssertionError(f"did not end within {limit} s of Ctrl-C:\n{self.output[-2000:]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def node_keys(lab, name):
    """Where a worker of that name has its keys, made by the laboratory's own authority."""
    keys = lab / name / "tls"
    make = ["tls", "cert", "create", "--ca", lab / "ca", "--role", "node", "--name", name, "--dir", keys]
    subprocess.run([str(NF), *map(str, make)], check=True, capture_output=True, timeout=60)
    return keys


class Group(Process):
    """A group that answers on `urls`, simulated, with a model store of its own."""

    def __init__(self, folder, args, settings, name):
        self.store = folder / "store"
        self.store.mkdir(parents=True, exist_ok=True)
        settings = {"MODEL_STORE_URL": f"file://{self.store}", **settings}
        super().__init__(folder, args, settings, name)
        self.urls = []
        self.runs = folder / "runs"

    def ready(self, url):
        return requests.get(f"{url}/health/ready", timeout=2).status_code == 200

    def wait_ready(self):
        def look():
            assert self.child.poll() is None, f"ended with {self.child.returncode}:\n{self.output[-2000:]}"
            nodes = requests.get(f"{self.urls[0]}/resources", timeout=2).json()["nodes"]
            # A member answers a moment before its own agent has registered its node.
            return all(self.ready(url) for url in self.urls) and any(node["state"] == "Ready" for node in nodes)

        try:
            eventually("ready", look)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output[-3000:]}") from None

    def url(self, member=0):
        return self.urls[member]

    def call(self, method, path, body=None, member=0, **options):
        if body is not None:
            options["json"] = body
        return requests.request(method, self.url(member) + path, timeout=options.pop("timeout", 15), **options)

    def get(self, path, member=0):
        answer = self.call("GET", path, member=member)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    def nf(self, *args, limit=60, code=0):
        """Runs `nf` as a person beside this group would; returns its stdout."""
        env = {**self.environment, "NF_ADDR": ",".join(self.urls)}
        done = subprocess.run([str(NF), *args], env=env, capture_output=True, text=True, timeout=limit, check=False)
        told = f"nf {' '.join(args)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == code, told
        return done.stdout

    def nf_json(self, *args):
        return json.loads(self.nf(*args, "-o", "json"))

    def job(self, request_id, member=0):
        return self.get(f"/schedule/{request_id}", member)

    def explain(self, request_id, member=0):
        return self.get(f"/schedule/{request_id}?explain=true", member)

    def wait_state(self, request_id, *states, limit=30, member=0):
        def look():
            job = self.job(request_id, member)
            assert job["state"] in states, f"{job['state']}, {job['replicas']}, {job['reasons']}"
            return job

        return eventually(f"job {request_id} is {' or '.join(states)}", look, limit)

    def run_file(self, request_id):
        return json.loads((self.runs / f"{request_id}.json").read_text())


class Serve(Group):
    """One bare `nf serve`."""

    def __init__(self, folder, settings=None, args=()):
        port = free_port()
        # Replica ports of its own: an `nf dev` of the same test run uses the default ones.
        own = {"SCHEDULER_PORT": port, "NF_DATA_DIR": folder / "data", "NF_PORT_RANGE": "17000-17499", **(settings or {})}
        super().__init__(folder, ["serve", *args], own, "serve")
        self.urls = [f"http://127.0.0.1:{port}"]

    def __enter__(self):
        self.wait_ready()
        return self


class Dev(Group):
    """`nf dev`: three members, as it writes them down."""

    def __init__(self, folder, settings=None, args=()):
        port = free_dev_port()
        self.data = folder / "data"
        own = ["--data-dir", str(self.data), "--port", str(port), "--set", f"run_dir={folder / 'runs'}"]
        super().__init__(folder, ["dev", *own, *args], settings or {}, "dev")

    def __enter__(self):
        def said():
            assert self.child.poll() is None, f"ended with {self.child.returncode}:\n{self.output[-2000:]}"
            return "Ready in" in self.output

        eventually("nf dev says that it is ready", said, 40)
        self.urls = [member["api"] for member in self.members()]
        self.wait_ready()
        return self

    def members(self):
        return json.loads((self.data / "dev.json").read_text())["members"]

    def member_pid(self, member):
        return self.members()[member]["pid"]

    def kill(self, member):
        os.kill(self.member_pid(member), signal.SIGKILL)

    def restart(self, member):
        old = self.member_pid(member)
        self.nf("dev", "restart", self.members()[member]["name"], "--data-dir", str(self.data))
        eventually("another process has taken its place", lambda: self.member_pid(member) != old)
        self.wait_ready()

    def leader(self):
        """Index of the member that leads."""

        def look():
            for member in range(len(self.urls)):
                try:
                    health = self.call("GET", "/health", member=member, timeout=1).json()
                except requests.RequestException:
                    continue
                if health["role"] == "leader":
                    return (member,)
            return None

        return eventually("somebody leads", look)[0]
