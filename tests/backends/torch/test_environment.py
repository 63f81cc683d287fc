"""The environment with torch and torch_xla, and the tests of this folder inside it."""

import fcntl
import hashlib
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ENVIRONMENT = ROOT / ".venv-torch"
PINS = ROOT / "constraints-torch.txt"


def made() -> Path:
    """The environment's Python. It sees what this Python has installed, and torch with what that needs in addition."""
    stamp, want = ENVIRONMENT / ".installed", hashlib.sha256(PINS.read_bytes()).hexdigest()
    python = ENVIRONMENT / "bin" / "python"
    ENVIRONMENT.mkdir(exist_ok=True)
    with (ENVIRONMENT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != want:
            subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
            pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
            subprocess.run([*pip, "--requirement", str(PINS)], check=True)
            (packages,) = ENVIRONMENT.glob("lib/python*/site-packages")
            ours = [path for path in site.getsitepackages() if Path(path).is_dir()]
            (packages / "distaff-tests.pth").write_text("".join(f"import site; site.addsitedir({x!r})\n" for x in ours))
            stamp.write_text(want)
    return python


@pytest.mark.soak  # makes 6 GB, of which CI has no use in every run
def test_everything_that_needs_torch_passes_where_it_is() -> None:
    command = [str(made()), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["--ignore", str(HERE / "test_environment.py"), str(HERE)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout[-4000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
