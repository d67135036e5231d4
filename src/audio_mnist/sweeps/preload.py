"""Imported once, by the process that a sweep's workers are forked from: `launchers._fork_server`."""

import os
import signal

from audio_mnist.sweeps import workers

before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C during an import would print a traceback
workers.import_all(os.environ.get(workers.KIND) or None)
signal.signal(signal.SIGINT, before)
