"""PostgreSQL for tests: a server of their own in a temporary folder, on a free port of this computer, ended afterwards.

`tests/install_postgres.sh` installs PostgreSQL and pgvector on Debian. Where they are not, the tests are skipped with
the reason; where CI is set, they fail instead.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

if sys.platform != "win32":
    import pwd

from labref.shared.address import PASSWORD, Address
from labref.shared.labs import add
from labref.shared.migrations import make
from labref.words import cell_id_of
from tests.stores import BUNDLE, LABELS, digest_of

__all__ = ["Database", "Server", "database", "fill", "missing", "needs_postgres", "server"]

_OWNER: Final = "owner"
_SECRET: Final = "the owner's password"
_NUMBERS = itertools.count()


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return None if initdb is None else Path(initdb).resolve().parent


def missing() -> str | None:
    """Why there can be no server here; None where there can."""
    where = programs()
    if sys.platform == "win32" or where is None:
        return "there is no PostgreSQL here (tests/install_postgres.sh)"
    found = subprocess.run([where / "pg_config", "--sharedir"], capture_output=True, text=True)
    version = where.parts[-2]
    shares = [Path(found.stdout.strip())] if found.returncode == 0 else [Path(f"/usr/share/postgresql/{version}")]
    if not any((share / "extension" / "vector.control").exists() for share in shares):
        return "PostgreSQL has no pgvector here (tests/install_postgres.sh)"
    return None


def needs_postgres() -> None:
    """Skip the test, with the reason, where there is no PostgreSQL; in CI it fails."""
    why = missing()
    if why is not None:
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)


class Server:
    """A PostgreSQL server in a folder of its own."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._bin = programs()
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "max_connections": "40",
            "password_encryption": "scram-sha-256",
            "log_min_messages": "warning",
            "fsync": "off",  # what was written survives the end of all processes, if not of the computer
        } | (settings or {})
        assert self._bin is not None
        # it refuses to run as root
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = next((name for name in ("postgres", "nobody") if _known(name)), "nobody")
            found = pwd.getpwnam(user)
            self._as = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, found.pw_uid, found.pw_gid)
        secret = folder / "secret"
        secret.write_text(_SECRET)
        if self._as:
            os.chown(secret, self._as["user"], self._as["group"])
        subprocess.run(
            [
                *(self._bin / "initdb", "-D", folder / "data", "-U", _OWNER, "--pwfile", secret, "-A", "scram-sha-256"),
                *("-E", "UTF8", "--no-locale", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **self._as,
        )
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._bin is not None
        given = [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.folder / "data", *given],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **self._as,
            )
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect("postgres").close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline and self._process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.05)

    def cpu_seconds(self) -> float:
        """Seconds of CPU that the server and all its processes, also those that have ended, spent so far."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        spent = 0
        for process, of_ended in ((str(self._process.pid), True), *((child, False) for child in children)):
            with suppress(OSError):  # ended meanwhile
                # proc(5): utime, stime, cutime, cstime
                found = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
                spent += sum(map(int, found if of_ended else found[:2]))
        return spent / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL for the server and all its processes."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        ids = [self._process.pid, *map(int, children.read_text().split())]
        for process in ids:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        self._process = None
        deadline = time.monotonic() + 10
        while any(_runs(process) for process in ids) and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        """End it; a second time does nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(30)
                self._process = None
            except subprocess.TimeoutExpired:
                self.kill()

    @contextmanager
    def shows(self, certificate: bytes, key: bytes) -> Iterator[None]:
        """Let it take TLS for a while, with this certificate and its key, PEM."""
        files = {"ssl_cert_file": certificate, "ssl_key_file": key}
        for name, content in files.items():
            path = self.folder / name
            path.write_bytes(content)
            path.chmod(0o600)
            if self._as:
                os.chown(path, self._as["user"], self._as["group"])
        with self.connect("postgres") as owner:
            for name in files:
                owner.execute(f"ALTER SYSTEM SET {name} = '{self.folder / name}'".encode())
            self._tls(owner, "on")
            try:
                yield
            finally:
                self._tls(owner, "off")

    def _tls(self, owner: psycopg.Connection[tuple[object, ...]], to: str) -> None:
        owner.execute(f"ALTER SYSTEM SET ssl = {to}".encode())
        owner.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 30
        while True:  # whoever connects from now on is met with the new settings
            with self.connect("postgres") as another:
                if another.execute("SHOW ssl").fetchone() == (to,):
                    return
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def connect(self, name: str, *, port: int | None = None) -> psycopg.Connection[tuple[object, ...]]:
        """A connection of the owner to a database; every statement is committed by itself."""
        return psycopg.connect(
            host="127.0.0.1", port=port or self.port, dbname=name, user=_OWNER, password=_SECRET, autocommit=True
        )


class Database:
    """A shared store in a database of its own, on a server."""

    def __init__(self, of: Server, *, made: bool = True) -> None:
        self.server = of
        self.name = f"shared{next(_NUMBERS)}_{os.getpid()}"
        with of.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {self.name}".encode())
        self.owner = Address.of(self.url())
        if made:
            make(self.owner, _SECRET)

    @property
    def secret(self) -> str:
        """The owner's password."""
        return _SECRET

    def url(self, user: str = _OWNER, *, port: int | None = None) -> str:
        """The URL of a user. port : of a proxy before the server."""
        return f"postgresql://{user}@127.0.0.1:{port or self.server.port}/{self.name}"

    def lab(self, name: str, *, reads_only: bool = False) -> tuple[Address, str]:
        """Make the role of a lab: its address and password."""
        access = add(self.owner, _SECRET, f"{name}", reads_only=reads_only)
        return Address.of(access.url), access.password

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """The rows of a query, as the owner sees them."""
        with self.server.connect(self.name) as connection:
            connection.execute("SET search_path = labref, public")
            return connection.execute(query.encode(), values).fetchall()

    def size(self) -> int:
        """Bytes of the tables, with what lies beside them, and of the indexes."""
        ((size,),) = self.rows(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace "
            "WHERE nspname = 'labref' AND relkind = 'r'"
        )
        assert isinstance(size, int)
        return size

    def as_lab(self, access: tuple[Address, str]) -> psycopg.Connection[tuple[object, ...]]:
        """A connection of a lab, past labref: what it may do is PostgreSQL's to say."""
        address, password = access
        connection = psycopg.connect(**address.keywords(), password=password, autocommit=True)
        connection.execute("SET search_path = labref, public")
        return connection


@contextmanager
def server(**settings: str) -> Iterator[Server]:
    """A server with these settings, ended afterwards."""
    needs_postgres()
    folder = Path(tempfile.mkdtemp(prefix="labref-postgres-"))
    folder.chmod(0o755)
    running = Server(folder / "server", settings)
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def password(secret: str) -> Iterator[None]:
    """The password of whoever asks now, in its variable."""
    before = os.environ.get(PASSWORD)
    os.environ[PASSWORD] = secret
    try:
        yield
    finally:
        if before is None:
            del os.environ[PASSWORD]
        else:
            os.environ[PASSWORD] = before


def database(of: Server) -> Database:
    """A new shared store."""
    return Database(of)


def fill(of: Database, latents: NDArray[np.float32], labs: Sequence[int], optics: Sequence[str]) -> None:
    """Put made-up cells of one bundle, `stores.BUNDLE`, into a shared store, past the labs' own way.

    latents : float32[n, L], of cells whose ids are those of `digest_of(0)`, `digest_of(1)`, …  labs : numbers of their
    labs, 1 for the first that was added.  optics : theirs.
    """
    with of.server.connect(of.name) as connection:
        connection.execute("SET search_path = labref, public")
        connection.execute("SELECT add_bundle(%s, 'made up', '1', %s)", [BUNDLE, latents.shape[1]])
        with (
            connection.cursor() as cursor,
            cursor.copy(
                "COPY cell (bundle, lab, withheld, optics, latent, cell_id, generation, digest, label, label_source, "
                "analyser, place, across, down, stored_at) FROM STDIN"
            ) as copy,
        ):
            for number, (latent, lab, kind) in enumerate(zip(latents, labs, optics, strict=True)):
                digest = digest_of(number)
                cell_id = cell_id_of(digest)
                across, down = (int(digest[at : at + 16], 16) - 2**63 for at in (16, 32))
                vector = f"[{','.join(map(repr, latent.tolist()))}]"
                label = LABELS[number % len(LABELS)]
                copy.write(
                    f"1\t{lab}\tf\t{kind}\t{vector}\t{cell_id}\t1\t\\\\x{digest}\t{label}\tanalyser\t{kind}\t{cell_id}\t"
                    f"{across}\t{down}\t2026-01-01\n"
                )
        connection.execute("VACUUM ANALYZE cell")


def _known(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
