"""Who made a bundle, or a pack of a lab's cells: Ed25519 signatures, the keys that a lab trusts, and how one key takes
over from another.

A signature says: the bundle with this digest (the SHA-256 of its manifest, which holds the digest of every file), of
this name, has this number among the bundles of that name, and is packed as the archive with this digest. It is a small
JSON document that stands

- in the `.labref` file itself, as the comment of the zip archive: one file to ship, which an older labref reads too; or
- beside the file, as `NAME.labref.sig`: for a file whose bytes must stay as they are, such as labref's own starter; or
- in an installed bundle's folder, as `signature.json`.

It is one document in all three places: the digest of the archive is that of the file without the comment. So the whole
file is checked before a zip, JSON or ONNX reader sees a byte of it, and no byte of it can change unnoticed.

A pack of cells that a lab gives to the centre (`labref.packs`) is signed in the same way, by the lab's own key, as the
comment of its archive; that says nothing but the digest of the archive.

There is no expiry, as labs are offline. Against an old bundle that is offered again, the numbers of a name only grow.

Documents are canonical JSON: one text for one content, else they are refused. What is signed is the document without
its signature, behind the name of its kind, so that no signature of one kind is one of another.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from labref.bundles.schema import check_name, line, parse_json
from labref.errors import BundleError, PackError
from labref.files import read_file
from labref.printing import printable

__all__ = [
    "DETACHED",
    "MAX_DOCUMENT_BYTES",
    "MAX_NUMBER",
    "SIGNATURE_FILE",
    "KeyState",
    "KnownKey",
    "PackSignature",
    "PublicKey",
    "Rotation",
    "Signature",
    "Trust",
    "Verdict",
    "archive_parts",
    "built_in_key",
    "ends_whole",
    "first_fault",
    "judge",
    "judge_pack",
    "key_id",
    "read_pack_signature",
    "read_public_key",
    "read_rotation",
    "read_signature",
    "rotated",
    "with_comment",
]

SIGNATURE_FILE: Final = "signature.json"
"""The signature in an installed bundle's folder."""
DETACHED: Final = ".sig"
"""What the name of a signature ends with that stands beside its bundle's file."""
MAX_DOCUMENT_BYTES: Final = 32_000
"""Of a key, a rotation record or a signature; the comment of a zip archive may have 65,535."""
MAX_NUMBER: Final = 10**15
"""The largest number of a bundle; that of one signed in the year 2026 at a date and time has 14 digits."""
MOST_ROTATIONS: Final = 20
"""Rotation records that one signature may carry."""

_PUBLIC: Final = "labref public key 1"
_ROTATION: Final = "labref key rotation 1"
_SIGNATURE: Final = "labref bundle signature 1"
_PACK: Final = "labref pack signature 1"
_END: Final = b"PK\x05\x06"  # of a zip archive: the record that its comment follows
_END_BYTES: Final = 22
_MOST_COMMENT: Final = 65_535
_CHUNK: Final = 1 << 20  # bytes
_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Points of small order, without the sign bit: with one of them as a key, anybody can make signatures that verify,
which OpenSSL does not look at. The list is libsodium's."""
_KEY: Final = Path(__file__).parents[1] / "starter" / "starter.pub"

KeyState = Literal["trusted", "replaced", "revoked"]
"""`trusted`: what it signs is taken in; `replaced`: another key took over, by a record that it signed itself;
`revoked`: somebody of the lab said so."""


def key_id(raw: bytes) -> str:
    """How a public key of 32 bytes is called: the first 16 hexadecimal characters of its SHA-256."""
    return hashlib.sha256(raw).hexdigest()[:16]


@dataclass(frozen=True)
class PublicKey:
    """raw : the 32 bytes of an Ed25519 public key.  name : whose it is, for people; nothing follows from it."""

    raw: bytes
    name: str

    @property
    def id(self) -> str:
        """See `key_id`."""
        return key_id(self.raw)

    @property
    def title(self) -> str:
        """Its name and id, for messages."""
        return f"{printable(self.name)} ({self.id})"

    def has_signed(self, message: bytes, value: bytes) -> bool:
        """Whether `value`, 64 bytes, is this key's signature of `message`."""
        if self.raw[:-1] + bytes([self.raw[-1] & 0x7F]) in _SMALL_ORDER:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(value, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def to_bytes(self) -> bytes:
        """As a file."""
        return canonical({"kind": _PUBLIC, "id": self.id, "key": self.raw.hex(), "name": self.name})


@dataclass(frozen=True)
class _Signed(ABC):
    """A document that a key signs. value : the signature, 64 bytes; none where it is still to be signed."""

    value: bytes = field(default=b"", kw_only=True)

    def message(self) -> bytes:
        """What is signed: the document without its signature, behind the name of its kind."""
        said = self._said()
        return str(said["kind"]).encode("ascii") + b"\n" + canonical(said)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return self._said() | {"signature": self.value.hex()}

    def to_bytes(self) -> bytes:
        """As a file, or as the comment of an archive."""
        return canonical(self.to_json())

    @abstractmethod
    def _said(self) -> dict[str, Any]:
        """Its kind and what it says, without the signature, as JSON values."""


@dataclass(frozen=True)
class Rotation(_Signed):
    """A key's own word that another takes over from it. old : its id.  new : the other.  value : its signature."""

    old: str
    new: PublicKey

    def _said(self) -> dict[str, Any]:
        return {"kind": _ROTATION, "old": self.old, "key": self.new.raw.hex(), "name": self.new.name}


@dataclass(frozen=True)
class Signature(_Signed):
    """archive : SHA-256 of the packed file without its comment, 64 hexadecimal characters.  bundle : digest of the
    bundle.  name : of the bundle.  number : its place among the bundles of that name.  key : id of the key that signed.
    rotations : records by which labs that trust an earlier key come to trust this one.  value : 64 bytes."""

    archive: str
    bundle: str
    name: str
    number: int
    key: str
    rotations: tuple[Rotation, ...] = ()

    def _said(self) -> dict[str, Any]:
        return {
            "kind": _SIGNATURE,
            "archive": self.archive,
            "bundle": self.bundle,
            "name": self.name,
            "number": self.number,
            "key": self.key,
            "rotations": [rotation.to_json() for rotation in self.rotations],
        }


@dataclass(frozen=True)
class PackSignature(_Signed):
    """What a lab signs of a pack of its cells. archive : SHA-256 of its file without the comment, 64 hexadecimal
    characters.  key : id of the lab's key.  value : 64 bytes."""

    archive: str
    key: str

    def _said(self) -> dict[str, Any]:
        return {"kind": _PACK, "archive": self.archive, "key": self.key}


@dataclass(frozen=True)
class KnownKey:
    """A key that a lab or the centre knows, and what it thinks of it."""

    key: PublicKey
    state: KeyState


@dataclass(frozen=True)
class Trust:
    """What a lab believes.

    keys : the keys that it knows, by id.  numbers : the largest number that it has taken in, by name of the bundle.
    admitted : digests of bundles that it has, which may come in again whatever their number, as when a file of theirs
    is damaged.  unsigned : somebody said that a bundle without any signature may come in.
    """

    keys: Mapping[str, KnownKey]
    numbers: Mapping[str, int] = field(default_factory=dict)
    admitted: frozenset[str] = frozenset()
    unsigned: bool = False


@dataclass(frozen=True)
class Verdict:
    """Why a bundle may come in. signature, key : None where it is unsigned.  rotations : records that the lab follows
    with it, in their order."""

    signature: Signature | None = None
    key: PublicKey | None = None
    rotations: tuple[Rotation, ...] = ()


def judge(signature: Signature | None, trust: Trust, where: Path) -> Verdict:
    """Whether a lab takes in what was signed so. where : the bundle, for messages.

    Raises `BundleError` where there is no signature, unless that was allowed; where a key signed that the lab does not
    trust, also after the rotation records that the signature carries; where the signature is not that key's; and where
    the lab has taken in a bundle of the name with a larger number.
    """
    if signature is None:
        if trust.unsigned:
            return Verdict()
        raise BundleError(
            f"{where} is not signed, so nobody vouches for it. Ask whoever made it for a signed one; where you know that it is what it should "
            "be, say --unsigned."
        )
    keys, followed, why = dict(trust.keys), [], ""
    for rotation in signature.rotations:
        try:
            changed = rotated(rotation, keys)
        except BundleError as error:
            why = f"{error} "
            continue
        if changed:
            keys |= changed
            followed.append(rotation)
    known = keys.get(signature.key)
    if known is None:
        raise BundleError(
            f"{where} is signed by the key {signature.key}, which this lab does not trust. {why}Ask whoever made it for the key's public file, "
            "compare its id with them by telephone, and say `labref key trust FILE`."
        )
    mended = known.state == "replaced" and signature.bundle in trust.admitted
    if known.state != "trusted" and not mended:
        what = "was revoked here" if known.state == "revoked" else "was replaced by a newer key"
        raise BundleError(
            f"{where} is signed by the key {known.key.title}, which {what}. Ask for a bundle signed by a key that `labref key list` shows as trusted."
        )
    if not known.key.has_signed(signature.message(), signature.value):
        raise BundleError(
            f"{where}: its signature is not that of the key {known.key.title}: it was changed after it was signed, or forged. Fetch it again from "
            "whoever made it."
        )
    largest = trust.numbers.get(signature.name, 0)
    if signature.bundle not in trust.admitted and signature.number <= largest:
        raise BundleError(
            f"{where} is number {signature.number} of the bundles {signature.name}, and this lab has had number {largest}: an older bundle is "
            "not taken in. To go back to one that is still installed: `labref bundle rollback`, or `labref bundle activate DIGEST`."
        )
    return Verdict(signature, known.key, tuple(followed))


def judge_pack(signature: PackSignature, keys: Mapping[str, KnownKey], where: object) -> PublicKey:
    """The key of the lab that signed a pack. where : the pack, for messages.

    Raises `PackError` where the centre does not trust the key, or the signature is not that key's.
    """
    known = keys.get(signature.key)
    if known is None:
        raise PackError(
            f"{where} is signed by the key {signature.key}, which nobody here trusts. Ask the lab for its public key (`labref key own --out "
            "FILE.pub`), compare its id with them by telephone, and trust it: `python -m training pool POOL --trust FILE.pub`."
        )
    if known.state != "trusted":
        raise PackError(
            f"{where} is signed by the key {known.key.title}, whose lab was withdrawn here. Where it is to come back: `python -m training "
            "pool POOL --trust FILE.pub --again`."
        )
    if not known.key.has_signed(signature.message(), signature.value):
        raise PackError(
            f"{where}: its signature is not that of the key {known.key.title}: it was changed after it was signed, or forged. Ask the lab for "
            "the pack once more."
        )
    return known.key


def rotated(rotation: Rotation, keys: Mapping[str, KnownKey]) -> dict[str, KnownKey]:
    """What a rotation record changes in the keys that a lab knows: nothing where it was followed before.

    Raises `BundleError` where the key that is replaced is not trusted, where the record is not signed by it, and where
    the new key was revoked or replaced here: a record of before brings no key back.
    """
    old, new = keys.get(rotation.old), keys.get(rotation.new.id)
    record = f"The rotation record for the key {rotation.new.title}"
    if old is None:
        raise BundleError(f"{record} is signed by the key {rotation.old}, which this lab does not know.")
    if not old.key.has_signed(rotation.message(), rotation.value):
        raise BundleError(f"{record} is not signed by the key {old.key.title}, as it says: it was changed, or forged.")
    if old.state == "revoked":
        raise BundleError(f"{record} is signed by the key {old.key.title}, which was revoked here.")
    if new is not None and new.state == "trusted" and old.state == "replaced":
        return {}
    if old.state == "replaced":
        raise BundleError(f"{record} is signed by the key {old.key.title}, which another has replaced.")
    if new is not None and new.state != "trusted":
        raise BundleError(f"{record} comes too late: that key was {new.state} here, and no record brings it back.")
    return {
        old.key.id: KnownKey(old.key, "replaced"),
        rotation.new.id: new or KnownKey(rotation.new, "trusted"),
    }


def read_public_key(raw: bytes, where: object) -> PublicKey:
    """The public key in a file. where : the file, for messages. Raises `BundleError` where it holds none."""
    found = _document(raw, _PublicDocument, where)
    key = PublicKey(bytes.fromhex(found.key), found.name)
    if key.id != found.id:
        raise BundleError(f"{where} is no public key: its id is not that of its key. Fetch it again.")
    return key


def read_rotation(raw: bytes, where: object) -> Rotation:
    """The rotation record in a file; whether it holds, `rotated` says. Raises `BundleError` where it holds none."""
    return _rotation(_document(raw, _RotationDocument, where))


def read_signature(raw: bytes, where: object) -> Signature:
    """The signature in a file; whether it holds, `judge` says. Raises `BundleError` where it holds none."""
    found = _document(raw, _SignatureDocument, where)
    return Signature(
        found.archive,
        found.bundle,
        found.name,
        found.number,
        found.key,
        tuple(map(_rotation, found.rotations)),
        value=bytes.fromhex(found.signature),
    )


def read_pack_signature(raw: bytes, where: object) -> PackSignature:
    """The signature in the comment of a pack; whether it holds, `judge_pack` says. Raises `PackError` where it holds
    none."""
    try:
        found = _document(raw, _PackDocument, where)
    except BundleError as error:
        raise PackError(str(error)) from None
    return PackSignature(found.archive, found.key, value=bytes.fromhex(found.signature))


@functools.cache
def built_in_key() -> PublicKey:
    """The key that signs the starter: labref comes with it, and every lab trusts it until somebody revokes it there.
    Raises `BundleError` where this installation lacks it."""
    try:
        return read_public_key(read_file(_KEY, MAX_DOCUMENT_BYTES), _KEY)
    except OSError:
        raise BundleError(
            f"the starter's key is missing from this installation ({_KEY}). Install labref again."
        ) from None


def archive_parts(file: BinaryIO, size: int, out: BinaryIO | None = None) -> tuple[str, bytes | None]:
    """The SHA-256 of a `.labref` file without the comment of its archive, and the comment; None where it has none.

    file : at its beginning.  size : so many bytes are read, and no more.  out : they are copied there.
    """
    digest, held = hashlib.sha256(), b""
    while size > 0 and (part := file.read(min(_CHUNK, size))):
        size -= len(part)
        if out is not None:
            out.write(part)
        held += part
        surplus = max(len(held) - _END_BYTES - _MOST_COMMENT, 0)
        digest.update(held[:surplus])
        held = held[surplus:]
    comment = _comment(held)
    if not comment:
        digest.update(held)
        return digest.hexdigest(), None
    digest.update(held[: len(held) - len(comment) - 2] + bytes(2))
    return digest.hexdigest(), comment


def ends_whole(file: BinaryIO) -> bool:
    """Whether a file ends as a zip archive does; one that was cut off does not."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - _END_BYTES - _MOST_COMMENT))
    return _comment(file.read()) is not None


def _comment(end: bytes) -> bytes | None:
    """The comment of an archive, by its last bytes; None where they are not those of an archive."""
    at = end.rfind(_END)
    if at < 0 or len(end) < at + _END_BYTES:
        return None
    comment = end[at + _END_BYTES :]
    return comment if int.from_bytes(end[at + _END_BYTES - 2 : at + _END_BYTES], "little") == len(comment) else None


def with_comment(archive: bytes, comment: bytes) -> bytes:
    """The bytes of a zip archive with another comment. Raises `BundleError` where they are none, or more follows."""
    _, before = archive_parts(io.BytesIO(archive), len(archive))
    bare = archive[: len(archive) - len(before or b"")]
    if bare[-_END_BYTES:][: len(_END)] != _END or len(comment) > _MOST_COMMENT:
        raise BundleError("this is no packed bundle, or something follows it in its file. Pack it again.")
    return bare[:-2] + len(comment).to_bytes(2, "little") + comment


def canonical(values: Mapping[str, Any]) -> bytes:
    """The one text of a JSON object: names in order, no space, ASCII, a line feed at the end."""
    return (json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii")


def _hexadecimal(characters: int) -> Any:
    return Field(pattern=rf"^[0-9a-f]{{{characters}}}$")


_Id = Annotated[str, _hexadecimal(16)]
_Key = Annotated[str, _hexadecimal(64)]
_Digest = Annotated[str, _hexadecimal(64)]
_Value = Annotated[str, _hexadecimal(128)]
_Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(line)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _PublicDocument(_Document):
    kind: Literal["labref public key 1"]
    id: _Id
    key: _Key
    name: _Name


class _RotationDocument(_Document):
    kind: Literal["labref key rotation 1"]
    old: _Id
    key: _Key
    name: _Name
    signature: _Value


class _SignatureDocument(_Document):
    kind: Literal["labref bundle signature 1"]
    archive: _Digest
    bundle: _Digest
    name: Annotated[str, AfterValidator(check_name)]
    number: Annotated[int, Field(ge=1, le=MAX_NUMBER)]
    key: _Id
    rotations: Annotated[list[_RotationDocument], Field(max_length=MOST_ROTATIONS)]
    signature: _Value


class _PackDocument(_Document):
    kind: Literal["labref pack signature 1"]
    archive: _Digest
    key: _Id
    signature: _Value


_KINDS: Final[Mapping[type[_Document], str]] = {
    _PublicDocument: _PUBLIC,
    _RotationDocument: _ROTATION,
    _SignatureDocument: _SIGNATURE,
    _PackDocument: _PACK,
}
_Found = TypeVar("_Found", bound=_Document)


def _document(raw: bytes, model: type[_Found], where: object) -> _Found:
    kind = _KINDS[model]
    what, _, version = kind.rpartition(" ")
    try:
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"it is longer than {MAX_DOCUMENT_BYTES} bytes")
        values = parse_json(raw)
        said = values.get("kind") if isinstance(values, dict) else None
        if isinstance(said, str) and said != kind and said.rpartition(" ")[0] == what:
            raise ValueError(f"it is of another version than {version}, the one that this labref knows; upgrade labref")
        if isinstance(said, str) and said != kind and said in _KINDS.values():
            raise ValueError(f"it is a {said.rpartition(' ')[0]}")
        found = model.model_validate(values)
        if canonical(values) != raw:
            raise ValueError("it is written in another way than labref writes it")
    except ValidationError as error:
        raise BundleError(f"{where} holds no {what}: {first_fault(error)}.") from None
    except ValueError as error:
        raise BundleError(f"{where} holds no {what}: {error}.") from None
    return found


def first_fault(error: ValidationError) -> str:
    """Where the first fault of a document is, and what: the name of a field may be of anybody, so it is short and
    ASCII."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"])) or "all"
    return f"{ascii(place)[1:-1][:60]}: {fault['msg']}"


def _rotation(found: _RotationDocument) -> Rotation:
    new = PublicKey(bytes.fromhex(found.key), found.name)
    return Rotation(found.old, new, value=bytes.fromhex(found.signature))
