"""Model files that are encrypted in the store: made by us and opened by another implementation, and the other way
round; and a node that opens them, or says why it cannot."""

import hashlib
import io
import json
import os
import subprocess
import sys

import pytest
import requests

import nf

pytest.importorskip("cryptography.hazmat.primitives.hpke", reason="no HPKE in this cryptography: make venv-servers")
sys.path.insert(0, str(nf.ROOT / "docs/examples"))
import open_sealed  # noqa: E402

MIB = 1 << 20


class Lab:
    """A group's keys, and a store with one version whose files are encrypted to them."""

    def __init__(self, folder):
        self.folder, self.store = folder, f"file://{folder / 'store'}"
        made = nf.Process(folder / "made", ["cluster", "init", "--dir", str(folder / "lab"), "--open",
                                            "--members", f"node-1=127.0.0.1:{nf.free_port() + 1}"])
        assert made.wait(30) == 0, made.output
        self.key, self.pub = folder / "lab/artefact.key", folder / "lab/artefact.pub"
        assert self.key.stat().st_mode & 0o777 == 0o600
        member = folder / "lab/node-1"
        assert (member / "artefact.key").read_bytes() == self.key.read_bytes()
        assert (member / "artefact.key").stat().st_mode & 0o777 == 0o600
        assert "artefact_key" in (member / "nf.toml").read_text()
        self.plain = {"model.onnx": os.urandom(3 * MIB), "sub/vocab.json": b"{}", "exact.onnx": b"x" * MIB}
        for name, data in self.plain.items():
            path = folder / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.nf("publish", str(folder / "in"), "--model", "m", "--version", "v1", "--main", "model.onnx",
                "--encrypt-to", str(self.pub))

    def nf(self, *args, code=0, **settings):
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "MODEL_STORE_URL": self.store,
               **{name: str(value) for name, value in settings.items()}}
        done = subprocess.run([str(nf.NF), "model", *args], env=env, cwd=self.folder, capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def stored(self, name):
        return self.folder / "store/m/v1" / name


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def test_another_implementation_opens_what_we_encrypt(lab):
    key = open_sealed.private(lab.key.read_text())
    assert open_sealed.public(lab.pub.read_text())[1] == key[1]
    manifest = json.loads(lab.stored("manifest.json").read_text())
    assert manifest["encrypted_to"] == key[1].hex()
    for file in manifest["files"]:
        name, plain = file["path"], lab.plain[file["path"]]
        assert file["sha256"] == hashlib.sha256(plain).hexdigest() and file["size"] == len(plain)
        sealed = lab.stored(name).read_bytes()
        assert plain == b"{}" or plain[:64] not in sealed
        opened = b"".join(open_sealed.opened(io.BytesIO(sealed), *key, "m", "v1", name))
        assert opened == plain, name
    with pytest.raises(Exception):
        list(open_sealed.opened(io.BytesIO(lab.stored("model.onnx").read_bytes()), *key, "m", "v2", "model.onnx"))


def test_we_open_what_another_implementation_encrypts(lab, tmp_path):
    key, key_id = open_sealed.public(lab.pub.read_text())
    for name, plain in lab.plain.items():
        file_key = os.urandom(32)
        parts = [open_sealed.MAGIC, key_id, open_sealed.SUITE.encrypt(file_key, key, open_sealed.info(key_id, "m", "v1", name))]
        pieces = [plain[at : at + MIB] for at in range(0, len(plain), MIB)]
        for number, piece in enumerate(pieces):
            nonce = open_sealed.nonce(number, number + 1 == len(pieces))
            parts.append(open_sealed.AESGCM(file_key).encrypt(nonce, piece, None))
        path = lab.stored(name)
        path.chmod(0o644)
        path.write_bytes(b"".join(parts))
    lab.nf("pull", "m@v1", "--to", str(tmp_path / "out"), NF_ARTEFACT_KEY=lab.key)
    for name, plain in lab.plain.items():
        assert (tmp_path / "out" / name).read_bytes() == plain, name


def test_each_wrong_thing_has_its_own_words(lab, tmp_path):
    other = Lab(tmp_path / "other")
    assert "set NF_ARTEFACT_KEY" in lab.nf("pull", "m@v1", code=2)
    said = lab.nf("pull", "m@v1", code=2, NF_ARTEFACT_KEY=other.key)
    assert open_sealed.private(other.key.read_text())[1].hex() in said, said
    said = lab.nf("pull", "m@v1", code=2, NF_ARTEFACT_KEY=lab.pub)
    assert "NF_ARTEFACT_KEY" in said and "is no private key" in said and "BEGIN" not in said, said
    assert not (lab.folder / "m-v1").exists(), "a refused pull leaves nothing behind"
    path = lab.stored("model.onnx")
    path.chmod(0o644)
    whole = path.read_bytes()
    for change, words in [(whole[: 2 * MIB], "bytes"), (whole[:-5000] + b"x" + whole[-4999:], "chunk 2 does not open")]:
        path.write_bytes(change)
        said = lab.nf("pull", "m@v1", "--to", str(tmp_path / "bad"), code=6, NF_ARTEFACT_KEY=lab.key)
        assert "model.onnx" in said and words in said, said
        assert not (tmp_path / "bad/model.onnx").exists()


def test_a_node_opens_it_before_the_start_and_says_so_when_it_cannot(lab, tmp_path):
    body = {"tenant_id": "demo", "model_id": "m", "model_version": "v1", "resources": {"gpu": 1}}

    def run(name, **settings):
        port = nf.free_port()
        settings = {"SCHEDULER_PORT": port, "NF_DATA_DIR": tmp_path / name / "data", "MODEL_STORE_URL": lab.store,
                    "GPU_NODES": "n1:H100-80G:2", **settings}
        return port, nf.Process(tmp_path / name, ["serve"], settings)

    def job(port):
        nf.eventually("it serves", lambda: requests.get(f"http://127.0.0.1:{port}/health/ready", timeout=5).ok, 30)
        def placed():
            answer = requests.post(f"http://127.0.0.1:{port}/schedule", json={**body, "request_id": "j"}, timeout=10)
            assert answer.status_code in (200, 201), answer.text
            return True
        nf.eventually("it is placed", placed, 30)
        return lambda: requests.get(f"http://127.0.0.1:{port}/schedule/j", timeout=5).json()

    digest = hashlib.sha256(lab.plain["model.onnx"]).hexdigest()
    port, process = run("with", NF_ARTEFACT_KEY=lab.key)
    with process:
        look = job(port)
        nf.eventually("it runs", lambda: look()["state"] == "Running", 30)
        copies = list((tmp_path / "with/data").rglob(f"sha256/{digest}"))
        assert copies and copies[0].read_bytes() == lab.plain["model.onnx"]
    port, process = run("without")
    with process:
        look = job(port)
        nf.eventually("it says why not", lambda: "NF_ARTEFACT_KEY" in json.dumps(look()) + process.output, 30)
        assert look()["state"] != "Running"
        assert not list((tmp_path / "without/data").rglob(f"sha256/{digest}"))
