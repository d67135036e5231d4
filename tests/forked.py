"""Commands without their imports, which take seconds: one process imports everything, and each command is a fork of it.

`python -m tests.forked` is that process. It reads a request per line, and writes the process id and the exit status.
"""

import atexit
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

PROJECT = Path(__file__).parents[1]


class Commands:
    """Runs `python SCRIPT ARGUMENTS` as `subprocess.run` does, without its imports."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.forked"]
        self._server = subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._outputs = tempfile.TemporaryDirectory()

    def run(self, folder: Path, script: Path, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a script in a folder; `subprocess.TimeoutExpired` where it takes longer."""
        out, err = (Path(self._outputs.name) / name for name in ("out", "err"))
        # one core: a sweep's runs train in its own process, without the workers' imports, unless n_jobs says otherwise
        environment = {**os.environ, "LOKY_MAX_CPU_COUNT": "1"}
        request = {"script": str(script), "folder": str(folder), "environment": environment}
        request["arguments"] = list(map(str, arguments))
        assert self._server.stdin is not None and self._server.stdout is not None
        print(json.dumps(request | {"out": str(out), "err": str(err)}), file=self._server.stdin, flush=True)
        pid = int(self._server.stdout.readline())
        late = threading.Event()

        def end() -> None:
            late.set()
            os.kill(pid, 9)

        timer = threading.Timer(timeout, end)
        timer.start()
        status = int(self._server.stdout.readline())
        timer.cancel()
        texts = [path.read_text(encoding="utf-8") for path in (out, err)]
        command = [sys.executable, str(script), *arguments]
        if late.is_set():
            raise subprocess.TimeoutExpired(command, timeout, *texts)
        return subprocess.CompletedProcess(command, status, *texts)


def serve() -> dict[str, Any] | None:
    """Fork a process for each request; return the request in that process, None at the end."""
    for line in sys.stdin:
        if not (pid := os.fork()):
            return json.loads(line)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return None


def become(request: dict[str, Any]) -> NoReturn:
    """Run a request's script in this process, as Python would, and end it."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    files = [
        nothing,
        *(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for name in ("out", "err")),
    ]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path[0] = str(Path(request["script"]).parent)
    status: Any = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        status = 0 if status is None else print(status, file=sys.stderr) or 1
    # Python's own end would wait for threads of libraries that a fork does not have
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    from audio_mnist.sweeps import workers

    workers.import_all("sqlite:")
    for name in ("matplotlib.pyplot", "scipy.stats", "sklearn.metrics", "audio_mnist.ensembles.run"):
        __import__(name)
    if found := serve():
        become(found)
