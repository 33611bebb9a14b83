"""Talks to a lab's running agent over loopback HTTP."""

from __future__ import annotations

import contextlib
import hashlib
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

__all__ = ["AgentClient", "AgentRecord", "proof", "read_agent_record"]

_HOST: Final = "127.0.0.1"
_TIMEOUT_SECONDS: Final = 120.0
_HELLO_SECONDS: Final = 10.0


@dataclass(frozen=True)
class AgentRecord:
    """What LAB/agent.json says. started_at : ISO 8601, UTC. It may be left over from an agent that was killed."""

    pid: int
    port: int
    started_at: str


def read_agent_record(lab: Lab) -> AgentRecord | None:
    """The lab's agent.json, or None where there is none that can be read."""
    try:
        values = json.loads(lab.agent_file.read_text(encoding="utf-8"))
        return AgentRecord(int(values["pid"]), int(values["port"]), str(values["started_at"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def proof(token: str, nonce: str) -> str:
    """What only one who knows the lab's token can answer to `nonce`: HMAC-SHA-256, hexadecimal."""
    return hmac.new(token.encode(), b"labref agent:" + nonce.encode(), hashlib.sha256).hexdigest()


class AgentClient:
    """A lab's running agent."""

    def __init__(self, record: AgentRecord, token: str) -> None:
        self.record = record
        self._token = token

    @staticmethod
    def find(lab: Lab) -> AgentClient | None:
        """The lab's agent, where one runs and proves that it knows the lab's token; the token itself is shown to nobody else.

        Another program may listen where an agent that was killed did.
        """
        record = read_agent_record(lab)
        if record is None:
            return None
        token = lab.token()
        nonce = secrets.token_hex(16)
        connection = http.client.HTTPConnection(_HOST, record.port, timeout=_HELLO_SECONDS)
        try:
            connection.request("GET", f"/health?nonce={nonce}")
            values = json.loads(connection.getresponse().read(10_000))
            given = str(values["proof"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return None
        finally:
            connection.close()
        return AgentClient(record, token) if hmac.compare_digest(given, proof(token, nonce)) else None

    def query(
        self, data: bytes, *, name: str, k: int, by: str, analyser: str | None, any_optics: bool
    ) -> dict[str, Any]:
        """The agent's answer for the image `data`; see `labref.asking.answer.answer`."""
        asked: dict[str, Any] = {"k": k, "by": by, "name": name}
        if analyser is not None:
            asked["analyser"] = analyser
        if any_optics:
            asked["any_optics"] = 1
        with self._request("POST", "/api/query", asked, data) as response:
            values: dict[str, Any] = json.loads(response.read())
        return values

    def status(self) -> dict[str, Any]:
        """See `labref.web.desk.status`."""
        with self._request("GET", "/api/status") as response:
            values: dict[str, Any] = json.loads(response.read())
        return values

    def ledger(
        self, *, outcome: str | None = None, path: str | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """See `labref.web.desk.ledger_rows`."""
        wanted = {"outcome": outcome, "path": path, "limit": limit}
        with self._request("GET", "/api/ledger", {key: v for key, v in wanted.items() if v is not None}) as response:
            while line := response.readline():
                yield json.loads(line)

    def perform(self, name: str, parameters: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows of an operation that the agent does; see `labref.operations`."""
        body = json.dumps(parameters).encode()
        with self._request("POST", f"/api/do/{name}", body=body) as response:
            while line := response.readline():
                row: dict[str, Any] = json.loads(line)
                if "error" in row and set(row) == {"error"}:
                    raise _as_error(200, line)
                yield row

    @contextlib.contextmanager
    def _request(
        self, method: str, target: str, parameters: dict[str, Any] | None = None, body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        if parameters:
            target += "?" + urlencode(parameters)
        headers = {"Authorization": f"Bearer {self._token}"}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
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


def _as_error(code: int, body: bytes) -> LabrefError:
    """The error that the agent met, as the one that would have been met here."""
    try:
        values = json.loads(body)["error"]
        kind, message = str(values["kind"]), str(values["message"])
    except (ValueError, KeyError, TypeError):
        return AgentError(f"the agent answered with HTTP status {code}; see its log")
    found = getattr(errors, kind, None) if kind in errors.__all__ else None
    return found(message) if found is not None else AgentError(message)
