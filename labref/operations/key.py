"""`labref key`: whose bundles the lab takes in, and the key that it signs with itself."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import Annotated, Literal

from pydantic import Field

from labref.bundles.schema import parse_json
from labref.bundles.signing import MAX_DOCUMENT_BYTES, read_public_key, read_rotation
from labref.errors import BundleError
from labref.lab.contributing import own_key
from labref.lab.trust import follow_rotation, known_keys, revoke_key, trust_key
from labref.operations import operation
from labref.operations.models import Answer, Text
from labref.progress import Row
from labref.store import Store
from labref.tasks.context import Context
from labref.times import utc

__all__ = ["Key", "OwnKey"]


class Key(Answer):
    """A key that the lab knows, and what it thinks of it."""

    id: str = Field(description="How the key is called: 16 hexadecimal characters, the same in every lab.")
    name: str = Field(description="Whose it is, as the key itself says.")
    state: Literal["trusted", "replaced", "revoked"] = Field(
        description="`trusted`: what it signs is taken in; `replaced`: another key took over, by its own word; `revoked`: somebody of the lab "
        "said so."
    )
    key: str = Field(description="The public key, 64 hexadecimal characters.")
    because: str | None = Field(
        description="Id of the key whose rotation record says so; null where a person did, or the key comes with labref."
    )
    changed_at: str | None = Field(
        description="Since when, ISO 8601, UTC; null where the key comes with labref and nobody said otherwise."
    )


class OwnKey(Answer):
    """The lab's own key, which signs the packs that it gives to the centre."""

    id: str = Field(description="How the key is called: 16 hexadecimal characters. Packs name the lab by it.")
    name: str = Field(description="Whose it is, as the key itself says; packs do not hold it.")
    key: str = Field(description="The public key, 64 hexadecimal characters.")
    made: bool = Field(description="Whether it was made just now.")
    document: str = Field(description="The file of the public key, for the centre: its text, to the last line feed.")


_Document = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=MAX_DOCUMENT_BYTES,
        description="What the file of a public key, or of a rotation record, holds: its text, to the last line feed.",
    ),
]
_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", description="Id of the key, as `key.list` gives it.")]


@operation("key.trust", Key)
def trust(
    context: Context,
    *,
    document: _Document,
    again: Annotated[
        bool, Field(description="Trust a key although it was revoked or replaced here before. No rotation record may.")
    ] = False,
) -> Iterator[Row]:
    """Take in bundles that a key signs, from now on. A public key is trusted as it is; a rotation record, where the lab
    trusts the key that signed it: then that key is trusted no more.

    Compare the key's id with whoever made it by another way than the file came by, such as the telephone.
    """
    raw = document.encode("utf-8", "surrogatepass")
    if _is_rotation(raw):
        rotation = read_rotation(raw, "the file")
        follow_rotation(context.store, rotation)
        yield _row(context.store, rotation.new.id)
        return
    key = read_public_key(raw, "the file")
    trust_key(context.store, key, again=again)
    yield _row(context.store, key.id)


@operation("key.own", OwnKey)
def own(
    context: Context,
    *,
    name: Annotated[
        Text | None,
        Field(
            min_length=1,
            max_length=100,
            description="Whose key it is, for people at the centre. A key that has another name is called so from now on.",
        ),
    ] = None,
) -> Iterator[Row]:
    """Show the lab's own key, which signs packs for the centre. It is made when it is first asked for."""
    key, made = own_key(context.lab, name)
    yield {
        "id": key.public.id,
        "name": key.public.name,
        "key": key.public.raw.hex(),
        "made": made,
        "document": key.public.to_bytes().decode("ascii"),
    }


@operation("key.list", Key)
def list_(context: Context) -> Iterator[Row]:
    """List the keys that the lab knows, and what it thinks of each."""
    for key in known_keys(context.store):
        yield _row(context.store, key)


@operation("key.revoke", Key)
def revoke(context: Context, *, key: _Key) -> Iterator[Row]:
    """Take in nothing more that a key signs, and follow no rotation record of its.

    A bundle that it signed and that answers goes on answering, so that the lab can work; `status` says it. There is no
    changing to one that it signed, but for going back to the one that was active before.
    """
    revoke_key(context.store, key)
    yield _row(context.store, key)


def _is_rotation(raw: bytes) -> bool:
    try:
        values = parse_json(raw)
    except ValueError as error:
        raise BundleError(f"the file holds no public key and no rotation record: {error}.") from None
    return isinstance(values, dict) and str(values.get("kind")).startswith("labref key rotation")


def _row(store: Store, key: str) -> Row:
    known, change = known_keys(store)[key]
    at = None if change is None or change.changed_at is None else change.changed_at.replace(tzinfo=UTC)
    return {
        "id": key,
        "name": known.key.name,
        "state": known.state,
        "key": known.key.raw.hex(),
        "because": None if change is None else change.because,
        "changed_at": None if at is None else utc(at),
    }
