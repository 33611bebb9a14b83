"""Private keys in files: made, kept, opened, and used to sign. The centre has some, and each lab has one of its own.

A private key is a PEM file (PKCS 8, Ed25519), with a passphrase or without, that only its owner can read. Its public
key stands beside it in `NAME.pub`. `labref.bundles.signing` says what is signed, and verifies it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from labref.bundles.schema import line
from labref.bundles.signing import MAX_DOCUMENT_BYTES, PublicKey, read_public_key
from labref.errors import KeyFileError
from labref.files import read_file, sync_folder

__all__ = ["PASSPHRASE", "PUBLIC", "SigningKey", "check_key_name", "new_key", "number_of_now", "public_of", "write_new"]

PUBLIC: Final = ".pub"
"""What the name of a public key's file ends with."""
PASSPHRASE: Final = "LABREF_KEY_PASSPHRASE"
"""The environment variable that holds the passphrase of a private key, where nobody can be asked."""


class SigningKey:
    """A private key, and the name that its public file gives it."""

    def __init__(self, private: Ed25519PrivateKey, name: str) -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw(), name)

    @staticmethod
    def open(file: Path, passphrase: str | None = None, *, group: bool = False) -> SigningKey:
        """The private key in `file`. group : its group may read it too.

        Raises `KeyFileError` where others can read it, where it is none, where the passphrase is not its own, or where
        the public key beside it is missing or another one.
        """
        try:
            mode = file.stat().st_mode
            raw = read_file(file, MAX_DOCUMENT_BYTES)
            beside = read_public_key(read_file(public_of(file), MAX_DOCUMENT_BYTES), public_of(file))
        except OSError as error:
            raise KeyFileError(f"{error.filename or file} cannot be read: {error.strerror or error}.") from None
        if os.name != "nt" and stat.S_IMODE(mode) & (0o007 if group else 0o077):
            raise KeyFileError(
                f"{file} can be read by others than its owner (mode {stat.S_IMODE(mode):o}), so it may be known to them. Say `chmod 600 "
                f"{file}` where nobody else was on this computer; else make a new key."
            )
        try:
            private = serialization.load_pem_private_key(raw, passphrase.encode() if passphrase else None)
        except TypeError:
            why = (
                f"it has a passphrase: set {PASSPHRASE}" if not passphrase else "it has no passphrase, and one is given"
            )
            raise KeyFileError(f"{file} cannot be opened: {why}.") from None
        except (ValueError, UnsupportedAlgorithm):
            raise KeyFileError(f"{file} holds no private key, or its passphrase is another one.") from None
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(f"{file} holds a key of another kind than Ed25519. Make one with `key new`.")
        key = SigningKey(private, beside.name)
        if key.public != beside:
            raise KeyFileError(f"{public_of(file)} is not the public key of {file}.")
        return key

    @staticmethod
    def restore_public(file: Path, name: str) -> None:
        """Write the public key beside the private one in `file`, which has no passphrase, where it is missing. name :
        whose it is. Raises `KeyFileError`."""
        try:
            private = serialization.load_pem_private_key(read_file(file, MAX_DOCUMENT_BYTES), None)
        except (OSError, TypeError, ValueError, UnsupportedAlgorithm):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(f"{file} holds no private key that can be used without a passphrase.")
        write_new(public_of(file), SigningKey(private, name).public.to_bytes(), 0o644)

    @staticmethod
    def has_passphrase(file: Path) -> bool:
        """Whether the private key in `file` can only be opened with a passphrase; no file has none."""
        try:
            return b"BEGIN ENCRYPTED PRIVATE KEY" in read_file(file, MAX_DOCUMENT_BYTES)
        except OSError:
            return False

    def sign(self, message: bytes) -> bytes:
        """The signature of `message`, 64 bytes."""
        return self._private.sign(message)

    def secret(self, purpose: str) -> bytes:
        """32 bytes that nobody can make without the private key, the same each time and others for each purpose
        (HMAC-SHA-256)."""
        return hmac.new(self._private.private_bytes_raw(), purpose.encode(), hashlib.sha256).digest()


def check_key_name(name: str) -> None:
    """Raise `KeyFileError` where a key cannot be called so."""
    try:
        line(name)
    except ValueError as error:
        raise KeyFileError(f"{name!r} is no name of a key: it {error}.") from None
    if not 1 <= len(name) <= 100:
        raise KeyFileError("the name of a key has 1 to 100 characters.")


def new_key(file: Path, name: str, passphrase: str | None = None) -> PublicKey:
    """Make a key: the private one in the file `file`, for its owner alone, the public one beside it.

    name : whose it is, for people.  passphrase : without it nobody can use the private key. Raises `KeyFileError`, also
    where one of the files is there: a key that is lost cannot be made again.
    """
    check_key_name(name)
    taken = next((path for path in (file, public_of(file)) if path.exists() or path.is_symlink()), None)
    if taken is not None:
        raise KeyFileError(
            f"{taken} is there already. Choose another name: what it signed needs the key that it holds."
        )
    private = Ed25519PrivateKey.generate()
    kept = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kept)
    public = SigningKey(private, name).public
    write_new(file, pem, 0o600)
    try:
        write_new(public_of(file), public.to_bytes(), 0o644)
    except BaseException:
        file.unlink()
        raise
    return public


def number_of_now() -> int:
    """The number of a bundle or a pack that is signed now, where no other is given: date and time to the millisecond,
    UTC, the year in two digits, as 261127083000125. It grows without anybody keeping count, up to the year 2099, and is
    larger than the numbers that earlier versions gave, which ended at the second: of two that were signed in one second
    labs refused the later."""
    now = datetime.now(UTC)
    return int(now.strftime("%y%m%d%H%M%S")) * 1000 + now.microsecond // 1000


def public_of(file: Path) -> Path:
    """Where the public key of the private one in `file` stands."""
    return file.with_name(file.name + PUBLIC)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that is not there yet, whole or not at all. Raises `KeyFileError`."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise KeyFileError(f"{path} cannot be written: {error.strerror}.") from None
        raise
