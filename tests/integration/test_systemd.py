"""The service file: systemd itself reads it without complaint, and what nf relies on is in it."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import nf
import pytest
from nf import ROOT

UNIT = ROOT / "cluster/systemd/neural-fabric.service"


def test_what_replicas_need_to_outlive_their_agent_is_said():
    lines = UNIT.read_text().splitlines()
    for line in ("KillMode=process", "OOMPolicy=continue", "Delegate=cpu memory pids cpuset", "Restart=always",
                 "StateDirectoryMode=0711", "RuntimeDirectoryPreserve=yes"):
        assert line in lines, line
    assert not any(line.startswith("PrivateTmp=") for line in lines)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="SKIPPED: needs root and setpriv, to be somebody else")
def test_its_capabilities_give_replicas_users_of_their_own(monkeypatch):
    """nf as some user with what the file gives it, and a program that has none of that."""
    lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line)
    assert lines["AmbientCapabilities"] == lines["CapabilityBoundingSet"]
    names = [name.removeprefix("CAP_").lower() for name in lines["AmbientCapabilities"].split()]
    user, given = 64321, "-all," + ",".join(f"+{name}" for name in names)
    # As the directories that systemd makes.
    claims = pathlib.Path("/run") / lines["RuntimeDirectory"]
    claims.mkdir(mode=0o700, exist_ok=True)
    owner = claims.stat()
    folder = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp"))
    wrapper, store = folder / "nf", folder / "store"
    become = f"setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs"
    wrapper.write_text(f'#!/bin/sh\nexec {become} --inh-caps={given} --bounding-set={given} --ambient-caps={given} -- "{nf.NF}" "$@"\n')
    wrapper.chmod(0o755)
    (folder / "m").mkdir()
    (folder / "m/weights.onnx").write_bytes(b"w")
    argv = ["/usr/bin/python3", "-m", "http.server", "{port}", "--bind", "{host}"]
    (folder / "runtime.json").write_text(json.dumps({"argv": argv, "ready": {"path": "/"}}))
    publish = ["model", "publish", folder / "m", "--model", "m", "--version", "v1", "--store", f"file://{store}", "--runtime", folder / "runtime.json"]
    subprocess.run([str(nf.NF), *map(str, publish)], check=True, timeout=60)
    for path in [folder, *folder.rglob("*"), claims]:
        os.chown(path, user, user)
    folder.chmod(0o711)
    monkeypatch.setattr(nf.Process.__init__, "__defaults__", (None, "nf", wrapper))
    try:
        settings = {"MODEL_STORE_URL": f"file://{store}", "NF_REPLICA_USERS": "1900002000-1900002009"}
        with nf.Serve(folder / "serve", settings) as group:
            job = {"request_id": "r1", "tenant_id": "t1", "model_id": "m", "model_version": "v1", "resources": {"cpu": 0.1, "gpu": 0}}
            made = group.call("POST", "/schedule", job)
            assert made.status_code == 201, made.text
            group.wait_state("r1", "Running")
            (pid,) = [int(p.name) for p in pathlib.Path("/proc").iterdir() if p.name.isdigit() and runs(p, argv[2])]
            status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
            assert {1900002000 < int(uid) <= 1900002009 for uid in status["Uid"].split()} == {True}, status["Uid"]
            assert all(int(status[of], 16) == 0 for of in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
            group.nf("stop", "r1", "--yes")
            nf.eventually("it is gone", lambda: not pathlib.Path(f"/proc/{pid}").exists())
    finally:
        os.chown(claims, owner.st_uid, owner.st_gid)
        shutil.rmtree(folder)


def runs(process, word):
    """Whether it is a replica's Python of ours, with that word in its command line."""
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        return words[0] == "/usr/bin/python3" and word in words and 1900002000 < process.stat().st_uid <= 1900002009
    except OSError:
        return False


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="SKIPPED: no systemd-analyze on this machine")
def test_systemd_reads_it(tmp_path):
    # The program and the user are those of a machine that has nf; here any will do.
    text = UNIT.read_text().replace("/usr/local/bin/nf", "/bin/true").replace("User=neural-fabric", "User=root")
    unit = tmp_path / UNIT.name
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False)
    # systemd before 254 does not know it, and leaves it out: replicas then get groups without limits.
    known = [line for line in done.stderr.splitlines() if "DelegateSubgroup" not in line]
    said = [line for line in known if UNIT.name in line]
    assert done.returncode == 0 and said == [], done.stderr
