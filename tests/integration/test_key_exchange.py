"""Which key exchange each link has, by clients and servers of other makers: Debian's OpenSSL and curl, which know no
ML-KEM, and pyOpenSSL, whose OpenSSL does. Both ends are asked."""

import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading

import pytest
import requests

import nf

SSL = pytest.importorskip("OpenSSL.SSL", reason="no pyOpenSSL here: make venv-servers")
HYBRID, CLASSICAL, LIMIT = "X25519MLKEM768", "X25519", 20
OPENSSL = shutil.which("openssl")
OLD = not OPENSSL or ssl.OPENSSL_VERSION_INFO < (3, 5)
pytestmark = pytest.mark.skipif(not OLD, reason="this machine's own OpenSSL knows ML-KEM")


class Member:
    """A member alone; its port for members is the next one."""

    def __init__(self, folder, **settings):
        self.port, self.data = nf.free_port(), folder / "data"
        settings = {"SCHEDULER_PORT": self.port, "NF_DATA_DIR": self.data, "NF_LOG": "info", **settings}
        self.https = "NF_PUBLIC_CERT" in settings
        self.ca = settings.get("NF_PUBLIC_CERT")
        self.process = nf.Process(folder, ["serve"], settings)

    def __enter__(self):
        # What wants hybrid is asked by who has it.
        strict = self.https and "PQC_STRICT" in self.process.environment
        try:
            nf.eventually("it serves", lambda: new_client(self.port, ca=self.ca) if strict else self.health(), LIMIT)
        except BaseException:
            self.process.stop()
            raise
        return self

    def __exit__(self, *_):
        self.process.stop()

    def ask(self, path):
        scheme = "https" if self.https else "http"
        return requests.get(f"{scheme}://localhost:{self.port}{path}", verify=str(self.ca or True), timeout=5)

    def health(self):
        answer = self.ask("/health")
        return answer.json() if answer.status_code == 200 else None

    def open(self, kind, way):
        return [row for row in self.health()["links"]["open"] if (row["kind"], row["direction"]) == (kind, way)]

    def refused(self, kind, way):
        rows = self.health()["links"]["refused"]
        return [row for row in rows if (row["kind"], row["direction"]) == (kind, way)]

    def keys(self):
        tls = self.data / "tls"
        nf.eventually("it has its keys", (tls / "member.key").exists, LIMIT)
        return tls


def old_client(port, tls):
    """Debian's OpenSSL as a member: what it says of the handshake."""
    args = [OPENSSL, "s_client", "-connect", f"127.0.0.1:{port}", "-alpn", "h2", "-CAfile", tls / "ca.pem",
            "-cert", tls / "member.pem", "-key", tls / "member.key"]
    done = subprocess.run(args, input=b"", capture_output=True, timeout=LIMIT, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def new_client(port, tls=None, ca=None, alpn=b"h2"):
    """An OpenSSL that knows ML-KEM: its connection, with the handshake done."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(str(ca or tls / "ca.pem"))
    context.set_verify(SSL.VERIFY_PEER, lambda *args: bool(args[-1]))
    context.set_alpn_protos([alpn])
    if tls:
        context.use_certificate_file(str(tls / "member.pem"))
        context.use_privatekey_file(str(tls / "member.key"))
    stream = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
    stream.settimeout(None)
    connection = SSL.Connection(context, stream)
    connection.set_connect_state()
    connection.do_handshake()
    return connection


def certificate(folder):
    """A certificate for localhost that vouches for itself, and its key."""
    folder.mkdir(parents=True, exist_ok=True)
    cert, key = folder / "public.pem", folder / "public.key"
    subprocess.run([OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    return cert, key


def curl(member, *args):
    url = f"https://localhost:{member.port}/health"
    done = subprocess.run(["curl", "-sSv", "--cacert", member.ca, *args, url], capture_output=True, text=True,
                          timeout=LIMIT, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_hybrid_member_takes_hybrid_peers_alone(tmp_path):
    with Member(tmp_path) as member:
        tls = member.keys()
        said = old_client(member.port + 1, tls)
        assert "handshake failure" in said and "Server Temp Key" not in said, said
        (refused,) = member.refused("peer", "in")
        assert refused["count"] == 1, refused
        for word in ["127.0.0.1", "PQC_MODE=hybrid (X25519MLKEM768)", "offers X25519", "set the same PQC_MODE"]:
            assert word in refused["last"], refused
        assert refused["last"] in json.dumps(member.process.output) or "the other end offers" in member.process.output

        connection = new_client(member.port + 1, tls)
        assert connection.get_group_name().upper() == HYBRID
        rows = nf.eventually("the member sees it", lambda: member.open("peer", "in"), LIMIT)
        assert rows == [{"kind": "peer", "direction": "in", "with": "node-1", "kx_group": HYBRID, "connections": 1}], rows
        metrics = member.ask("/metrics").text
        for line in [
            f'nf_tls_open_connections{{direction="in",kind="peer",kx_group="{HYBRID}"}} 1',
            f'nf_tls_connections_total{{kx_group="{HYBRID}",listener="peer"}} 1',
            'nf_tls_refused_total{direction="in",kind="peer"} 1',
        ]:
            assert line in metrics, metrics
        connection.sock_shutdown(socket.SHUT_RDWR)
        nf.eventually("and its end", lambda: not member.open("peer", "in"), LIMIT)


def test_a_classical_member_has_no_hybrid_and_says_so(tmp_path):
    with Member(tmp_path, PQC_MODE="classical") as member:
        assert member.health()["links"]["pqc_mode"] == "classical"
        tls = member.keys()
        said = old_client(member.port + 1, tls)
        assert "Server Temp Key: X25519" in said, said
        connection = new_client(member.port + 1, tls)
        assert connection.get_group_name().upper() == CLASSICAL
        rows = nf.eventually("the member sees it", lambda: member.open("peer", "in"), LIMIT)
        assert [(row["with"], row["kx_group"]) for row in rows] == [("node-1", CLASSICAL)], rows
        assert not member.refused("peer", "in")


def test_a_plain_member_says_that_it_speaks_no_tls(tmp_path):
    with Member(tmp_path, PQC_MODE="off") as member:
        assert "PQC_MODE=off" in member.process.output
        tls = member.keys()
        assert "Server Temp Key" not in old_client(member.port + 1, tls)
        with pytest.raises(SSL.Error):
            new_client(member.port + 1, tls)
        twice = lambda: next((row for row in member.refused("peer", "in") if row["count"] == 2), None)
        refused = nf.eventually("both are counted", twice, LIMIT)
        assert "PQC_MODE=off" in refused["last"] and "speaks TLS" in refused["last"], refused


def test_the_public_port_prefers_hybrid_and_wants_it_when_strict(tmp_path):
    cert, key = certificate(tmp_path / "public")
    public = {"NF_PUBLIC_CERT": cert, "NF_PUBLIC_KEY": key}
    with Member(tmp_path / "prefers", **public) as member:
        code, body, said = curl(member)
        assert code == 0 and "TLSv1.3" in said and "ALPN: server accepted h2" in said, said
        rows = [row for row in json.loads(body)["links"]["open"] if row["kind"] == "public"]
        assert [row["kx_group"] for row in rows] == [CLASSICAL], rows
        assert curl(member, "--http1.1")[0] == 0
        connection = new_client(member.port, ca=cert)
        assert connection.get_group_name().upper() == HYBRID
        both = {HYBRID, CLASSICAL}
        nf.eventually("both are listed", lambda: {row["kx_group"] for row in member.open("public", "in")} == both, LIMIT)
        with pytest.raises(requests.RequestException):
            requests.get(f"http://localhost:{member.port}/health", timeout=5)
        env = {**member.process.environment, "NF_ADDR": f"https://localhost:{member.port}"}
        members = [str(nf.NF), "cluster", "members", "-o", "json"]
        done = subprocess.run(members, env={**env, "NF_CA": str(cert)}, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and '"api": "https://' in done.stdout, done.stdout + done.stderr
        done = subprocess.run(members, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 7 and "certificate" in done.stderr, done.stderr

        # Another certificate takes the place of this one, without a restart.
        other, other_key = certificate(tmp_path / "other")
        shutil.copy(other_key, key)
        shutil.copy(other, cert)
        nf.eventually("the new one is shown", lambda: curl(member)[0] == 0, LIMIT)

    with Member(tmp_path / "wants", PQC_STRICT="1", **public) as member:
        code, _, said = curl(member)
        assert code == 35 and "handshake failure" in said, said
        connection = new_client(member.port, ca=cert, alpn=b"http/1.1")
        assert connection.get_group_name().upper() == HYBRID
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        links = json.loads(read(connection).split(b"\r\n\r\n", 1)[1])["links"]
        (refused,) = [row for row in links["refused"] if row["kind"] == "public"]
        assert "PQC_STRICT" in refused["last"] and "OpenSSL from 3.5" in refused["last"], refused


def read(connection):
    """All that comes until the other end is done."""
    parts = []
    while True:
        try:
            parts.append(connection.recv(65536))
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return b"".join(parts)


class Issuer(threading.Thread):
    """A server with an OpenSSL that knows ML-KEM: it says which group each connection has."""

    def __init__(self, cert, key):
        super().__init__(daemon=True)
        self.context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self.context.use_certificate_chain_file(str(cert))
        self.context.use_privatekey_file(str(key))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.groups = self.listener.getsockname()[1], []
        self.start()

    def run(self):
        while True:
            connection = SSL.Connection(self.context, self.listener.accept()[0])
            connection.set_accept_state()
            try:
                connection.do_handshake()
                self.groups.append(connection.get_group_name().upper())
                connection.recv(4096)
                body = b'{"keys":[]}'
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
                connection.shutdown()
            except SSL.Error:
                pass


class OldIssuer(threading.Thread):
    """The same with this Python's own OpenSSL, which is Debian's."""

    def __init__(self, cert, key):
        super().__init__(daemon=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self.server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.start()

    def run(self):
        self.server.serve_forever()


def test_outgoing_links_prefer_hybrid_and_want_it_when_strict(tmp_path):
    cert, key = certificate(tmp_path / "issuer")
    new, old = Issuer(cert, key), OldIssuer(cert, key)

    def asks(name, issuer, **settings):
        return Member(tmp_path / name, NF_JWKS=f"https://localhost:{issuer.port}/keys", NF_JWKS_CA=cert, **settings)

    def dialed(member, group):
        def made():
            return [row["kx_group"] for row in member.health()["links"]["made"] if row["kind"] == "issuer"]
        assert nf.eventually("the issuer was asked", made, LIMIT) == [group]

    with asks("new", new) as member:
        dialed(member, HYBRID)
        nf.eventually("the issuer says the same", lambda: new.groups[-1:] == [HYBRID], LIMIT)
    with asks("classical", new, PQC_MODE="classical") as member:
        dialed(member, CLASSICAL)
        nf.eventually("the issuer says the same", lambda: new.groups[-1:] == [CLASSICAL], LIMIT)
    with asks("old", old) as member:
        dialed(member, CLASSICAL)
    with asks("strict", old, PQC_STRICT="true") as member:
        (refused,) = nf.eventually("it is refused", lambda: member.refused("issuer", "out"), LIMIT)
        assert "localhost" in refused["last"] and "PQC_STRICT" in refused["last"], refused


@pytest.mark.parametrize("mode, group", [("hybrid", HYBRID), ("classical", CLASSICAL), ("off", "none")])
def test_a_group_forms_in_each_mode_and_its_list_tells_the_groups(tmp_path, mode, group):
    port = nf.free_port()
    members = f"node-1=127.0.0.1:{port + 1},node-2=127.0.0.1:{port + 3},node-3=127.0.0.1:{port + 5}"
    made = nf.Process(tmp_path / "made", ["cluster", "init", "--dir", str(tmp_path / "lab"), "--open", "--members", members])
    assert made.wait(30) == 0, made.output

    def serve(n, **settings):
        config = tmp_path / f"lab/node-{n}/nf.toml"
        return nf.Process(tmp_path / f"node-{n}", ["serve", "--config", str(config)], {"NF_LOG": "info", **settings})

    def listed():
        answer = requests.get(f"http://127.0.0.1:{port}/cluster/members", timeout=5).json()
        return {row["name"]: row["kx_group"] for row in answer["items"]}

    with serve(1, PQC_MODE=mode) as first, serve(2, PQC_MODE=mode), serve(3, PQC_MODE=mode):
        wanted = {"node-1": None, "node-2": group, "node-3": group}
        nf.eventually("each link has it", lambda: listed() == wanted, 40)
        shown = subprocess.run([str(nf.NF), "cluster", "members"], capture_output=True, text=True, timeout=60, check=False,
                               env={**first.environment, "NF_ADDR": f"http://127.0.0.1:{port}"})
        assert "KX" in shown.stdout and shown.stdout.count(group) == 2, shown.stdout + shown.stderr

    # One that was told otherwise is with nobody, and both ends say why.
    wrong = "classical" if mode == "hybrid" else "hybrid"
    with serve(1, PQC_MODE=mode), serve(2, PQC_MODE=wrong) as odd:
        def told():
            links = requests.get(f"http://127.0.0.1:{port}/health", timeout=5).json()["links"]
            return any("set the same PQC_MODE" in row["last"] for row in links["refused"])
        nf.eventually("the member says it", told, LIMIT)
        assert odd.child.poll() is None
        nf.eventually("so does the other", lambda: f"PQC_MODE={wrong}" in odd.output, LIMIT)


def test_a_worker_joins_a_classical_group_that_it_knows_to_be_one(tmp_path):
    with Member(tmp_path / "member", PQC_MODE="classical", NF_CLUSTER="lab") as member:
        env = {**member.process.environment, "NF_ADDR": f"http://127.0.0.1:{member.port}"}
        made = subprocess.run([str(nf.NF), "join-token", "create", "-o", "json"], env=env, capture_output=True, text=True,
                              timeout=60, check=False)
        assert made.returncode == 0, made.stderr
        token = json.loads(made.stdout)["token"]

        def join(folder, mode, code):
            args = ["cluster", "join", "--to", f"127.0.0.1:{member.port + 1}", "--name", "gpu-7", "--dir", str(folder)]
            done = nf.Process(folder / "joining", args, {"NF_JOIN_TOKEN": token, "PQC_MODE": mode})
            assert done.wait(40) == code, done.output
            return done.output

        assert "set the same PQC_MODE" in join(tmp_path / "w0", "hybrid", 7)
        assert "needs TLS" in join(tmp_path / "w1", "off", 2)
        join(tmp_path / "w2", "classical", 0)
        settings = {"SCHEDULER_PORT": nf.free_port(), "NF_PORT_RANGE": "17600-17699"}
        with nf.Process(tmp_path / "worker", ["serve", "--config", str(tmp_path / "w2/nf.toml")], settings):
            rows = nf.eventually("it is there", lambda: [r for r in member.open("peer", "in") if r["with"] == "gpu-7"], 30)
            assert {row["kx_group"] for row in rows} == {CLASSICAL}, rows
