"""A model server for magika's ONNX model: bytes in, file type out.

    python onnx_server.py MODEL CONFIG HOST PORT

One inference at a time; others wait and are counted. The model file must have
the SHA-256 in NF_MODEL_SHA256 (if set), else the server exits with 3. SIGTERM
lets running answers finish.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime as ort
from prometheus_client import REGISTRY, Gauge, Histogram, generate_latest

MAX_BODY = 64 << 20
WAITING = Gauge("nf_model_requests_waiting", "Requests that wait for the inference slot.")
RUNNING = Gauge("nf_model_requests_running", "Requests being inferred.")
DURATION = Histogram("nf_model_request_duration_seconds", "Time from a request's arrival to its answer.")


class Model:
    """The network and what its numbers mean."""

    def __init__(self, model: bytes, config: dict):
        # One thread: a replica is one slot, and more replicas are the way to more.
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name
        self.config = config
        self.labels = config["target_labels_space"]
        self.slot = threading.Lock()

    def features(self, content: bytes) -> np.ndarray:
        """The first and the last bytes of the content, without the white space around it, padded."""
        block, head, tail = (self.config[k] for k in ("block_size", "beg_size", "end_size"))
        pad = self.config["padding_token"]
        first, last = content[:block].lstrip()[:head], content[-block:].rstrip()[-tail:]
        row = list(first) + [pad] * (head - len(first)) + [pad] * (tail - len(last)) + list(last)
        return np.array([row], dtype=np.int32)

    def infer(self, content: bytes) -> dict:
        with DURATION.time():
            with WAITING.track_inprogress():
                self.slot.acquire()
            try:
                with RUNNING.track_inprogress():
                    scores = self.session.run(None, {self.input: self.features(content)})[0][0]
            finally:
                self.slot.release()
        best = int(np.argmax(scores))
        return {"label": self.labels[best], "score": round(float(scores[best]), 4)}


class Handler(BaseHTTPRequestHandler):
    # HTTP/1.0, one answer per connection: nobody who is idle holds up the end.
    timeout = 5  # seconds that a silent connection may
    model: Model

    def answer(self, status: int, body: bytes, kind: str = "application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/health":
            self.answer(200, b'{"status":"ok"}')
        elif self.path == "/metrics":
            self.answer(200, generate_latest(REGISTRY), "text/plain; version=0.0.4")
        else:
            self.answer(404, b'{"error":"GET /health, GET /metrics, POST /infer"}')

    def do_POST(self):
        length = self.headers.get("Content-Length", "")
        if self.path != "/infer" or not length.isdigit() or int(length) > MAX_BODY:
            self.answer(400, b'{"error":"POST /infer with Content-Length, at most 64 MiB"}')
            return
        result = self.model.infer(self.rfile.read(int(length)))
        self.answer(200, json.dumps(result).encode())

    def log_message(self, *_):
        pass  # a line per request would fill the log


class Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for answers that have begun
    request_queue_size = 128


def main() -> int:
    model_path, config_path, host, port = sys.argv[1:5]
    with open(model_path, "rb") as file:
        model = file.read()
    wanted, found = os.environ.get("NF_MODEL_SHA256"), hashlib.sha256(model).hexdigest()
    if wanted and wanted != found:
        print(f"refused: {model_path} has SHA-256 {found}, wanted {wanted}", flush=True)
        return 3
    with open(config_path, encoding="utf-8") as file:
        Handler.model = Model(model, json.load(file))
    server = Server((host, int(port)), Handler)
    # shutdown() waits for the loop that the signal interrupts, hence from another thread.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"serving {found[:12]} on {host}:{port}", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.server_close()
    print("drained", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
