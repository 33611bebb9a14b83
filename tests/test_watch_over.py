"""What a lab's monitoring sees: metrics by Prometheus' conventions, the address for another computer, alert rules and
dashboard that name only what there is."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from labref.bundles.bundle import Bundle
from labref.lab import Lab
from labref.web.desk import run
from tests.labs import make_lab, once, running_agent
from tests.test_web_elsewhere import made

MONITORING = Path(__file__).parent.parent / "deploy" / "monitoring"
PATIENT = "SVENSSON Karin 1912"
PROMTOOL = shutil.which("promtool")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def get(port: int, path: str, method: str = "GET", tls: bool = False, **headers: str) -> tuple[int, str]:
    context = ssl._create_unverified_context()
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
        if tls
        else http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    )
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, real_cells: Path, starter: Bundle
) -> Iterator[tuple[Lab, int, int]]:
    """A lab with ten real cells, a picture of nothing and a broken file; its agent's port, and that of its metrics."""
    folder = tmp_path_factory.mktemp("watched")
    export = folder / "export"
    for label in ("monocyte", "lymphocyte"):
        target = export / PATIENT / label
        target.mkdir(parents=True)
        for cell in sorted((real_cells / "pbc" / label).glob("*.jpg"))[:5]:
            shutil.copy(cell, target)
    (export / PATIENT / "monocyte" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    lab = make_lab(folder / "lab", export, starter)
    once(lab)
    port = free_port()
    text = lab.config_file.read_text(encoding="utf-8")
    lab.config_file.write_text(f"{text}\n[metrics]\naddress = '127.0.0.1'\nport = {port}\n", encoding="utf-8")
    lab = Lab.open(lab.folder)
    with running_agent(lab):
        yield lab, json.loads(lab.agent_file.read_text(encoding="utf-8"))["port"], port


def values(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_say_how_the_lab_is_and_name_nothing(watched: tuple[Lab, int, int]) -> None:
    lab, port, _ = watched
    (asked,) = run(lab, "query", data=next((lab.watched[0] / PATIENT / "monocyte").glob("*_*.jpg")).read_bytes())
    status, text = get(port, "/metrics")
    assert status == 200
    found = values(text)
    (told,) = run(lab, "status")
    by_source = {dict(labels)["label_source"]: n for (name, labels), n in found.items() if name == "labref_cells"}
    assert by_source == told["label_sources"] and sum(by_source.values()) == told["cells"] == 10
    nothing: frozenset[tuple[str, str]] = frozenset()
    assert found["labref_store_bytes", nothing] == lab.store_file.stat().st_size
    assert found["labref_disk_free_bytes", nothing] == pytest.approx(told["disk"]["free"], rel=0.2)
    assert found["labref_disk_bytes", nothing] == told["disk"]["total"]
    health = {dict(labels)["labref_health"]: n for (name, labels), n in found.items() if name == "labref_health"}
    assert health.pop("ok") == 1 and not any(health.values())
    assert found["labref_cells_asked_total", frozenset({("novel", str(asked["novelty"]["is_novel"]).lower())})] == 1
    assert found["process_resident_memory_bytes", nothing] > 5e7 and found["process_open_fds", nothing] > 5
    for name in ("labref_last_backup_timestamp_seconds", "labref_disk_full_seconds"):
        assert (name, nothing) not in found  # there is none: said by leaving it out
    counted = {dict(labels)["kind"] for (name, labels) in found if name == "labref_http_request_seconds_count"}
    assert "api" in counted
    for secret in (PATIENT, "SVENSSON", "monocyte", "lymphocyte", str(lab.folder), "broken"):
        assert secret not in text
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    assert not [f.name for f in families if not re.match(r"(labref|process)(_|$)", f.name)]


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on this computer")
def test_promtool_finds_nothing_to_say_of_the_metrics(watched: tuple[Lab, int, int]) -> None:
    text = get(watched[1], "/metrics")[1]
    linted = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, text=True)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")


def test_another_computer_reads_them_with_a_token_of_their_own_and_nothing_else(watched: tuple[Lab, int, int]) -> None:
    lab, own, port = watched
    token = (lab.folder / "metrics-token").read_text(encoding="ascii").strip()
    assert len(token) >= 32 and token != lab.token()
    if os.name == "posix":
        assert (lab.folder / "metrics-token").stat().st_mode & 0o777 == 0o600
    status, text = get(port, "/metrics", Authorization=f"Bearer {token}")
    assert status == 200 and values(text).keys() >= {("labref_storage_blocked", frozenset())}
    for wrong in ({}, {"Authorization": f"Bearer {lab.token()}"}, {"Authorization": f"Bearer {token[:-1]}"}):
        status, text = get(port, "/metrics", **wrong)
        assert status == 401 and "labref_" not in text and token not in text
    for path in ("/", "/health", "/api/v1/status", "/sign-in", "/metrics/", "//metrics", "/static/labref.css"):
        assert get(port, path, Authorization=f"Bearer {token}")[0] == 404
        assert get(port, path)[0] == 401
    assert get(port, "/metrics", "POST", Authorization=f"Bearer {token}")[0] == 404
    # and this token opens nothing of the agent's own
    assert get(own, "/api/v1/status", Authorization=f"Bearer {token}")[0] == 401


def test_by_https_where_the_pages_have_a_certificate_and_an_address_that_is_taken_is_told(
    tmp_path: Path, starter: Bundle
) -> None:
    (tmp_path / "export").mkdir()
    lab = make_lab(tmp_path / "lab", tmp_path / "export", starter)
    certificate, key = made(tmp_path)
    text, port = lab.config_file.read_text(encoding="utf-8"), free_port()
    more = f"\n[web]\nport = {free_port()}\ncertificate = '{certificate}'\nkey = '{key}'\n"
    lab.config_file.write_text(f"{text}{more}\n[metrics]\naddress = '127.0.0.1'\nport = {port}\n", encoding="utf-8")
    with running_agent(Lab.open(lab.folder)):
        token = lab.metrics_token()
        assert get(port, "/metrics", tls=True, Authorization=f"Bearer {token}")[0] == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            get(port, "/metrics", Authorization=f"Bearer {token}")


NAMES = re.compile(r"\b(?:labref|process)_[a-z_]+\b")


def expressions() -> dict[str, str]:
    """Each PromQL expression of the dashboard, by its panel."""
    board = json.loads((MONITORING / "labref-dashboard.json").read_text(encoding="utf-8"))
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in board["panels"]
        for target in panel["targets"]
    }


def test_alert_rules_and_dashboard_name_only_what_there_is(watched: tuple[Lab, int, int]) -> None:
    there = {name for name, _ in values(get(watched[1], "/metrics")[1])}
    there |= {
        "labref_disk_full_seconds",
        "labref_last_backup_timestamp_seconds",
        "labref_map_trained_timestamp_seconds",
        "labref_shared_lag_seconds",
        "labref_shared_waiting",
    }
    rules = (MONITORING / "labref-alerts.yml").read_text(encoding="utf-8")
    used = {name for text in (rules, *expressions().values()) for name in NAMES.findall(text)}
    assert len(used) > 20 and used <= there
    written = (MONITORING.parent / "README.md").read_text(encoding="utf-8")
    ours = [name for name in there if name.startswith("labref") and not name.endswith("_created")]
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in ours}
    named = set(NAMES.findall(written)) | {"labref_children", "labref_children_resident_memory_bytes"}
    assert families - named == set()


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on this computer")
def test_promtool_accepts_the_rules_and_the_dashboards_expressions(tmp_path: Path) -> None:
    def promtool(*arguments: object) -> None:
        done = subprocess.run([str(PROMTOOL), *map(str, arguments)], capture_output=True, text=True, cwd=MONITORING)
        assert done.returncode == 0, done.stdout + done.stderr

    promtool("check", "rules", "labref-alerts.yml")
    promtool("test", "rules", "labref-alerts-test.yml")
    shown = "".join(
        f"      - {{record: 'panel:{number}', expr: {json.dumps(text.replace('$instance', '.*'))}}}\n"
        for number, text in enumerate(expressions().values())
    )
    rules = tmp_path / "dashboard.yml"
    rules.write_text(f"groups:\n  - name: dashboard\n    rules:\n{shown}", encoding="utf-8")
    promtool("check", "rules", rules)
    # each rule has a test that it fires, but for those that are one comparison
    tested = (MONITORING / "labref-alerts-test.yml").read_text(encoding="utf-8")
    alerts = set(re.findall(r"alert: (\w+)", (MONITORING / "labref-alerts.yml").read_text(encoding="utf-8")))
    assert alerts - set(re.findall(r"alertname: (\w+)", tested)) == {
        "LabrefGpuUnused",
        "LabrefOpticsDrift",
        "LabrefSlow",
    }
