"""Certificates, keys and authorities are replaced while calls come in: on the public port, between a member and a
worker. No call fails. It does not look at tokens or models."""

import shutil
import signal
import subprocess
import threading
import time

import requests

import nf

OPENSSL = shutil.which("openssl")
LOOK = 2  # seconds between two looks at the files, as docs/operations.md says


def public(folder):
    """A certificate for localhost that vouches for itself, and its key."""
    folder.mkdir(parents=True)
    cert, key = folder / "public.pem", folder / "public.key"
    subprocess.run([OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", f"/CN={folder.name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def alone(*args):
    done = subprocess.run([str(nf.NF), *map(str, args)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


class Load:
    """Callers without pause: some make a connection for each call, some keep theirs, and some run jobs on the worker."""

    def __init__(self, url, ca):
        self.url, self.ca, self.over, self.failures = url, str(ca), threading.Event(), []
        self.answers = {"fresh": 0, "kept": 0, "jobs": 0}
        jobs = [threading.Thread(target=self.loop, args=("jobs", self.job), daemon=True)]
        reads = [("fresh", requests.get), ("fresh", requests.get), ("kept", requests.Session().get)]
        asks = [threading.Thread(target=self.loop, args=(kind, lambda get=get: self.read(get)), daemon=True) for kind, get in reads]
        self.threads = jobs + asks
        for thread in self.threads:
            thread.start()

    def read(self, get):
        answer = get(f"{self.url}/nodes", verify=self.ca, timeout=10)
        assert answer.status_code == 200, answer.text

    def job(self):
        body = {"tenant_id": "t1", "model_id": "m", "model_version": "v1", "resources": {"cpu": 0.1}, "constraints": {"node": "w1"}}
        answer = requests.post(f"{self.url}/schedule", json=body, verify=self.ca, timeout=10)
        assert answer.status_code in (201, 202), answer.text
        path = f"{self.url}/schedule/{answer.json()['request_id']}"
        until = time.monotonic() + 20
        while (state := requests.get(path, verify=self.ca, timeout=10).json()["state"]) != "Running":
            assert time.monotonic() < until, f"its worker does not run it: {state}"
            time.sleep(0.05)
        assert requests.delete(path, verify=self.ca, timeout=10).status_code == 200

    def loop(self, kind, call):
        while not self.over.is_set():
            try:
                call()
                self.answers[kind] += 1
            except (requests.RequestException, AssertionError, KeyError) as error:
                self.failures.append(f"{time.time():.3f} {kind} {error!r}")
            time.sleep(0.01)

    def goes_on(self):
        """Until each kind has been answered again, at least one look later."""
        time.sleep(LOOK + 1)
        before = dict(self.answers)
        nf.eventually("calls are answered", lambda: all(self.answers[kind] > before[kind] for kind in before), 30)
        assert not self.failures, self.failures[:3]

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join(30)
        return self.failures


def serial(port):
    """Which public certificate a new connection is shown."""
    ask = [OPENSSL, "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost"]
    shown = subprocess.run(ask, input=b"", capture_output=True, timeout=20, check=False).stdout
    return subprocess.run([OPENSSL, "x509", "-noout", "-subject"], input=shown, capture_output=True, check=False).stdout.decode()


def test_certificates_and_authorities_change_under_load_and_no_call_fails(tmp_path):
    port, peer, own = nf.free_port(), nf.free_port(), nf.free_port()
    lab, certs = tmp_path / "lab", [public(tmp_path / name) for name in ("first", "second", "third")]
    live, bundle = tmp_path / "live", tmp_path / "bundle.pem"
    live.mkdir()
    bundle.write_text("".join(cert.read_text() for cert, _ in certs))
    alone("cluster", "init", "--open", "--dir", lab, "--members", f"node-1=127.0.0.1:{peer}")
    member_keys, worker_keys = lab / "node-1/tls", nf.node_keys(lab, "w1")

    def show(pair):
        for file, name in zip(pair, ("public.pem", "public.key"), strict=True):
            beside = live / f"{name}.new"
            shutil.copy(file, beside)
            beside.rename(live / name)

    show(certs[0])
    member = nf.Process(tmp_path / "member", ["serve"], {
        "SCHEDULER_PORT": port, "NF_PEER_LISTEN": f"127.0.0.1:{peer}", "NF_NODE_NAME": "node-1",
        "NF_MEMBERS": f"node-1=127.0.0.1:{peer}", "NF_TLS_DIR": member_keys, "SIMULATION_MODE": "true",
        "NF_PUBLIC_CERT": live / "public.pem", "NF_PUBLIC_KEY": live / "public.key", "NF_DATA_DIR": tmp_path / "member/data"})
    url = f"https://localhost:{port}"
    worker_settings = {
        "NF_ROLE": "worker", "NF_JOIN": url, "NF_CA": bundle, "NF_NODE_NAME": "w1", "SCHEDULER_PORT": own,
        "NF_TLS_DIR": worker_keys, "NF_DATA_DIR": tmp_path / "worker/data", "SIMULATION_MODE": "true",
        "NF_PORT_RANGE": "17600-17699"}

    def nodes():
        listed = requests.get(f"{url}/nodes", verify=str(bundle), timeout=5).json()["items"]
        return {node["node_id"]: node["state"] for node in listed}

    with member:
        nf.eventually("it serves", lambda: requests.get(f"{url}/health/ready", verify=str(bundle), timeout=5).ok, 30)
        with nf.Process(tmp_path / "worker", ["serve"], worker_settings, "worker") as worker:
            nf.eventually("the worker is there", lambda: nodes().get("w1") == "Ready", 30)
            load = Load(url, bundle)
            load.goes_on()

            # The public port: another certificate, by another authority, and once more.
            for name, pair in (("second", certs[1]), ("third", certs[2])):
                show(pair)
                nf.eventually("new connections see it", lambda name=name: name in serial(port), 20)
                load.goes_on()

            # The group's authority, in the three steps of docs/operations.md.
            other = tmp_path / "other"
            alone("tls", "ca", "create", "--dir", other / "ca")
            old, new = (lab / "ca/ca.pem").read_text(), (other / "ca/ca.pem").read_text()
            for keys in (member_keys, worker_keys):
                (keys / "ca.pem").write_text(old + new)
            load.goes_on()
            for role, name, keys in (("server", "node-1", member_keys), ("node", "w1", worker_keys)):
                made = other / name
                alone("tls", "cert", "create", "--ca", other / "ca", "--role", role, "--name", name, "--dir", made)
                for file in ("member.pem", "member.key"):
                    shutil.copy(made / file, keys / file)
                load.goes_on()
            for keys in (member_keys, worker_keys):
                (keys / "ca.pem").write_text(new)
            load.goes_on()
            failures = load.end()
            assert not failures, f"{len(failures)} failed of {load.answers}: {failures[:3]}"
            # It is the new authority that counts: a worker that begins anew is let in by it.
            worker.child.send_signal(signal.SIGTERM)
            worker.child.wait(20)
        with nf.Process(tmp_path / "worker", ["serve"], worker_settings, "worker"):
            nf.eventually("it is back, under the new authority", lambda: nodes().get("w1") == "Ready", 60)
            health = requests.get(f"{url}/health", verify=str(bundle), timeout=5).json()
            assert health["components"]["keys"]["status"] == "ok", health["components"]
