"""Wires between processes of a test, which can be cut: bytes wait then, as TCP would have it. It does not know what they say."""

import os
import socket
import threading
import time
from pathlib import Path

from nf import free_port


class Wire:
    """Passes bytes on between a port and another, or, while it is cut, none at all."""

    def __init__(self, to):
        self.to, self.port = to, free_port()
        self.whole = threading.Event()
        self.whole.set()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.sockets = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                here, _ = self.listener.accept()
            except OSError:
                return
            try:
                there = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                # Nobody is there (yet).
                here.close()
                continue
            self.sockets += [here, there]
            for pair in ((here, there), (there, here)):
                threading.Thread(target=self.pump, args=pair, daemon=True).start()

    def pump(self, source, target):
        try:
            while data := source.recv(65536):
                # What was sent into the cut arrives when it heals, as TCP would have it.
                self.whole.wait()
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def close(self):
        self.whole.set()
        for end in (self.listener, *self.sockets):
            end.close()


def has(pid, port):
    """Whether the process has the connection from that port of this machine."""
    here = f"0100007F:{port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    links = {f"socket:[{words[9]}]" for words in lines if words[1] == here}
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(fd) in links:
                return True
        except OSError:
            continue
    return False


class Door(Wire):
    """A wire to one member that can be closed to the connections of some other processes alone."""

    def __init__(self, to):
        self.closed_to = frozenset()
        super().__init__(to)

    def is_theirs(self, pid, port, known):
        if pid not in known:
            known[pid] = has(pid, port)
        return known[pid]

    def pump(self, source, target):
        try:
            # Either end may be the one that came in.
            (came,) = [port for port in (end.getpeername()[1] for end in (source, target)) if port != self.to]
            theirs = {}
            while data := source.recv(65536):
                self.whole.wait()
                while any(self.is_theirs(pid, came, theirs) for pid in self.closed_to):
                    time.sleep(0.05)
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()
