"""A service changes its version while it serves, on real processes: nobody is refused, with
a GPU to spare and without; a version that answers badly, or that does not come up, is taken
back by the group itself and leaves the record; none of it minds the death of the leader.
"""

import json
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from nf import Dev, eventually

# Answers with its version, /slow after four seconds; every second answer of the bad one is a server's error.
SERVER = """
import http.server, itertools, sys, time
VERSION, asked = sys.argv[3], itertools.count()
if VERSION == "broken":
    sys.exit("this version does not start")
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        time.sleep(4 if self.path.endswith("/slow") else 0)
        bad = VERSION == "bad" and self.path != "/health" and next(asked) % 2
        body = VERSION.encode()
        self.send_response(500 if bad else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = answer
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""
WINDOW = 20  # seconds
HOW = {"window": f"{WINDOW}s", "ready_within": "60s"}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    settings = ["--set", "scale_every=500ms", "--set", "scale_settle=6s", "--set", "stop_grace=5s"]
    with Dev(tmp_path_factory.mktemp("rollouts"), args=settings) as group:
        files = group.folder / "model"
        files.mkdir()
        (files / "server.py").write_text(SERVER)
        for version in ("v1", "v2", "bad", "broken"):
            runtime = group.folder / f"{version}.json"
            argv = ["{python}", "{file:server.py}", "{host}", "{port}", version]
            runtime.write_text(json.dumps({"argv": argv, "ready": {"path": "/health", "timeout_s": 30}}))
            group.nf("model", "publish", str(files), "--model", "m", "--version", version, "--runtime", str(runtime))
        yield group
        # Replicas outlive their agents: whoever leaves them behind takes the ports of the next group.
        for job in group.get("/schedule", group.alive)["items"]:
            group.call("DELETE", f"/schedule/{job['request_id']}", member=group.alive)
        eventually("no replica is left", lambda: not group.get("/schedule", group.alive)["items"], 60)


def service(group, tenant, replicas, gpu):
    group.call("PUT", f"/tenants/{tenant}/quota", {"gpu": replicas * gpu + (0 if gpu == 1 else 1)})
    body = {"tenant_id": tenant, "model_id": "m", "model_version": "v1", "resources": {"gpu": gpu},
            "replicas": replicas, "constraints": {"latency_ms": 5000, "spread": True},
            "scaling": {"min": replicas, "max": replicas, "concurrency": 8}}
    answer = group.call("POST", "/schedule", body)
    assert answer.status_code in (201, 202), answer.text
    job = answer.json()["request_id"]
    eventually("all replicas serve", lambda: group.job(job)["ready"] == replicas, 60)
    return job


def start(group, job, version, **how):
    answer = group.call("POST", f"/rollout/{job}", {"model_version": version, **HOW, **how})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ends(group, job, status, limit=120):
    def look():
        rollout = group.get(f"/rollout/{job}", group.alive)
        assert rollout["phase"] is None, rollout
        return rollout

    rollout = eventually("the rollout comes to rest", look, limit)
    assert rollout["status"] == status, rollout
    return rollout


def trail(group):
    lines = group.call("GET", "/audit?per_page=10000").text.splitlines()
    return [json.loads(line).get("entry", {}) for line in lines]


def versions(group, job):
    replicas = group.job(job, group.alive)["replicas"]
    return sorted(r["model_version"] for r in replicas if r["status"] == "Ready" and not r.get("other"))


class Load:
    """Clients that call one member each; who loses its member goes to another, as any client does."""

    def __init__(self, group, tenant, clients=6):
        self.group, self.tenant, self.end = group, tenant, threading.Event()
        self.codes, self.saw, self.gone, self.errors = Counter(), Counter(), None, []
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(clients)]

    def run(self, i):
        session = requests.Session()
        while not self.end.wait(0.01):
            url = self.group.urls[i % len(self.group.urls)]
            try:
                # Requests that begin alike go to one replica where it has room; these don't.
                answer = session.post(f"{url}/serve/{self.tenant}/m/infer", data=random.randbytes(8), timeout=60)
                self.codes[answer.status_code] += 1
                self.saw[answer.text if answer.status_code == 200 else answer.text[:80]] += 1
            except requests.RequestException as error:  # also an answer cut off in its middle
                if url == self.gone:
                    i += 1
                else:
                    self.errors.append(repr(error))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        eventually("requests are answered", lambda: self.codes[200] > 20)
        return self

    def __exit__(self, *_):
        self.end.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture(autouse=True)
def alive(group):
    group.alive = 0


def test_a_version_takes_the_others_place_and_nobody_is_refused(group):
    job = service(group, "t1", 3, 0.1)
    with Load(group, "t1") as load:
        begun = start(group, job, "v2", window="3s")
        assert (begun["from"], begun["to"], begun["phase"]) == ("v1", "v2", "rolling"), begun
        eventually("one serves beside another", lambda: load.saw["v2"] and group.get("/slo/t1/m")["versions"])
        ends(group, job, "successful")
        before = load.saw["v1"]
        eventually("the new version answers", lambda: load.saw["v2"] > 100)
        assert load.saw["v1"] == before, "the former version is gone"
    assert set(load.codes) == {200} and not load.errors, (load.codes, load.saw, load.errors)
    assert versions(group, job) == ["v2"] * 3 and group.job(job)["model_version"] == "v2"

    # Back to the version before: as a rollout of its own.
    table = group.nf("model", "rollback", "m", "--tenant", "t1", "--window", "1s")
    assert "v2" in table and "v1" in table, table
    done = ends(group, job, "successful")
    assert done["rollback"] and versions(group, job) == ["v1"] * 3, done
    assert "successful" in group.nf("rollout", "status", job)
    events = [(e["from"], e["to"], e["why"]) for e in group.get("/events?per_page=1000")["items"] if e["kind"] == "rollout"]
    assert events[0] == ("v1", "v2", "running, rolling") and ("v2", "v1", "successful") in events, events
    assert {"RolloutStart", "ModelRollback"} <= {entry.get("action") for entry in trail(group)}
    group.call("DELETE", f"/schedule/{job}")


def test_a_version_that_answers_badly_goes_back_by_itself_and_leaves_the_record(group):
    job = service(group, "t2", 2, 0.1)
    with Load(group, "t2") as load:
        start(group, job, "bad", canary=True)
        eventually("the canary answers badly", lambda: load.codes[500], 60)
        # Long before the window ends, the group has had enough.
        def back():
            rollout = group.get(f"/rollout/{job}")
            assert rollout["status"] == "failed", (rollout, group.get("/slo/t2/m")["versions"])
            return True

        eventually("it goes back", back, WINDOW)
        done = ends(group, job, "failed")
        before = load.codes[500]
        eventually("the former version answers again", lambda: load.saw["v1"] > 50)
        assert load.codes[500] == before, "the bad version is gone"
    assert done["why"] == "PromiseBroken" and versions(group, job) == ["v1", "v1"], done
    former, new = done["counts"]
    assert (former["version"], former["failed"], new["version"]) == ("v1", 0, "bad") and new["failed"] >= 4, done
    assert set(load.codes) == {200, 500} and not load.errors, (load.codes, load.saw, load.errors)
    told = [e for e in group.get("/events?per_page=1000")["items"] if e["kind"] == "rollout" and e["request_id"] == job]
    assert [e["why"] for e in told] == ["running, canary", "failed, reverting: PromiseBroken", "failed: PromiseBroken"]
    entry = next(e for e in trail(group) if e.get("action") == "RolloutRevert" and e["object"] == f"job/t2/{job}")
    assert "PromiseBroken" in json.dumps(entry), entry
    group.call("DELETE", f"/schedule/{job}")


def test_without_a_gpu_to_spare_it_is_replaced_in_place_while_the_leader_dies(group):
    leader = group.leader()
    group.alive = (leader + 1) % len(group.urls)
    # A member takes its agent along: what is replaced is on the two others.
    group.nf("node", "cordon", group.members()[leader]["name"])
    # Whole GPUs, and a quota that has none left.
    job = service(group, "t3", 2, 1)
    with Load(group, "t3") as load, ThreadPoolExecutor(8) as slow:
        url = f"{group.url(group.alive)}/serve/t3/m/slow"
        answers = [slow.submit(requests.post, url, data=random.randbytes(8), timeout=60) for _ in range(8)]
        start(group, job, "v2", window="1s")
        load.gone = group.url(leader)
        group.kill(leader)
        ends(group, job, "successful")
        eventually("the new version answers", lambda: load.saw["v2"] > 100)
    # The manifest names nothing to drain by: what a replica has in its hands is waited for all the same.
    assert [(a.result().status_code, a.result().text) for a in answers] == [(200, "v1")] * 8
    assert set(load.codes) == {200} and not load.errors, (load.codes, load.saw, load.errors)
    assert versions(group, job) == ["v2", "v2"]
    group.restart(leader)
    group.nf("node", "uncordon", group.members()[leader]["name"])
    group.call("DELETE", f"/schedule/{job}")


def test_a_version_that_does_not_come_up_costs_nobody_a_request(group):
    job = service(group, "t4", 2, 0.1)
    with Load(group, "t4") as load:
        start(group, job, "broken")
        done = ends(group, job, "failed")
    assert done["why"] and versions(group, job) == ["v1", "v1"], done
    assert set(load.codes) == {200} and not load.errors, (load.codes, load.saw, load.errors)
    group.call("DELETE", f"/schedule/{job}")


def test_a_canary_gets_its_share_until_somebody_decides(group):
    job = service(group, "t5", 2, 0.1)
    with Load(group, "t5") as load:
        start(group, job, "v2", canary=10)
        eventually("the canary serves", lambda: group.get(f"/rollout/{job}")["updated_ready"] == 1, 60)
        eventually("it gets requests", lambda: load.saw["v2"] > 0)
        load.saw.clear()
        eventually("many more", lambda: sum(load.saw.values()) > 500)
        seen = Counter(load.saw)
        share = seen["v2"] / sum(seen.values())
        assert 0.05 <= share <= 0.15, seen
        assert group.nf_json("rollout", "status", job)["phase"] == "canary"
        conflict = group.call("POST", f"/rollout/{job}", {"model_version": "bad"})
        assert (conflict.status_code, conflict.json()["reason"]) == (409, "Conflict"), conflict.text
        assert "paused" in group.nf("rollout", "pause", job)
        group.nf("rollout", "resume", job)
        group.nf("rollout", "revert", job)
        ends(group, job, "cancelled")
        start(group, job, "v2", canary=True, window="1s")
        eventually("the canary serves", lambda: group.get(f"/rollout/{job}")["updated_ready"] == 1, 60)
        group.nf("rollout", "promote", job)
        ends(group, job, "successful")
    assert set(load.codes) == {200} and not load.errors, (load.codes, load.saw, load.errors)
    group.call("DELETE", f"/schedule/{job}")


@pytest.mark.parametrize("body,code,field", [
    ({}, 400, "model_version"),
    ({"model_version": "v2", "surge": 0, "unavailable": 0}, 400, "unavailable"),
    ({"model_version": "v2", "surge": 100}, 400, "surge"),
    ({"model_version": "v2", "canary": 100}, 400, "canary"),
    ({"model_version": "v2", "auto_promote": True}, 400, "auto_promote"),
    ({"model_version": "v2", "window": "2d"}, 400, "window"),
    ({"model_version": "v2", "windows": "1m"}, 400, "windows"),
    ({"model_version": "nobody-published-it"}, 404, "model_version"),
])
def test_what_no_rollout_can_be(group, body, code, field):
    if not hasattr(group, "fixed"):
        group.fixed = service(group, "t6", 1, 0.1)
    answer = group.call("POST", f"/rollout/{group.fixed}", body)
    assert (answer.status_code, answer.json()["field"]) == (code, field), answer.text


def test_who_asks_for_what_is_not_there_is_told(group):
    for method, path in [("GET", "/rollout/nobody"), ("POST", "/rollout/nobody/turn/pause")]:
        assert group.call(method, path).status_code == 404
    job = group.fixed
    assert group.call("GET", f"/rollout/{job}").status_code == 404
    assert group.call("POST", f"/rollout/{job}/turn/pause").status_code == 409
    assert group.call("POST", f"/rollout/{job}/turn/jump").status_code == 400
    assert group.call("POST", f"/rollout/{job}/rollback").status_code == 404
