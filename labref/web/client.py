"""Talks to a lab's running agent over loopback HTTP."""

from __future__ import annotations

import contextlib
import hmac
import http.client
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from labref import errors
from labref.errors import AgentError, LabrefError
from labref.lab import Lab
from labref.lab.presence import identity, marked, proof
from labref.operations import find_operation
from labref.progress import Row

__all__ = ["AgentClient", "AgentRecord", "read_agent_record"]

_HOST: Final = "127.0.0.1"
_TIMEOUT_SECONDS: Final = 120.0
_HELLO_SECONDS: Final = 10.0
_UNREADABLE: Final = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)  # as JSON, or at all


@dataclass(frozen=True)
class AgentRecord:
    """The content of LAB/agent.json. started_at : ISO 8601, UTC. The file may be left over from a killed agent."""

    pid: int
    port: int
    started_at: str


def read_agent_record(lab: Lab) -> AgentRecord | None:
    """The content of the lab's agent.json; None where the file is missing or cannot be read."""
    try:
        values = json.loads(lab.agent_file.read_text(encoding="utf-8"))
        record = AgentRecord(int(values["pid"]), int(values["port"]), str(values["started_at"]))
    except _UNREADABLE:
        return None
    return record if 0 < record.port < 65536 else None


class AgentClient:
    """A lab's running agent."""

    def __init__(self, record: AgentRecord, token: str) -> None:
        self.record = record
        self._token = token

    def link(self, code: str) -> str:
        """The address that signs somebody with this code in, on this computer."""
        return f"http://{_HOST}:{self.record.port}/sign-in#{code}"

    @staticmethod
    def find(lab: Lab) -> AgentClient | None:
        """The lab's agent, where one runs and proves that it knows the lab's token and works in this very folder; else
        None. The token is sent only after this proof.

        The proof is needed for two reasons. Another program may listen on the port of a killed agent. And a copy of a
        lab holds the agent.json and the token of the original's agent.
        """
        record = read_agent_record(lab)
        if record is None:
            return None
        token = lab.token()
        nonce = secrets.token_hex(16)
        given = _hello(record.port, nonce)
        if given is None:
            return None
        if _equal(given, proof(token, nonce, identity(lab.folder))):
            return AgentClient(record, token)
        with marked(lab.folder) as mark:
            given = None if mark is None else _hello(record.port, nonce, mark)
            if given is not None and mark is not None and _equal(given, proof(token, nonce, mark)):
                return AgentClient(record, token)
        return None

    def perform(self, name: str, parameters: dict[str, Any], data: bytes | None = None) -> Iterator[Row]:
        """Rows of an operation that the agent does; see `labref.operations`. data : the bytes that it takes, if any."""
        found = find_operation(name)
        if found.takes_bytes or found.method == "GET":
            asked = {key: _in_query(value) for key, value in parameters.items() if value is not None}
            body, kind = (data or b"", "application/octet-stream") if found.takes_bytes else (None, "")
        else:
            asked, body, kind = {}, json.dumps(parameters).encode(), "application/json"
        with self._request(found.method, found.path, asked, body, kind) as response:
            whole = json.loads(response.read()) if found.single else None
            while line := response.readline():
                row: Row = json.loads(line)
                if "error" in row and set(row) == {"error"}:
                    raise _as_error(200, line)
                yield row
        if whole is not None:
            yield whole

    @contextlib.contextmanager
    def _request(
        self, method: str, target: str, parameters: dict[str, str], body: bytes | None, kind: str
    ) -> Iterator[http.client.HTTPResponse]:
        if parameters:
            target += "?" + urlencode(parameters)
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = kind
        connection = http.client.HTTPConnection(_HOST, self.record.port, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, target, body=body, headers=headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _as_error(response.status, response.read(100_000))
            yield response
        except (OSError, http.client.HTTPException) as error:
            raise AgentError(
                f"the agent (pid {self.record.pid}) did not answer: {error or type(error).__name__}. Try again; if it stays so, "
                "start it again."
            ) from None
        finally:
            connection.close()


def _hello(port: int, nonce: str, mark: str | None = None) -> str | None:
    """The proof that the program on this port gives; see `labref.lab.presence`."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=_HELLO_SECONDS)
    try:
        connection.request("GET", f"/health?nonce={nonce}" + (f"&mark={mark}" if mark else ""))
        return str(json.loads(connection.getresponse().read(10_000))["proof"])
    except (*_UNREADABLE, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _in_query(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_error(code: int, body: bytes) -> LabrefError:
    """The agent's error, as the same class of error that the operation would raise in this process."""
    try:
        values = json.loads(body)["error"]
        kind, message = str(values["kind"]), str(values["message"])
    except (ValueError, KeyError, TypeError):
        return AgentError(f"the agent answered with HTTP status {code}; see its log")
    found = getattr(errors, kind, None) if kind in errors.__all__ else None
    return found(message) if found is not None else AgentError(message)
