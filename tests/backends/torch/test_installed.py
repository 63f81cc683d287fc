"""What is said where torch is missing; and that nothing imports it unasked. These need no torch."""

import subprocess
import sys

import pytest

from distaff.backends.errors import UnsupportedError
from distaff.backends.select import CANDIDATES, select_backend
from distaff.backends.torch import installed


@pytest.mark.parametrize("name", ["torch:cpu", "torch:xla", "torch:hpu"])
def test_without_torch_the_message_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"torch is not installed; .*pip install 'distaff\[torch"):
        select_backend(name)


def test_an_old_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: object())
    monkeypatch.setattr(installed, "version", lambda name: "1.13.1+cpu")
    with pytest.raises(UnsupportedError, match=r"torch 1\.13\.1\+cpu is too old, expected 2\.6 or later"):
        select_backend("torch:cpu")


def test_a_torch_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda name: object())
    monkeypatch.setattr(installed, "version", lambda name: "2.9.1")
    monkeypatch.setitem(sys.modules, "distaff.backends.torch.backend", None)  # the import fails
    with pytest.raises(UnsupportedError, match=r"torch is installed but cannot be imported, install it anew: "):
        select_backend("torch:cpu")


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"'torch:tpu': unknown, expected auto or one of .*torch:cpu, torch:xla"):
        select_backend("torch:tpu")


def test_auto_never_takes_torch() -> None:
    assert list(CANDIDATES).index("reference") < list(CANDIDATES).index("torch:cpu")


def test_importing_distaff_imports_no_torch() -> None:
    program = (
        "import sys; import distaff.serving, distaff.scripts.main, distaff.backends.select, distaff.backends.torch; "
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'torch_xla', 'habana_frameworks')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
