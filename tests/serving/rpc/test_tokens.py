"""Files of bearer tokens: what they may say, and what is said about those that say something else."""

import hashlib
import os
from pathlib import Path

import pytest

from distaff.backends.errors import UsageError
from distaff.serving.front import AuthenticationError, TenantLimits
from distaff.serving.rpc.callers import Identity
from distaff.serving.rpc.tokens import TokenFile

from ..driver import Clock

SECRET = "correct horse battery staple"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    os.utime(path, ns=(0, len(text)))  # another time for another text, however coarse the clock
    return path


def test_a_token_or_its_digest_names_a_tenant(tmp_path: Path) -> None:
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    path = write(
        tmp_path / "tokens.yaml",
        f"- sha256: {digest}\n  tenant: a\n  max_queued: 3\n"
        "- token: another long secret\n  tenant: ops\n  admin: true\n",
    )
    told: list[object] = []
    file = TokenFile(path, on_limits=told.append)
    assert file.authenticate(f"Bearer {SECRET}") == file.authenticate(f"bearer {SECRET}") == Identity("a")
    assert file.authenticate("Bearer another long secret") == Identity("ops", admin=True)
    assert told == [{"a": TenantLimits(max_queued=3), "ops": TenantLimits()}]
    for wrong in (None, "", "Bearer", "Bearer ", SECRET, f"Basic {SECRET}", f"Bearer {digest}", "Bearer \udcff"):
        with pytest.raises(AuthenticationError) as caught:
            file.authenticate(wrong)
        assert SECRET not in str(caught.value)


def test_wrong_tokens_by_the_thousand_fill_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    file = TokenFile(write(tmp_path / "tokens.yaml", f"- token: {SECRET}\n  tenant: a\n"))
    for number in range(10_000):
        with pytest.raises(AuthenticationError, match="not valid here"):
            file.authenticate(f"Bearer {SECRET[:-1]}{number}")
    assert not caplog.records


def test_a_change_counts_and_a_broken_file_does_not(tmp_path: Path) -> None:
    clock = Clock()
    path = write(tmp_path / "tokens.yaml", f"- token: {SECRET}\n  tenant: a\n")
    told: list[object] = []
    file = TokenFile(path, on_limits=told.append, clock=clock)
    write(path, "- token: a quite different secret\n  tenant: b\n")
    assert file.authenticate(f"Bearer {SECRET}") == Identity("a"), "looked at once a second at most"
    clock.now += 2
    with pytest.raises(AuthenticationError):
        file.authenticate(f"Bearer {SECRET}")
    assert file.authenticate("Bearer a quite different secret") == Identity("b") and len(told) == 2
    write(path, "- token: [")
    clock.now += 2
    assert file.authenticate("Bearer a quite different secret") == Identity("b")
    path.unlink()
    clock.now += 2
    assert file.authenticate("Bearer a quite different secret") == Identity("b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no list"),
        ("a: 1", "no list"),
        ("- 5", "entry 1 is a int"),
        ("- token: [", "no YAML"),
        ("- tenant: a", "either token or sha256"),
        (f"- token: {SECRET}", "tenant is None"),
        (f"- {{token: {SECRET}, tenant: a, admin: 'yes'}}", "admin is 'yes'"),
        (f"- {{token: {SECRET}, tenant: a, limit: 5}}", "has limit"),
        (f"- {{token: {SECRET}, tenant: a, max_queued: many}}", "max_queued is 'many'"),
        (f"- {{token: {SECRET}, tenant: a, max_queued: 0}}", "max_queued"),
        ("- {token: short, tenant: a}", "at least 16 characters"),
        ("- {sha256: abc, tenant: a}", "no SHA-256"),
        (f"- {{token: {SECRET}, tenant: a}}\n- {{token: {SECRET}, tenant: b}}", "two entries"),
        (
            f"- {{token: {SECRET}, tenant: a}}\n- {{token: another long secret, tenant: a, max_queued: 1}}",
            "other limits",
        ),
    ],
)
def test_what_else_a_file_says_is_explained(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        TokenFile(write(tmp_path / "tokens.yaml", text))
    assert SECRET not in str(caught.value)
