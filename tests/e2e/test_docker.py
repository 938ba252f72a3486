"""Replicas in containers on a real engine: confined as promised, limited, logged, drained,
stopped with nothing left; found again by the next agent, whether the last one was stopped
or killed, while a client asks without pause; and strangers' containers untouched.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
from engine import Absent, Engine
from nf import NF, Serve, eventually

MIB = 1 << 20
LABEL = "io.neural-fabric."
FIRST_PORT, LAST_PORT = 17700, 17999


@pytest.fixture(scope="module")
def engine():
    try:
        engine = Engine()
    except Absent as why:
        print(f"\n*** SKIPPED: containers are not tested here: {why}", file=sys.__stderr__, flush=True)
        pytest.skip(f"no engine can start: {why}")
    yield engine
    engine.close()


class Lab:
    """A member whose process can end and begin again on the same data and ports."""

    def __init__(self, folder, engine):
        self.folder, self.engine, self.member = folder, engine, None
        self.settings = {"NF_CONTAINER_ENGINE": engine.socket, "MAX_TENANT_GPUS": "16", "NF_STOP_GRACE": "2s",
                         "NF_PORT_RANGE": f"{FIRST_PORT}-{LAST_PORT}"}
        self.start()

    def start(self):
        again = {"SCHEDULER_PORT": self.settings["SCHEDULER_PORT"]} if "SCHEDULER_PORT" in self.settings else {}
        self.member = Serve(self.folder, {**self.settings, **again})
        self.settings["SCHEDULER_PORT"] = self.member.environment["SCHEDULER_PORT"]
        self.member.urls = [f"http://127.0.0.1:{self.settings['SCHEDULER_PORT']}"]
        self.member.wait_ready()

    def publish(self, version, **container):
        files = self.folder / f"model-{version}"
        (files / "sub").mkdir(parents=True)
        (files / "sub/model.onnx").write_text("the model's bytes\n")
        program = {
            "argv": ["/server", "{port}", "{file:sub/model.onnx}"],
            "ready": {"path": "/health", "timeout_s": 30},
            "metrics": {"path": "/metrics", "running": "requests_running"},
            "drain": {"path": "/drain", "timeout_s": 20},
            **container.pop("program", {}),
        }
        runtime = self.folder / f"runtime-{version}.json"
        runtime.write_text(json.dumps({"image": "nf-test:v1", "port": 8123, "program": program, **container}))
        self.member.nf("model", "publish", str(files), "--model", "m", "--version", version, "--runtime", str(runtime))

    def schedule(self, request_id, version="v1", **more):
        body = {"tenant_id": "t1", "model_id": "m", "model_version": version, "request_id": request_id,
                "resources": {"gpu": 0.1, "cpu": 0.5, "mem": "64MiB"}, **more}
        answer = self.member.call("POST", "/schedule", body)
        assert answer.status_code in (201, 202), answer.text

    def ready(self, request_id, generation=None):
        """Its address, once it answers."""

        def look():
            (replica,) = self.member.job(request_id)["replicas"]
            assert replica["status"] == "Ready" and generation in (None, replica["generation"]), (replica, self.log(request_id))
            return replica["placement"]["address"]

        return eventually(f"{request_id} is ready", look, 60)

    def log(self, request_id):
        logs = (self.folder / "data/nodes/node-1/logs/node-1").glob(f"{request_id}.0.*.log")
        return "".join(path.read_text(errors="replace") for path in logs)

    def containers(self, request_id=None):
        of = f"={request_id}" if request_id else ""
        return self.engine.containers(f"label={LABEL}request{of}")

    def stop(self, request_id):
        self.member.nf("stop", request_id, "--yes")
        self.member.wait_state(request_id, "Cancelled", limit=60)
        eventually("no container is left", lambda: not self.containers(request_id))


@pytest.fixture(scope="module")
def lab(tmp_path_factory, engine):
    lab = Lab(tmp_path_factory.mktemp("docker"), engine)
    lab.publish("v1")
    yield lab
    lab.member.stop()


def get(address, path, **more):
    answer = requests.get(f"http://{address}{path}", timeout=more.pop("timeout", 10), **more)
    assert answer.status_code == 200, answer.text
    return answer.text


def first_of(address, *paths):
    """A control file of either version of control groups."""
    return next(text for text in (get(address, f"/cat{path}").strip() for path in paths) if not text.startswith("No such"))


class Asker(threading.Thread):
    """Asks one replica without pause."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.address, self.answers, self.failures, self.over = address, 0, [], threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(0.01):
            try:
                get(self.address, "/health")
                self.answers += 1
            except (requests.RequestException, AssertionError) as error:
                self.failures.append(f"{time.time():.3f} {error!r}")

    def end(self):
        self.over.set()
        self.join(20)
        return self.failures


def test_a_container_runs_confined_and_limited(lab):
    lab.schedule("confined")
    address = lab.ready("confined")
    status = dict(line.split(":\t", 1) for line in get(address, "/cat/proc/self/status").splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["65532"] * 4 and int(status["CapBnd"], 16) == 0 == int(status["CapEff"], 16)
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert get(address, "/cat/model/sub/model.onnx") == "the model's bytes\n"
    for path in ("/model/sub/new", "/etc/new", "/new"):
        assert "Read-only" in get(address, f"/write{path}"), path
    assert get(address, "/write/tmp/new") == "written"
    groups = "/sys/fs/cgroup"
    assert int(first_of(address, f"{groups}/memory/memory.limit_in_bytes", f"{groups}/memory.max")) == 64 * MIB
    assert first_of(address, f"{groups}/cpu/cpu.cfs_quota_us", f"{groups}/cpu.max").split()[0] == "50000"
    assert first_of(address, f"{groups}/pids/pids.max", f"{groups}/pids.max") == "16384"
    names = {line.split("=")[0] for line in get(address, "/env").splitlines()}
    assert names - {"PATH", "HOSTNAME"} == {
        "HOME", "TMPDIR", "LANG", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NF_REPLICA_KEY", "NF_MODEL", "NF_PORT",
        "NF_MODEL_VERSION", "NF_MODEL_DIR", "NF_MODEL_SHA256", "NF_HOST", "NF_RANK", "NF_SIZE"}, "nothing of the agent's own"
    (found,) = lab.containers("confined")
    labels = found["Config"]["Labels"]
    wanted = {"node": "node-1", "replica": "0", "generation": "1", "group": "neural-fabric", "tenant": "t1"}
    assert {key: labels[LABEL + key] for key in wanted} == wanted
    port = found["NetworkSettings"]["Ports"]["8123/tcp"]
    assert [f"{p['HostIp']}:{p['HostPort']}" for p in port] == [address], "published where the node says, and nowhere else"
    assert lab.member.job("confined")["runtime"] == "docker"
    lab.stop("confined")


def test_the_limit_of_memory_is_real(lab):
    lab.schedule("hungry")
    address = lab.ready("hungry")
    with pytest.raises(requests.RequestException):
        get(address, "/eat", timeout=30)
    eventually("it says why", lambda: "it used up its memory" in lab.log("hungry"), 30)
    lab.ready("hungry", generation=2)
    assert "RuntimeFailed" in lab.member.nf("get", "events")
    lab.stop("hungry")


def test_logs_are_followed_and_have_an_end(lab):
    lab.schedule("talks")
    address = lab.ready("talks")
    eventually("both outputs", lambda: "hello from uid 65532" in (log := lab.log("talks")) and "its other output" in log)
    env = {**lab.member.environment, "NF_ADDR": lab.member.url()}
    follower = subprocess.Popen([str(NF), "logs", "-f", "talks"], env=env, stdout=subprocess.PIPE, text=True)
    try:
        get(address, "/say/50")
        for line in follower.stdout:
            if line.strip().endswith("line 49 of 50"):
                break
        else:
            raise AssertionError("the follower saw the end of its log before what was said")
    finally:
        follower.kill()
        follower.wait()
    lab.stop("talks")


def test_of_bursts_of_output_every_line_is_told_once(lab):
    lab.schedule("bursts")
    address = lab.ready("bursts")
    env = {**lab.member.environment, "NF_ADDR": lab.member.url()}
    heard = lab.folder / "heard"
    with heard.open("wb") as out:
        follower = subprocess.Popen([str(NF), "logs", "-f", "bursts"], env=env, stdout=out, stderr=out)
    # A megabyte each, four as the engine keeps them; in all more than the 8 MiB at which either log begins anew.
    bursts = [45_000 + n for n in range(10)]
    try:
        eventually("it is followed", lambda: b"ready" in heard.read_bytes())
        for lines in bursts:
            get(address, f"/say/{lines}", timeout=60)
            # Nothing else is said meanwhile that could bring it along.
            eventually("its last line is there", lambda: f"line {lines - 1} of {lines}\n".encode() in tail(heard), 30)
    finally:
        follower.kill()
        follower.wait()
    said = [line.split()[-4:] for line in heard.read_text().splitlines() if " of " in line]
    for lines in bursts:
        got = [int(words[1]) for words in said if words[3] == str(lines)]
        missing = sorted(set(range(lines)) - set(got))
        assert got == sorted(got) and len(got) == lines and not missing, f"{lines}: {len(got)}, without {missing[:5]}"
    lab.stop("bursts")


def tail(path):
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        return file.read()


def test_a_stop_drains_then_ends_and_leaves_nothing(lab):
    lab.schedule("drains")
    address = lab.ready("drains")
    answers = []
    slow = threading.Thread(target=lambda: answers.append(get(address, "/slow/3000", timeout=20)))
    slow.start()
    eventually("it is under way", lambda: "requests_running 1" in get(address, "/metrics"))
    assert get(address, "/fork/20") == "20", "children that ignore TERM"
    lab.stop("drains")
    slow.join(20)
    assert answers == ["slow\n"], "the request under way was answered"
    log = lab.log("drains")
    assert "drained: no request is left" in log and "TERM, and KILL at" in log and "TERM, ending" in log, log
    assert not [c for c in running_programs() if lab_key(c)], "no process of it lives"
    assert not list((lab.folder / "data/nodes/node-1/replicas/node-1").iterdir())


def test_one_that_counts_no_requests_is_drained_by_its_connections(lab):
    lab.publish("bare", program={"metrics": None, "drain": None})
    lab.schedule("bare", "bare")
    address = lab.ready("bare")
    answers = []
    slow = threading.Thread(target=lambda: answers.append(get(address, "/slow/4000", timeout=20)))
    slow.start()
    eventually("it is under way", lambda: "requests_running 1" in get(address, "/metrics"))
    lab.stop("bare")
    slow.join(20)
    assert answers == ["slow\n"], "the request under way was answered"
    assert "drained: no connection is open" in lab.log("bare"), lab.log("bare")


def running_programs():
    """Environments of all /server processes of this machine."""
    found = []
    for folder in os.listdir("/proc"):
        try:
            if folder.isdigit() and os.readlink(f"/proc/{folder}/exe") == "/server":
                found.append(open(f"/proc/{folder}/environ", "rb").read().decode(errors="replace"))
        except OSError:
            continue
    return found


def lab_key(environment):
    return "NF_REPLICA_KEY=" in environment


def test_who_is_deaf_to_term_is_killed(lab):
    lab.publish("deaf", program={"env": {"DEAF": "1"}})
    lab.schedule("deaf", "deaf")
    lab.ready("deaf")
    began = time.monotonic()
    lab.stop("deaf")
    assert "did not end in time, KILL" in lab.log("deaf") and time.monotonic() - began < 20


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_the_next_agent_finds_it_again(lab, how):
    request_id = f"outlives-{how}"
    lab.schedule(request_id)
    address = lab.ready(request_id)
    (before,) = lab.containers(request_id)
    asker = Asker(address)
    eventually("it is asked", lambda: asker.answers > 20)
    if how == "stopped":
        lab.member.stop()
    else:
        lab.member.child.kill()
        lab.member.child.wait()
    get(address, "/say/30")
    lab.start()
    lab.ready(request_id, generation=1)
    seen = asker.answers
    eventually("it is still asked", lambda: asker.answers > seen + 50)
    assert asker.end() == [], "no request was lost"
    (after,) = lab.containers(request_id)
    assert (after["Id"], after["State"]["Pid"]) == (before["Id"], before["State"]["Pid"]), "the same container"
    eventually("what it said meanwhile is there", lambda: "line 29 of 30" in lab.log(request_id))
    assert lab.log(request_id).count("line 29 of 30") == 1 == lab.log(request_id).count("hello from"), "once"
    lab.stop(request_id)


def test_what_ended_while_no_agent_was_there_is_told(lab):
    lab.schedule("ended", constraints={"restart": "never"})
    address = lab.ready("ended")
    lab.member.child.kill()
    lab.member.child.wait()
    with pytest.raises(requests.RequestException):
        get(address, "/exit/7")
    lab.start()
    job = lab.member.wait_state("ended", "Failed", limit=60)
    assert job["replicas"][0]["why"] == "ExitedNonZero" and "exit 7" in lab.log("ended"), "its exit code is known"
    eventually("removed", lambda: not lab.containers("ended"))


def test_what_has_no_record_goes_and_strangers_stay(lab):
    lab.schedule("lost")
    lab.ready("lost")
    (lost,) = lab.containers("lost")
    ours = lost["Config"]["Labels"]
    lab.member.child.kill()
    lab.member.child.wait()
    # As if a crash had come between: the container runs, and nothing tells of it.
    records = lab.folder / "data/nodes/node-1/records/node-1"
    (record,) = records.glob("*.json")
    record.unlink()
    other = {**ours, f"{LABEL}owner": "somebody-else"}
    stranger = lab.engine.docker("run", "-d", "--name", f"nf-stranger-{ours[LABEL + 'key']}", "-e", "NF_REPLICA_KEY=x",
                                 *(f"--label={k}={v}" for k, v in other.items()), "--entrypoint", "/server", "nf-test:v1", "9000")
    assert stranger.returncode == 0, stranger.stderr
    stranger = stranger.stdout.strip()
    lab.start()
    eventually("ours is gone", lambda: lost["Id"] not in {c["Id"] for c in lab.engine.containers()}, 30)
    lab.ready("lost")
    there = {c["Id"]: c["State"]["Running"] for c in lab.engine.containers()}
    assert there.pop(stranger) is True and len(there) == 1, "the stranger was not touched, and ours began anew"
    lab.engine.docker("rm", "-f", stranger)
    lab.stop("lost")


def test_containers_of_lost_records_go(lab):
    lab.schedule("orphan")
    lab.ready("orphan")
    (orphan,) = lab.containers("orphan")
    lab.member.child.kill()
    lab.member.child.wait()
    # The number that is on it is lost with them.
    shutil.rmtree(lab.folder / "data/nodes/node-1/records")
    lab.start()
    eventually("it is gone", lambda: orphan["Id"] not in {c["Id"] for c in lab.engine.containers()}, 30)
    assert "whose records are lost, is removed" in lab.member.output
    lab.ready("orphan")
    lab.stop("orphan")


@pytest.mark.parametrize(("version", "image", "why", "says"), [
    ("no-image", "nf-nowhere:v1", "ImageMissing", "load it there"),
    ("no-pull", f"127.0.0.1:9/nf@sha256:{'0' * 64}", "ImagePullFailed", "127.0.0.1:9"),
    # The init process of the container says so, and ends with a shell's own code for it.
    ("no-program", "nf-test:v1", "ExitedNonZero", "exit 127"),
])
def test_what_the_engine_refuses_has_a_reason(lab, version, image, why, says):
    program = {"argv": ["/not-there", "{port}"]} if version == "no-program" else {}
    lab.publish(version, image=image, program=program)
    lab.schedule(version, version, constraints={"restart": "never"})
    job = lab.member.wait_state(version, "Failed", limit=60)
    assert job["replicas"][0]["why"] == why, (job["replicas"], lab.log(version))
    assert says in lab.log(version), lab.log(version)
    assert not lab.containers(version)


def test_an_image_by_its_id_is_pinned_and_never_pulled(lab):
    lab.publish("by-id", image=lab.engine.image)
    lab.schedule("by-id", "by-id")
    lab.ready("by-id")
    lab.stop("by-id")


def test_a_taken_port_is_said(lab):
    # Whichever port of the node's range is given (that changes with time, ADR 96), a stranger has it.
    with contextlib.ExitStack() as strangers:
        for port in range(FIRST_PORT, LAST_PORT + 1):
            held = strangers.enter_context(socket.socket())
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", port))
            held.listen()
        lab.schedule("port", constraints={"restart": "never"})
        job = lab.member.wait_state("port", "Failed", limit=60)
    assert job["replicas"][0]["why"] == "PortTaken", job["replicas"]


def test_an_engine_that_dies_in_the_middle(lab):
    lab.schedule("middle")
    lab.ready("middle")
    lab.engine.kill()
    eventually("it is seen", lambda: "is not known" in lab.member.output, 30)
    lab.schedule("meanwhile", constraints={"restart": "never"})
    job = lab.member.wait_state("meanwhile", "Failed", limit=60)
    assert job["replicas"][0]["why"] == "EngineUnavailable", job["replicas"]
    lab.engine.start()
    # An engine that comes back ends what ran before; the job starts again, once.
    address = lab.ready("middle", generation=2)
    assert get(address, "/health") == "ok\n"
    eventually("one container", lambda: len(lab.containers("middle")) == 1)
    lab.stop("middle")


def test_doctor_knows_the_engine(lab):
    found = {f["check"]: f for f in json.loads(lab.member.nf("doctor", "-o", "json"))["items"]}
    engine = found["container engine"]
    assert "docker 20." in engine["detail"] and engine["verdict"] in ("ok", "missing"), engine
    assert "GPUs by the older device request" in engine["detail"]


def test_nothing_is_left(lab):
    assert lab.containers() == [] and running_programs() == []
