"""Signatures: what was signed verifies, here and with minisign; nothing else does."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from wherry.bundle import signing
from wherry.errors import BundleError, UsageError


@pytest.fixture
def light(monkeypatch):
    """Locks that take milliseconds: libsodium's limits for N = 2^10."""
    monkeypatch.setattr(signing, "_OPS", 32_768)
    monkeypatch.setattr(signing, "_MEMORY", 1 << 21)


@pytest.fixture
def signed(tmp_path):
    """A file, its signature, and the key that verifies it."""
    signing.make_keys(tmp_path / "k.key", tmp_path / "k.pub", "")
    secret = signing.read_secret_key(tmp_path / "k.key", no_password)
    (tmp_path / "file").write_bytes(b"data" * 1000)
    signature = signing.sign(tmp_path / "file", secret, "a comment")
    return tmp_path / "file", signature, signing.read_public_key(str(tmp_path / "k.pub"))


def no_password():
    raise AssertionError("nobody has locked it")


def test_a_signature_holds_and_tells_its_comment(signed):
    assert signing.check(*signed) == "a comment"
    assert signed[1].name == "file.minisig"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, s: f.write_bytes(b"Data" * 1000), "does not hold"),
        (lambda f, s: s.write_text(s.read_text().replace("a comm", "b comm")), "does not hold"),
        (lambda f, s: s.write_text(s.read_text()[:40]), "no signature"),
        (lambda f, s: s.write_text("\n".join(["x"] * 4)), "no signature"),
        (lambda f, s: s.unlink(), "there is no signature"),
    ],
)
def test_what_was_changed_does_not_verify(signed, change, words):
    file, signature, _ = signed
    change(file, signature)
    with pytest.raises(BundleError, match=words):
        signing.check(*signed)


def test_a_signature_of_another_key_is_refused(signed, tmp_path):
    signing.make_keys(tmp_path / "o.key", tmp_path / "o.pub", "")
    other = signing.read_public_key((tmp_path / "o.pub").read_text().splitlines()[1])
    with pytest.raises(BundleError, match=f"not by {other.name}"):
        signing.check(*signed[:2], other)


def test_a_key_is_for_its_owner_alone(tmp_path):
    signing.make_keys(tmp_path / "k.key", tmp_path / "k.pub", "")
    assert (tmp_path / "k.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "k.key").chmod(0o640)
    with pytest.raises(UsageError, match=r"mode 640.*chmod 600"):
        signing.read_secret_key(tmp_path / "k.key", no_password)
    with pytest.raises(UsageError, match="not there yet"):
        signing.make_keys(tmp_path / "k.key", tmp_path / "k.pub", "")


def test_a_locked_key_wants_its_password(tmp_path, light):
    signing.make_keys(tmp_path / "k.key", tmp_path / "k.pub", "geheim")
    secret = signing.read_secret_key(tmp_path / "k.key", lambda: "geheim")
    assert secret.identity == signing.read_public_key(str(tmp_path / "k.pub")).identity
    assert "seed" not in repr(secret)
    with pytest.raises(UsageError, match="password is wrong") as caught:
        signing.read_secret_key(tmp_path / "k.key", lambda: "geraten")
    assert "geraten" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "no key", "RWQ=", "x\ny\n"])
def test_what_is_no_key_is_refused(tmp_path, text):
    (tmp_path / "k").write_text(text)
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(UsageError, match="no secret key"):
        signing.read_secret_key(tmp_path / "k", no_password)
    with pytest.raises(UsageError, match="no public key"):
        signing.read_public_key(str(tmp_path / "k"))
    with pytest.raises(UsageError, match="no public key"):
        signing.read_public_key(text)


def test_the_limits_of_minisign_are_those_of_its_own_rule():
    assert signing._scrypt_numbers(33_554_432, 1 << 30) == (1 << 20, 8, 1)


@pytest.mark.skipif(shutil.which("minisign") is None, reason="minisign is not installed")
def test_minisign_verifies_what_we_sign_and_we_what_it_signs(tmp_path, light):
    signing.make_keys(tmp_path / "k.key", tmp_path / "k.pub", "geheim")
    (tmp_path / "file").write_bytes(b"data")
    secret = signing.read_secret_key(tmp_path / "k.key", lambda: "geheim")
    signing.sign(tmp_path / "file", secret, "by wherry")

    def minisign(*arguments, said=""):
        return subprocess.run(
            ["minisign", *arguments],
            cwd=tmp_path, input=said, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert "by wherry" in minisign("-V", "-m", "file", "-p", "k.pub")
    minisign("-S", "-m", "file", "-s", "k.key", "-t", "by minisign", said="geheim\n")
    public = signing.read_public_key(str(tmp_path / "k.pub"))
    assert signing.check(tmp_path / "file", tmp_path / "file.minisig", public) == "by minisign"
    signing.make_keys(tmp_path / "p.key", tmp_path / "p.pub", "")
    minisign("-S", "-m", "file", "-s", "p.key", "-t", "without a password")
    public = signing.read_public_key(str(tmp_path / "p.pub"))
    assert signing.check(tmp_path / "file", tmp_path / "file.minisig", public).startswith("without")
    minisign("-G", "-W", "-p", "m.pub", "-s", "m.key")
    secret = signing.read_secret_key(tmp_path / "m.key", no_password)
    signing.sign(tmp_path / "file", secret, "its own key")
    assert re.search("its own key", minisign("-V", "-m", "file", "-p", "m.pub"))
