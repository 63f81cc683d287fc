"""Choosing a backend."""

import pytest

from distaff.backends import select
from distaff.backends.errors import UnsupportedError


def test_auto_takes_the_first_that_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    def decline() -> select.ReferenceBackend:
        raise UnsupportedError("no chip")

    monkeypatch.setattr(select, "CANDIDATES", {"tpu": decline, "reference": select.ReferenceBackend})
    assert select.select_backend().name == "reference"


def test_every_reason_is_reported_when_all_decline(monkeypatch: pytest.MonkeyPatch) -> None:
    def decline() -> select.ReferenceBackend:
        raise UnsupportedError("no chip")

    monkeypatch.setattr(select, "CANDIDATES", {"tpu": decline, "gpu": decline})
    with pytest.raises(UnsupportedError, match=r"tpu: no chip\n  gpu: no chip"):
        select.select_backend()


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match="'quantum': unknown, expected auto or one of tpu, gpu, cpu, reference"):
        select.select_backend("quantum")
