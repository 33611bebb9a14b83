"""What ships on the stick, and under which licences: a bill of materials (CycloneDX), the texts of the licences, and a
page that lists both.

A wheel says of itself what it is; what it carries of others (compiled libraries, crates) it says in `dist-info/sboms`,
where its makers wrote that down. labref's own wheel carries scripts for the pages and networks.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.parser import BytesParser
from pathlib import Path, PurePosixPath
from typing import Any, Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["Shipped", "shipped", "write"]

BILL: Final = "bill-of-materials.cdx.json"
_LICENCE: Final = re.compile(r"(licen[cs]e|copying|notice|thirdpartynotices)[^/]*$", re.IGNORECASE)
_SPDX: Final = {
    "2-clause BSD License": "BSD-2-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
}
"""Words of makers for one licence that SPDX knows; "BSD License" is none: it may be either of two."""
_EXTRAS: Final = {"labref": "shared", "psycopg": "binary"}
"""Extras with which a package is on the stick."""
_SPACE: Final = uuid.UUID("0f6c2f6e-7a0b-5a58-9b2c-6f3b8b6d8f10")


@dataclass(frozen=True)
class Shipped:
    """One file of the stick. licence : in SPDX's words where it says so, else its own.  texts : the licences in it, by
    name.  within : of others, that it carries.  published : its SHA-256 on the index, where it was packed again."""

    name: str
    version: str
    licence: str
    file: str
    sha256: str
    needs: tuple[str, ...]
    texts: dict[str, bytes]
    within: tuple[Component, ...] = field(repr=False)
    published: str | None = None


def shipped(wheel: Path, environment: dict[str, str], published: str | None = None) -> Shipped:
    """What a wheel says of itself. environment : the variables of markers on the lab's computer.  published : see
    `Shipped`."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (each for each in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", each))
        info = metadata.rpartition("/")[0] + "/"
        said = BytesParser().parsebytes(archive.read(metadata))
        texts = {
            each.removeprefix(info).removeprefix("licenses/"): archive.read(each)
            for each in names
            if _LICENCE.search(each) and not each.endswith((".py", "/"))
        }
        sboms = [each for each in sorted(names) if each.startswith(f"{info}sboms/") and each.endswith(".json")]
        boms = [json.loads(archive.read(each)) for each in sboms]
        own = canonicalize_name(said["Name"])
        others = (part for bom in boms for part in bom.get("components", []) if canonicalize_name(part["name"]) != own)
        within = [_nested(part) for part in others] + (list(_of_labref(archive)) if own == "labref" else [])
    for number, part in enumerate(within):
        part.bom_ref.value = f"{wheel.name}#{number}"
    requirements = [Requirement(line) for line in said.get_all("Requires-Dist", [])]
    needs = {
        canonicalize_name(each.name)
        for each in requirements
        for extra in ("", _EXTRAS.get(own, ""))
        if each.marker is None or each.marker.evaluate(environment | {"extra": extra})
    }
    return Shipped(
        own,
        said["Version"],
        _licence(said),
        wheel.name,
        hashlib.sha256(wheel.read_bytes()).hexdigest(),
        tuple(sorted(needs)),
        texts,
        tuple(within),
        published,
    )


def write(
    made: Path,
    wheels: Sequence[Path],
    environment: dict[str, str],
    described: dict[str, str],
    published: Mapping[str, str],
) -> None:
    """Write the bill, `licences.html` and the folder `licences` into `made`. published : SHA-256 that a wheel has on
    the index, by its file's name, where it was packed again."""
    parts = sorted(
        (shipped(wheel, environment, published.get(wheel.name)) for wheel in wheels),
        key=lambda part: part.name,
    )
    (made / BILL).write_text(_bill(parts, described) + "\n", encoding="utf-8", newline="\n")
    for part in parts:
        for name, text in part.texts.items():
            file = made / "licences" / part.name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)
    (made / "licences.html").write_text(_page(parts), encoding="utf-8", newline="\n")


def _licence(said: Message) -> str:
    stated = said["License-Expression"] or said["License"] or ""
    if said["License-Expression"] is None and (not stated or "\n" in stated or len(stated) > 40):  # SciPy's whole text
        lines = [line for line in said.get_all("Classifier", []) if line.startswith("License")]
        stated = " OR ".join(_SPDX.get(name, name) for name in (line.rpartition(" :: ")[2] for line in lines))
    return _SPDX.get(stated, stated)


def _nested(part: dict[str, Any]) -> Component:
    """A component of another's bill: what it is called, its version and licence."""
    licences = []
    for each in part.get("licenses", []):
        named = each.get("license", {})
        if said := each.get("expression") or named.get("id") or named.get("name"):
            licences.append(said)
    purl = part.get("purl")
    return Component(
        name=part["name"],
        version=part.get("version"),
        type=ComponentType(part.get("type", "library")),
        purl=PackageURL.from_string(purl) if purl else None,
        licenses=[_declared(" AND ".join(licences))] if licences else None,
    )


def _of_labref(archive: zipfile.ZipFile) -> Iterator[Component]:
    """What labref's wheel carries that is no code of labref's: the pages' scripts of others, and the starter."""
    lock = "labref/web/static/vendor/package-lock.json"
    if lock in archive.namelist():
        for path, package in sorted(json.loads(archive.read(lock))["packages"].items()):
            if path:
                name = path.removeprefix("node_modules/")
                version = package["version"]
                yield Component(
                    name=name,
                    version=version,
                    type=ComponentType.LIBRARY,
                    purl=PackageURL("npm", name=name, version=version),
                    licenses=[_declared(package["license"])],
                )
    starter = archive.read("labref/starter/starter.labref")
    yield Component(
        name="starter.labref",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        description="The starter bundle: networks that labref's makers trained, see the model card in it",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(starter).hexdigest())],
        licenses=[_declared("MIT")],
    )


def _declared(licence: str) -> Any:
    return LicenseFactory().make_from_string(licence, license_acknowledgement=LicenseAcknowledgement.DECLARED)


def _bill(parts: Sequence[Shipped], described: dict[str, str]) -> str:
    digest = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
    bom = Bom(serial_number=uuid.uuid5(_SPACE, digest))
    bom.metadata.timestamp = datetime.strptime(described["made"], "%Y-%m-%d").replace(tzinfo=UTC)
    bom.metadata.component = Component(
        name="labref, to install without a network",
        bom_ref="stick",
        version=described["labref"],
        type=ComponentType.APPLICATION,
        licenses=[_declared("MIT")],
    )
    found = {}
    for part in parts:
        found[part.name] = Component(
            name=part.name,
            version=part.version,
            type=ComponentType.APPLICATION if part.name == "labref" else ComponentType.LIBRARY,
            bom_ref=part.file,
            purl=PackageURL("pypi", name=part.name, version=part.version, qualifiers={"file_name": part.file}),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)],
            licenses=[_declared(part.licence)] if part.licence else None,
            components=part.within,
            properties=[Property(name="labref:sha256-as-published", value=part.published)] if part.published else None,
        )
    bom.components.update(found.values())
    for part in parts:
        bom.register_dependency(found[part.name], [found[name] for name in part.needs if name in found])
    bom.register_dependency(bom.metadata.component, [found["labref"]])
    return JsonV1Dot6(bom).output_as_string(indent=1)


def _page(parts: Sequence[Shipped]) -> str:
    rows = []
    for part in parts:
        links = [
            f'<a href="licences/{html.escape(part.name)}/{html.escape(name)}">{html.escape(PurePosixPath(name).name)}</a>'
            for name in part.texts
        ]
        carried = ", ".join(f"{each.name} {each.version or ''}".strip() for each in part.within)
        cells = (part.name, part.version, part.licence or "not said")
        row = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(
            f"<tr>{row}<td>{', '.join(links) or 'its files carry no text'}</td><td>{html.escape(carried)}</td></tr>"
        )
    return _LICENCES.replace("@ROWS@", "\n".join(rows))


_LICENCES: Final = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Licences of what is on this stick</title>
<style>body{font:16px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em}
table{border-collapse:collapse}td,th{border-bottom:1px solid #bbb;padding:.3em .6em;text-align:left;vertical-align:top}</style>
</head><body>
<h1>Licences of what is on this stick</h1>
<p>labref, and what it needs to run. Each package with its licence as its makers state it, the texts that they ship, and what
they say it carries of others. The same for programs: <a href="bill-of-materials.cdx.json">bill-of-materials.cdx.json</a>
(CycloneDX 1.6).</p>
<table><thead><tr><th>package</th><th>version</th><th>licence</th><th>texts</th><th>carries</th></tr></thead><tbody>
@ROWS@
</tbody></table></body></html>
"""
