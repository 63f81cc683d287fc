"""Clients that others wrote, in environments of their own, and a server for them to talk to.

`.venv-clients` holds the Python packages of constraints-clients.txt and the npm packages of node/. It is made when
it is missing or no longer what these files say, which needs a package index.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
ENVIRONMENT = ROOT / ".venv-clients"
PINS = ROOT / "constraints-clients.txt"
NODE = Path(__file__).parent / "node"
_SERVE = "from distaff.scripts.main import main; main()"


@dataclass(frozen=True)
class Clients:
    """Programs of the environment."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / "bin" / name)

    def run(self, *command: str) -> Any:
        """Runs a program, which must succeed, and reads the last line that it prints as JSON."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, f"{command[:2]} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    def program(self, name: str, *arguments: str) -> Any:
        """Runs one of programs/."""
        return self.run(self.path("python"), str(PROGRAMS / name), *arguments)


@dataclass(frozen=True)
class Server:
    """`distaff serve` on SmolLM2."""

    target: str
    http: str


@pytest.fixture(scope="session")
def clients() -> Clients:
    with _fresh("python", PINS) as needed:
        if needed:
            subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
            pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
            subprocess.run([*pip, "--disable-pip-version-check", "--requirement", str(PINS)], check=True)
    return Clients(ENVIRONMENT)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder that Node finds its packages in."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node and npm")
    folder = ENVIRONMENT / "node"
    with _fresh("node", NODE / "package-lock.json") as needed:
        if needed:
            shutil.copytree(NODE, folder, dirs_exist_ok=True)
            subprocess.run(["npm", "ci", "--silent", "--ignore-scripts"], cwd=folder, check=True)
    return folder / "node_modules"


@contextmanager
def _fresh(name: str, file: Path) -> Iterator[bool]:
    """Whether a part of the environment is to be made anew; one process at a time asks."""
    ENVIRONMENT.mkdir(exist_ok=True)
    stamp, want = ENVIRONMENT / f".{name}", hashlib.sha256(file.read_bytes()).hexdigest()
    with (ENVIRONMENT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        needed = not stamp.exists() or stamp.read_text() != want
        yield needed
        stamp.write_text(want)


@pytest.fixture(scope="session")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert smollm2.exists()  # the name is resolved without a download
    command = [sys.executable, "-c", _SERVE, "serve", "--model", "smollm2-135m-instruct"]
    command += ["--port", "0", "--http-port", "0", "--batch-dir", str(tmp_path_factory.mktemp("batches"))]
    with running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        ports = re.findall(r":(\d+)\b", line)
        assert len(ports) == 2, f"distaff serve said {line!r} where its ports were expected"
        yield Server(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")


@pytest.fixture(scope="session")
def gateway(clients: Clients, server: Server) -> Iterator[str]:
    """SMG in front of the server: the URL of its OpenAI API."""
    port, metrics = free_port(), free_port()
    command = [clients.path("smg"), "launch", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    command += ["--worker-urls", f"grpc://{server.target}"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
    url = f"http://127.0.0.1:{port}"
    with running(command, stdout=subprocess.DEVNULL) as process:
        until_it_has_models(url, process)
        yield url


@contextmanager
def running(command: list[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is asked to end at the end."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    process: Any = subprocess.Popen(command, env=environment, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def until_it_has_models(url: str, process: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as answer:
                if json.load(answer)["data"]:
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"{url} has no models; the gateway's exit code is {process.poll()}")


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
