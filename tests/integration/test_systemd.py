"""The service file: systemd itself reads it without complaint, and what nf relies on is in it."""

import shutil
import subprocess

import pytest
from nf import ROOT

UNIT = ROOT / "cluster/systemd/neural-fabric.service"


def test_what_replicas_need_to_outlive_their_agent_is_said():
    lines = UNIT.read_text().splitlines()
    for line in ("KillMode=process", "OOMPolicy=continue", "Delegate=cpu memory pids", "Restart=always"):
        assert line in lines, line
    assert not any(line.startswith("PrivateTmp=") for line in lines)


def test_the_agent_has_no_capability_that_a_replica_could_inherit():
    assert not any(line.startswith("AmbientCapabilities=") for line in UNIT.read_text().splitlines())


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
