"""A collector of traces for tests: takes OTLP over HTTP, reads the protobuf itself, and keeps what it was
sent. It knows the few fields of opentelemetry/proto/trace/v1/trace.proto that the tests ask for.
"""

import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = {1: "internal", 2: "server", 3: "client"}


@dataclass
class Span:
    """A span, and the process that it is of."""

    name: str
    trace: str
    id: str
    parent: str
    kind: str
    process: str
    nanos: int
    attributes: dict = field(default_factory=dict)


def fields(data):
    """(number, value) of each field of a protobuf message, whatever it is called."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
        elif kind == 2:
            length = varint()
            yield number, data[at:at + length]
            at += length
        else:
            size = {1: 8, 5: 4}[kind]
            yield number, struct.unpack("<Q" if size == 8 else "<I", data[at:at + size])[0]
            at += size


def attributes(data, number):
    """Those of a resource or a span, by name."""
    out = {}
    for tag, pair in fields(data):
        if tag == number:
            named = dict(fields(pair))
            value = next(iter(dict(fields(named.get(2, b""))).values()), None)
            out[named[1].decode()] = value.decode() if isinstance(value, bytes) else value
    return out


def spans(request):
    """All spans of an ExportTraceServiceRequest."""
    for _, of_process in fields(request):
        parts = list(fields(of_process))
        resource = next((attributes(data, 1) for tag, data in parts if tag == 1), {})
        for scope in (data for tag, data in parts if tag == 2):
            for span in (data for tag, data in fields(scope) if tag == 2):
                told = dict(fields(span))
                yield Span(told[5].decode(), told[1].hex(), told[2].hex(), told.get(4, b"").hex(),
                           KINDS.get(told.get(6), "?"), resource.get("service.instance.id"),
                           told[8] - told[7], attributes(span, 9))


class Collector:
    def __init__(self):
        self.url, self.raw, self.spans = None, [], []

    def of(self, trace):
        """The spans of one trace by name, the first of each."""
        found = {}
        for span in list(self.spans):
            if span.trace == trace:
                found.setdefault(span.name, span)
        return found


@contextmanager
def collector():
    """A collector on a free port, for as long as the test takes."""
    kept = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            kept.raw.append(body)
            kept.spans.extend(spans(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    kept.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
