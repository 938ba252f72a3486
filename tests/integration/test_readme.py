"""The commands of the README and of the pages for operators, as they stand there, in order, each page against a
development cluster of its own. Only the ports and the run folder are replaced.
"""

import re
import subprocess
from pathlib import Path

import pytest
import requests
from nf import NF, ROOT, Dev, eventually

# Starting the cluster, building and testing are done by others (tests/it/documents.rs names them).
ELSEWHERE = ("make ", "export PATH=")
PAGES = ["README.md", "docs/operations.md", "docs/scheduling.md", "docs/services.md"]


def commands(document):
    """Lines of the ```sh fences, continuations joined, comments dropped."""
    out = []
    for block in re.findall(r"^```sh\n(.*?)^```", document, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split(" # ")[0].strip()
            if command and not command.startswith(("#", *ELSEWHERE)):
                out.append(command)
    return out


@pytest.mark.parametrize("document", PAGES)
def test_every_command_does_what_the_document_says(tmp_path, document):
    found = commands((ROOT / document).read_text())
    assert found
    with Dev(tmp_path) as group:
        env = {**group.environment, "PATH": f"{NF.parent}:{group.environment['PATH']}"}
        for command in found:
            for port, url in zip((8600, 8610, 8620), group.urls, strict=True):
                command = command.replace(f"http://localhost:{port}", url)
            command = command.replace("/tmp/neural_runs", str(group.runs))
            # curl is content with an error page; a reader of the README is not.
            command = command.replace("curl -s ", "curl -sS --fail-with-body --retry 3 --retry-all-errors ")
            if command.startswith("cat "):  # nor does a reader type before the replica has started
                file = Path(command.split()[1])
                eventually(f"{file} is there", file.exists)
            done = subprocess.run(["bash", "-eu", "-o", "pipefail", "-c", command], env=env, cwd=ROOT,
                                  capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, f"{command}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
            if "dev kill" in command:
                bring_back(group)


def bring_back(group):
    """The document goes on with three members; its reader may, or may not, have restarted the one."""
    dead = eventually("one of them is dead", lambda: [m for m in range(len(group.urls)) if not answers(group, m)])
    for member in dead:
        group.restart(member)


def answers(group, member):
    try:
        return group.call("GET", "/health", member=member, timeout=2).ok
    except requests.RequestException:
        return False
