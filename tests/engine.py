"""A container engine of one's own for a test: Debian's dockerd, unpacked and not
installed, with its data, socket, bridge and control groups below names that nobody else
has, and an image of one static program. It leaves nothing behind.

Where none can start, `Engine.absent` says why in one line.
"""

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from nf import ROOT, eventually
from worker import processes

SOURCE = ROOT / "tests/data/container/server.c"
GIVEN = range(20, 120)  # third byte of the bridges' networks


def run(*args, **more):
    return subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=120, check=False, **more)


class Absent(Exception):
    """Why no engine can start here."""


class Engine:
    def __init__(self):
        if os.geteuid() != 0:
            raise Absent("an engine of the test's own needs root")
        for tool in ("ip", "gcc"):
            if not shutil.which(tool):
                raise Absent(f"{tool} is not here")
        brought = run(ROOT / ".ci/docker")
        if brought.returncode:
            raise Absent(f"Debian's docker.io can't be had: {brought.stderr.strip()[-200:]}")
        self.tools = Path(brought.stdout.strip())
        # Short: the path of containerd's socket lies below it, and has 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="nfe"))
        self.tag = f"nfe{random.randrange(1 << 24):06x}"
        self.socket = self.folder / "docker.sock"
        self.log = self.folder / "dockerd.log"
        self.child = None
        libraries = ":".join(str(p) for p in (*self.tools.glob("usr/lib/*-linux-gnu"), *self.tools.glob("lib/*-linux-gnu")))
        self.environment = {"PATH": f"{self.tools}/usr/sbin:{self.tools}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                            "HOME": str(self.folder), "DOCKER_HOST": f"unix://{self.socket}", "LD_LIBRARY_PATH": libraries}
        try:
            self.make_bridge()
            self.start()
            self.image = self.make_image()
        except AssertionError as error:
            told = self.log.read_text(errors="replace")[-600:] if self.log.exists() else ""
            self.close()
            raise Absent(f"{error} {told}".replace("\n", " ")) from None

    def make_bridge(self):
        for third in random.sample(GIVEN, 10):
            made = run("ip", "link", "add", "name", self.tag, "type", "bridge")
            assert made.returncode == 0, f"no bridge can be made: {made.stderr.strip()}"
            taken = f"172.29.{third}." in run("ip", "-4", "address").stdout
            done = not taken and run("ip", "address", "add", f"172.29.{third}.1/24", "dev", self.tag).returncode == 0
            if done and run("ip", "link", "set", self.tag, "up").returncode == 0:
                return
            run("ip", "link", "del", self.tag)
        raise AssertionError("no network is free for a bridge")

    def start(self):
        """Also again, on the same data, after `kill`."""
        config = self.folder / "config.json"
        # It would keep a key of its own in /etc otherwise.
        config.write_text(json.dumps({"deprecated-key-path": str(self.folder / "key.json")}))
        args = ["dockerd", "--config-file", config, "-H", f"unix://{self.socket}", "--data-root", self.folder / "data",
                "--exec-root", self.folder / "x", "--pidfile", self.folder / "pid", "--storage-driver", "vfs",
                "--iptables=false", "--ip6tables=false", "--bridge", self.tag, "--cgroup-parent", f"/{self.tag}"]
        with self.log.open("ab") as log:
            self.child = subprocess.Popen([str(a) for a in args], env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def up():
            assert self.child.poll() is None, f"dockerd ended with {self.child.returncode}"
            return self.docker("version").returncode == 0

        eventually("dockerd answers", up, 40)

    def make_image(self):
        """FROM scratch, with one file; returns its id."""
        (self.folder / "image").mkdir()
        program = self.folder / "image/server"
        built = run("gcc", "-static", "-pthread", "-O1", "-o", program, SOURCE)
        assert built.returncode == 0, f"the static server can't be built: {built.stderr.strip()[-200:]}"
        tar = subprocess.run(["tar", "-C", program.parent, "-c", "server"], capture_output=True, check=True).stdout
        done = subprocess.run([self.tools / "usr/bin/docker", "import", "-", "nf-test:v1"], env=self.environment,
                              input=tar, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, f"the image can't be imported: {done.stderr.decode()[-200:]}"
        return done.stdout.decode().strip()

    def docker(self, *args):
        return run(self.tools / "usr/bin/docker", *args, env=self.environment)

    def containers(self, *filters):
        """All that there are, running or not, as `docker inspect` has them."""
        ids = self.docker("ps", "-aq", "--no-trunc", *(f"--filter={f}" for f in filters)).stdout.split()
        return json.loads(self.docker("inspect", *ids).stdout) if ids else []

    def kill(self):
        """As a crash of the engine would; its containers' own keepers live on."""
        self.child.kill()
        self.child.wait()
        # Its other half outlives it, and would be found by nobody.
        for pid in self.processes("containerd --config"):
            os.kill(pid, 9)
        # Where nobody waits for orphans it would count as alive.
        (self.folder / "x/containerd/containerd.pid").unlink(missing_ok=True)

    def processes(self, text=""):
        """Those whose command line names this engine's folder, which nobody else's does."""
        return processes(str(self.folder), text)

    def close(self):
        if self.child and self.child.poll() is None:
            for found in self.containers() if self.socket.exists() else []:
                self.docker("rm", "-f", "-v", found["Id"])
            self.child.terminate()
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        until = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < until:
            for pid in left:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
            time.sleep(0.1)
        run("ip", "link", "del", self.tag)
        for mount in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if mount.split()[1].startswith(str(self.folder)):
                run("umount", "-l", mount.split()[1])
        shutil.rmtree(self.folder, ignore_errors=True)
        for group in Path("/sys/fs/cgroup").glob(f"**/{self.tag}"):
            for inner in sorted(group.glob("**/"), reverse=True):
                try:
                    inner.rmdir()
                except OSError:
                    pass
