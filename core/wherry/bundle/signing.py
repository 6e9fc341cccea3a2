"""Signatures in minisign's form: Ed25519 over BLAKE2b-512 of the archive, in ``FILE.minisig``.

``minisign -Vm FILE -p KEY.pub`` checks what is signed here, and keys that ``minisign -G`` made sign
here, with a password (scrypt) and without. The form: https://jedisct1.github.io/minisign/.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wherry.errors import BundleError, UsageError
from wherry.files import replacing

SUFFIX = ".minisig"

_PURE, _HASHED = b"Ed", b"ED"  # what a key is, and what a signature over a hash is
_SCRYPT, _PLAIN, _BLAKE2B = b"Sc", b"\0\0", b"B2"
_OPS, _MEMORY = 33_554_432, 1 << 30  # libsodium's limits of `minisign -G`: N = 2^20, r = 8, p = 1
_MOST_MEMORY = 2 << 30
_SECRET_BYTES = 104  # key id, seed, public key, checksum
_FILE_BYTES = 4096
_CHUNK = 1 << 20


@dataclass(frozen=True, repr=False)
class SecretKey:
    """A key that signs; it is never shown.

    Attributes:
        identity: 8 bytes that public keys and signatures have, too.
        seed: of Ed25519, 32 bytes.
    """

    identity: bytes
    seed: bytes


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies; see `SecretKey`."""

    identity: bytes
    key: bytes

    @property
    def name(self) -> str:
        """As minisign shows it."""
        return self.identity[::-1].hex().upper()

    @property
    def text(self) -> str:
        """A file's text."""
        line = base64.b64encode(_PURE + self.identity + self.key).decode()
        return f"untrusted comment: minisign public key {self.name}\n{line}\n"


def make_keys(secret: Path, public: Path, password: str) -> PublicKey:
    """Write a new pair of keys.

    Args:
        secret: the file of the one that signs; readable by its owner alone.
        public: of the one that verifies.
        password: that the first is locked with; empty: none.

    Raises:
        UsageError: a file is there already, or cannot be written.
    """
    seed, identity = secrets.token_bytes(32), secrets.token_bytes(8)
    key = PublicKey(identity, _public(seed))
    checksum = hashlib.blake2b(_PURE + identity + seed + key.key, digest_size=32).digest()
    body = identity + seed + key.key + checksum
    salt, kdf = secrets.token_bytes(32), _SCRYPT if password else _PLAIN
    if password:
        body = _locked(body, password, salt, _OPS, _MEMORY)
    numbers = _OPS.to_bytes(8, "little") + _MEMORY.to_bytes(8, "little")
    packed = _PURE + kdf + _BLAKE2B + salt + (numbers if password else bytes(16)) + body
    line = base64.b64encode(packed).decode()
    _create(secret, f"untrusted comment: minisign secret key\n{line}\n", 0o600)
    try:
        _create(public, key.text, 0o644)
    except UsageError:
        secret.unlink()
        raise
    return key


def _create(path: Path, text: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise UsageError(
            f"the key cannot be written: {error.strerror}",
            where=str(path),
            remedy="Name a file that is not there yet, in a folder that you may write.",
        ) from error
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(text)


def read_secret_key(path: Path, password: Callable[[], str]) -> SecretKey:
    """Read a key that signs.

    Args:
        path: of the file; nobody but its owner may have access to it.
        password: asked for where the key is locked with one.

    Raises:
        UsageError: others may read it, it is no such key, or the password is wrong.
    """
    packed = _line(path, 1, "secret key", secret=True)
    kdf, salt, body = packed[2:4], packed[6:38], packed[54:]
    if len(packed) != 54 + _SECRET_BYTES or packed[:2] != _PURE or packed[4:6] != _BLAKE2B:
        raise _no_key(path, "secret key")
    if kdf == _SCRYPT:
        ops, memory = (int.from_bytes(packed[at : at + 8], "little") for at in (38, 46))
        body = _locked(body, password(), salt, ops, memory)
    elif kdf != _PLAIN:
        raise _no_key(path, "secret key")
    identity, seed, public, checksum = body[:8], body[8:40], body[40:72], body[72:]
    wanted = hashlib.blake2b(_PURE + identity + seed + public, digest_size=32).digest()
    # minisign leaves the checksum of a key without a password at zero
    whole = kdf == _PLAIN or secrets.compare_digest(checksum, wanted)
    if not whole or _public(seed) != public:
        raise UsageError(
            "the password is wrong, or the key's file is damaged",
            where=str(path),
            remedy="Give the password that the key was made with.",
        )
    return SecretKey(identity, seed)


def _locked(body: bytes, password: str, salt: bytes, ops: int, memory: int) -> bytes:
    """Lock or unlock, which is the same: xor with scrypt of the password."""
    n, r, p = _scrypt_numbers(ops, memory)
    need = 128 * r * (n + p + 2)
    if need > _MOST_MEMORY:
        raise UsageError(
            f"the key's lock wants {need} bytes of memory: too many",
            remedy="Make another key with `wherry bundle key`.",
        )
    stream = hashlib.scrypt(
        password.encode(), salt=salt, n=n, r=r, p=p, maxmem=need, dklen=len(body)
    )
    return bytes(a ^ b for a, b in zip(body, stream, strict=True))


def _scrypt_numbers(ops: int, memory: int) -> tuple[int, int, int]:
    """N, r, p from libsodium's two limits, by its own rule."""
    ops, r = max(ops, 32_768), 8
    if ops < memory // 32:
        return 1 << _power(ops // (r * 4)), r, 1
    power = _power(memory // (r * 128))
    rounds = min((ops // 4) // (1 << power), 0x3FFFFFFF)
    return 1 << power, r, rounds // r


def _power(most: int) -> int:
    return next(power for power in range(1, 64) if 1 << power > most // 2)


def read_private(path: Path) -> str:
    """A small file that its owner alone has access to; raises `UsageError`."""
    return "\n".join(_lines(path, secret=True))


def read_public_key(text: str) -> PublicKey:
    """A key that verifies: its file's path, or the key itself as minisign's ``-P`` takes it.

    Raises:
        UsageError: it is neither.
    """
    path = Path(text)
    packed = _line(path, 1, "public key") if path.is_file() else _decoded(text)
    if packed is None or len(packed) != 42 or packed[:2] != _PURE:
        raise _no_key(path, "public key")
    return PublicKey(packed[2:10], packed[10:])


def sign(path: Path, key: SecretKey, comment: str) -> Path:
    """Write ``FILE.minisig`` beside an archive.

    Args:
        path: the archive.
        key: that signs.
        comment: is signed, too; one line.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    signature = private.sign(_hash(path))
    over_all = private.sign(signature + comment.encode())
    first = base64.b64encode(_HASHED + key.identity + signature).decode()
    text = (
        f"untrusted comment: signature from wherry bundle\n{first}\n"
        f"trusted comment: {comment}\n{base64.b64encode(over_all).decode()}\n"
    )
    made = path.with_name(path.name + SUFFIX)
    with replacing(made) as file:
        file.write_text(text, encoding="utf-8")
    return made


def check(path: Path, signature: Path, key: PublicKey) -> str:
    """Check an archive against its signature.

    Returns:
        The signed comment.

    Raises:
        BundleError: there is none, it is of another key, or not of this archive.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not signature.is_file():
        raise BundleError(
            "there is no signature",
            where=str(signature),
            remedy="Get the .minisig file from whoever made the bundle, and put it beside it.",
        )
    packed, over_all = (_line(signature, index, "signature", error=BundleError) for index in (1, 3))
    marked = _lines(signature)[2]
    mark = "trusted comment: "
    if len(packed) != 74 or len(over_all) != 64 or not marked.startswith(mark):
        raise _no_key(signature, "signature", BundleError)
    kind, identity, made = packed[:2], packed[2:10], packed[10:]
    if identity != key.identity:
        raise BundleError(
            f"it is signed by the key {identity[::-1].hex().upper()}, not by {key.name}",
            where=str(signature),
            remedy="Use the public key of whoever made it.",
        )
    if kind != _HASHED:
        raise BundleError(
            "the signature is of minisign's older form, over the file itself",
            where=str(signature),
            remedy="Have it signed by `minisign -S -H`, or by wherry.",
        )
    comment, public = marked.removeprefix(mark), Ed25519PublicKey.from_public_bytes(key.key)
    for signed, over, what in (
        (made, _hash(path), path),
        (over_all, made + comment.encode(), signature),
    ):
        try:
            public.verify(signed, over)
        except InvalidSignature as error:
            raise BundleError(
                "the signature does not hold: it was changed since it was signed",
                where=str(what),
                remedy="Do not use it; get it again from whoever made it.",
            ) from error
    return comment


def _public(seed: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _hash(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.digest()


def _line(
    path: Path,
    index: int,
    what: str,
    *,
    secret: bool = False,
    error: type[UsageError | BundleError] = UsageError,
) -> bytes:
    """A line of a file, decoded."""
    lines = _lines(path, secret=secret)
    decoded = _decoded(lines[index]) if index < len(lines) else None
    if decoded is None:
        raise _no_key(path, what, error)
    return decoded


def _lines(path: Path, *, secret: bool = False) -> list[str]:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if secret and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise UsageError(
                    f"others than its owner have access to the key (mode {stat.S_IMODE(mode):o})",
                    where=str(path),
                    remedy=f"chmod 600 {path}",
                )
            return stream.read(_FILE_BYTES).decode(errors="replace").splitlines()
    except OSError as error:
        raise UsageError(
            f"the file cannot be read: {error.strerror}",
            where=str(path),
            remedy="Correct the path.",
        ) from error


def _decoded(line: str) -> bytes | None:
    try:
        return base64.b64decode(line.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None


def _no_key(
    path: Path, what: str, error: type[UsageError | BundleError] = UsageError
) -> UsageError | BundleError:
    return error(
        f"that is no {what} in minisign's form",
        where=str(path),
        remedy=f"Give a {what} that minisign or `wherry bundle` made.",
    )
