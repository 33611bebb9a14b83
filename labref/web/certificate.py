"""The certificate that the pages are served with, by HTTPS: a renewed one is taken from the disk without a restart."""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from labref.errors import AgentError
from labref.files import read_file

__all__ = ["HANDSHAKE_SECONDS", "TLS", "Certificate"]

_MOST_BYTES: Final = 1_000_000
HANDSHAKE_SECONDS: Final = 10.0
"""Seconds from a connection to the end of its handshake; it is closed after that."""


@dataclass(frozen=True)
class TLS:
    """Where an application is served by HTTPS. address : of this computer.  certificate, key : PEM files."""

    address: str
    port: int
    certificate: Path
    key: Path


class Certificate:
    """The certificate and key of a server. At each handshake it looks whether the files have changed."""

    def __init__(self, tls: TLS) -> None:
        """Raises `AgentError` where certificate and key cannot be used."""
        self._tls = tls
        self._lock = threading.Lock()
        self._files = self._stamps()
        self._loaded = _loaded(tls)
        self.problem: str | None = None
        """Why the files that are there now are not used; the ones before are."""

    def serve(self, context: ssl.SSLContext) -> None:
        """Let what this context serves have the certificate that is on the disk at the time."""
        context.sni_callback = self._at_handshake

    def _at_handshake(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self.newest()

    def newest(self) -> ssl.SSLContext:
        """The context of the files as they are now; of those before, where these cannot be used."""
        with self._lock:
            files = self._stamps()
            if files != self._files:
                self._files = files
                try:
                    self._loaded, self.problem = _loaded(self._tls), None
                except AgentError as error:
                    self.problem = f"{error} Browsers get the certificate before it until then."
            return self._loaded

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for file in (self._tls.certificate, self._tls.key):
            try:
                stat = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return found


def _loaded(tls: TLS) -> ssl.SSLContext:
    for what, file in (("certificate", tls.certificate), ("key", tls.key)):
        try:
            read_file(file, _MOST_BYTES)  # a pipe would be waited for
        except OSError as error:
            raise AgentError(
                f"the {what} {file} cannot be read ({error.strerror}); labref.toml, [web], names it."
            ) from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # a password would be asked for on the terminal
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (OSError, ValueError) as error:
        raise AgentError(
            f"the certificate {tls.certificate} and the key {tls.key} cannot be used "
            f"({getattr(error, 'reason', None) or error}). They are PEM files that belong together, the key without a password; labref.toml, "
            "[web], names them."
        ) from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")
