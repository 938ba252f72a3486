"""llama.cpp's own OpenAI-compatible server, as the package xllamacpp brings it:

    python llm_server.py MODEL HOST PORT SLOTS

SLOTS conversations at a time on one thread; more replicas are the way to more. It has
no handler for SIGTERM: whoever stops it lets it drain first.
"""

import signal
import sys

from xllamacpp import CommonParams, Server

TOKENS = 384  # of context, for each conversation

model, host, port, slots = sys.argv[1:]
params = CommonParams()
params.model.path = model
params.hostnames = [host]
params.port = int(port)
params.n_parallel = int(slots)
params.n_ctx = TOKENS * int(slots)
params.cpuparams.n_threads = 1
params.endpoint_metrics = True
server = Server(params)
signal.pause()
