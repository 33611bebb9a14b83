"""The centre's keys: used to sign bundles, and handed over to the next.

`labref.bundles.keyfile` makes, keeps and opens them. `labref.bundles.signing` says what is signed, and verifies it.
"""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from labref.bundles.bundle import Bundle, unpacked
from labref.bundles.keyfile import PASSPHRASE, PUBLIC, SigningKey, new_key, number_of_now, write_new
from labref.bundles.signing import (
    DETACHED,
    MAX_DOCUMENT_BYTES,
    MAX_NUMBER,
    KnownKey,
    PublicKey,
    Rotation,
    Signature,
    archive_parts,
    read_rotation,
    rotated,
    with_comment,
)
from labref.errors import KeyFileError
from labref.files import read_file, sync_folder

__all__ = [
    "DETACHED",
    "PASSPHRASE",
    "PUBLIC",
    "KeyFileError",
    "SigningKey",
    "new_key",
    "number_of_now",
    "rotate",
    "sign",
]


def sign(
    source: Path,
    key: SigningKey,
    *,
    number: int | None = None,
    rotations: Sequence[Path] = (),
    out: Path | None = None,
    detached: bool = False,
) -> tuple[Bundle, Signature]:
    """Verify the bundle in the file `source`, and sign it; a signature that it carries is replaced.

    number : see `number_of_now`.  rotations : files of records that the bundle carries, for labs that trust an earlier
    key.  out : the signed file, else `source` itself.  detached : the file stays as it is; `NAME.labref.sig` is written
    beside it. Raises `KeyFileError` and `BundleError`.
    """
    number = number_of_now() if number is None else number
    if not 1 <= number <= MAX_NUMBER:
        raise KeyFileError(f"a bundle's number is one of 1 to {MAX_NUMBER}.")
    try:
        records = tuple(read_rotation(read_file(file, MAX_DOCUMENT_BYTES), file) for file in rotations)
    except OSError as error:
        raise KeyFileError(f"a rotation record cannot be read: {error.strerror or error}.") from None
    if records and records[-1].new.id != key.public.id:
        raise KeyFileError(
            f"the last rotation record is for the key {records[-1].new.title}, not for {key.public.title}."
        )
    with unpacked(source) as (bundle, _):
        bare = with_comment(source.read_bytes(), b"")
        archive, _ = archive_parts(io.BytesIO(bare), len(bare))
        unsigned = Signature(archive, bundle.digest, bundle.manifest.name, number, key.public.id, records)
        made = replace(unsigned, value=key.sign(unsigned.message()))
        if detached:
            _replace(source.with_name(source.name + DETACHED), made.to_bytes())
        else:
            _replace(out or source, with_comment(bare, made.to_bytes()))
        return bundle, made


def rotate(old: SigningKey, new: PublicKey, out: Path) -> Rotation:
    """Write the record by which `new` takes over from `old`, signed by `old`, to the file `out`. Raises
    `KeyFileError`."""
    if new.id == old.public.id:
        raise KeyFileError("both are the same key: make a new one with `key new`.")
    unsigned = Rotation(old.public.id, new)
    made = replace(unsigned, value=old.sign(unsigned.message()))
    rotated(made, {old.public.id: KnownKey(old.public, "trusted")})
    write_new(out, made.to_bytes(), 0o644)
    return made


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole, in the place of one that may be there."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
