"""Which bundles a lab takes in, by whose signature, and what it says of those that it has.

What a lab trusts stands in its store: the keys, the largest number of each bundle's name, why each bundle came in.
Every decision is made within the transaction that writes it down, so two of them at once cannot both be right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from labref.bundles.bundle import Bundle, install, starter_bundle
from labref.bundles.signing import (
    DETACHED,
    MAX_DOCUMENT_BYTES,
    KnownKey,
    PublicKey,
    Rotation,
    Signature,
    Trust,
    Verdict,
    built_in_key,
    judge,
    key_id,
    read_public_key,
    read_signature,
    rotated,
)
from labref.errors import BundleError, LabError
from labref.files import read_file
from labref.store import Admission, How, KeyChange, KeyState, Known, Store

__all__ = [
    "Standing",
    "bring_in",
    "follow_rotation",
    "forget",
    "holds_still",
    "known_keys",
    "public_key_in",
    "require_usable",
    "revoke_key",
    "standing",
    "take_over",
    "trust_key",
    "trust_of",
]


@dataclass(frozen=True)
class Standing:
    """Why a bundle is in the lab. key : the key that signed it, None where none did.  number : its own, as signed.

    state : `signed` by a key that is trusted, or that another has replaced since; `revoked`: its key is not trusted any
    more; `unsigned`: somebody said so; `before`: it came when labref knew no signatures; `unknown`: nothing says.
    """

    state: Literal["signed", "revoked", "unsigned", "before", "unknown"]
    key: PublicKey | None = None
    number: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values (`labref.operations.models.BundleSignature`)."""
        return {
            "state": self.state,
            "key": None if self.key is None else self.key.id,
            "key_name": None if self.key is None else self.key.name,
            "number": self.number,
        }


def trust_of(store: Store, *, unsigned: bool = False) -> Trust:
    """What the lab of this store believes. unsigned : somebody said that a bundle without a signature may come in."""
    return _trust(store.keys.known(), unsigned)


def known_keys(store: Store) -> dict[str, tuple[KnownKey, KeyChange | None]]:
    """Every key that the lab knows, by id, and when and why it thinks so; None of labref's own, of which nobody said
    anything."""
    known = store.keys.known()
    changes = {key_id(bytes.fromhex(change.key)): change for change in known.keys.values()}
    return {name: (key, changes.get(name)) for name, key in _keys(known).items()}


def bring_in(
    store: Store, source: Path, bundles: Path, *, unsigned: bool = False, check: Callable[[Bundle], object]
) -> Bundle:
    """Install the bundle at `source` in the folder `bundles` of a lab, if the lab trusts who signed it.

    check : see `install`. What the lab has learned by it, such as the bundle's number, is kept before the bundle gets
    its name. Raises `BundleError`.
    """

    def admit(bundle: Bundle, verdict: Verdict) -> None:
        def decide(known: Known) -> Iterator[KeyChange | Admission]:
            # again: meanwhile another bundle may have come in, or a key may have been revoked
            keys = _keys(known)
            last = judge(verdict.signature, _trust(known, unsigned), source)
            signature = last.signature
            if signature is not None and signature.key in keys and keys[signature.key].state == "replaced":
                return  # it mends a bundle that is here; the word of a key that is trusted no more, as its number, is not kept
            yield from _followed(last.rotations, keys)
            before = known.admissions.get(bundle.digest)
            if signature is None:
                if before is None or before.how is How.DROPPED:
                    yield Admission(bundle.digest, How.UNSIGNED)
                return
            made = Admission(bundle.digest, How.SIGNED, signature.name, signature.number, signature.key)
            if before is None or _what(before) != _what(made):
                yield made

        store.keys.change(decide)

    trust = trust_of(store, unsigned=unsigned)
    return install(source, bundles, check, trust=trust, admit=admit)


def standing(store: Store, digest: str) -> Standing:
    """Why the bundle with this digest is in the lab."""
    known = store.keys.known()
    admission = known.admissions.get(digest)
    if admission is None or admission.how is How.DROPPED:
        return Standing("unknown")
    if admission.how is not How.SIGNED:
        return Standing("before" if admission.how is How.BEFORE else "unsigned")
    key = _keys(known).get(admission.key_id or "")
    if key is None:
        return Standing("unknown")
    return Standing("revoked" if key.state == "revoked" else "signed", key.key, admission.bundle_number)


def require_usable(store: Store, bundle: Bundle) -> None:
    """Raise `BundleError` where the lab must not change to this installed bundle: nobody took it in, or the key that
    signed it was revoked since."""
    found = standing(store, bundle.digest)
    if found.state == "unknown":
        raise BundleError(
            f"bundle {bundle.title} lies in the lab's folder, but labref did not take it in. Install it from its file: `labref bundle install "
            "FILE`."
        )
    if found.state == "revoked":
        assert found.key is not None
        raise BundleError(
            f"bundle {bundle.title} is signed by the key {found.key.title}, which was revoked here. Install one that is signed by a key that "
            "`labref key list` shows as trusted."
        )


def holds_still(store: Store, bundle: Bundle) -> None:
    """Raise `BundleError` where this installed bundle is kept as signed, and the signature in its folder is gone, or is
    not of the key that the lab wrote down."""
    known = store.keys.known()
    admission = known.admissions.get(bundle.digest)
    if admission is None or admission.how is not How.SIGNED:
        return
    signature = bundle.signature() or _starters_signature()
    key = _keys(known).get(admission.key_id or "")
    if (
        signature is None
        or key is None
        or (signature.bundle, signature.key) != (bundle.digest, admission.key_id)
        or not key.key.has_signed(signature.message(), signature.value)
    ):
        raise BundleError(
            f"bundle {bundle.title} came in with a signature, and its folder no longer holds that. Install it from its file again: `labref "
            "bundle install FILE`."
        )


def take_over(store: Store, bundles: Path) -> None:
    """Keep what a labref that knew no signatures left in the store and in the folder `bundles`; once for a lab.

    labref's own starter counts as signed, as its signature is here now.
    """

    def find() -> Iterator[Admission]:
        digests = {stored.digest for stored in store.bundles()}
        for folder in bundles.iterdir() if bundles.is_dir() else ():
            with contextlib.suppress(BundleError):
                digests.add(Bundle.in_its_folder(folder).digest)
        own = _starters_signature()
        for digest in sorted(digests):
            if own is not None and digest == own.bundle:
                yield Admission(digest, How.SIGNED, own.name, own.number, own.key)
            else:
                yield Admission(digest, How.BEFORE)

    store.keys.take_over(find)


def public_key_in(file: Path) -> PublicKey:
    """The public key in a file. Raises `BundleError`."""
    try:
        return read_public_key(read_file(file, MAX_DOCUMENT_BYTES), file)
    except OSError as error:
        raise BundleError(f"{file} is no public key: {error.strerror or error}.") from None


def trust_key(store: Store, key: PublicKey, *, again: bool = False) -> None:
    """Take in what this key signs from now on. again : although it was revoked or replaced here before; else that is a
    `LabError`."""

    def decide(known: Known) -> Iterator[KeyChange]:
        before = _keys(known).get(key.id)
        if before is not None and before.state == "trusted":
            return
        if before is not None and not again:
            raise LabError(
                f"the key {key.title} was {before.state} here. If that was a mistake, or it is sure again whose it is, say --again."
            )
        yield KeyChange(key.raw.hex(), key.name, KeyState.TRUSTED)

    store.keys.change(decide)


def follow_rotation(store: Store, rotation: Rotation) -> None:
    """Trust the key that takes over, and the one that it replaces no more. Raises `BundleError` where the record does
    not hold here."""
    store.keys.change(lambda known: list(_followed([rotation], _keys(known))))


def revoke_key(store: Store, key: str) -> None:
    """Take in nothing more that the key with this id signs, and follow no rotation record of its. Raises `LabError`
    where the lab knows no such key."""

    def decide(known: Known) -> Iterator[KeyChange]:
        found = _keys(known).get(key)
        if found is None:
            raise LabError(f"this lab knows no key {key}; `labref key list` shows its keys.")
        if found.state != "revoked":
            yield KeyChange(found.key.raw.hex(), found.key.name, KeyState.REVOKED)

    store.keys.change(decide)


def forget(store: Store, digest: str) -> None:
    """A bundle was dropped: an older number does not come back, even if it was here before."""
    store.keys.change(lambda known: [Admission(digest, How.DROPPED)] if digest in known.admissions else [])


def _what(admission: Admission) -> tuple[object, ...]:
    return admission.how, admission.name, admission.bundle_number, admission.key_id


def _trust(known: Known, unsigned: bool) -> Trust:
    here = frozenset(digest for digest, one in known.admissions.items() if one.how is not How.DROPPED)
    return Trust(_keys(known), known.numbers, here, unsigned)


def _keys(known: Known) -> dict[str, KnownKey]:
    """By id; labref's own is trusted where nobody said otherwise."""
    own = built_in_key()
    found = {own.id: KnownKey(own, "trusted")}
    for change in known.keys.values():
        key = PublicKey(bytes.fromhex(change.key), change.name)
        found[key.id] = KnownKey(key, change.state.value)
    return found


def _followed(rotations: Iterable[Rotation], keys: Mapping[str, KnownKey]) -> Iterator[KeyChange]:
    now = dict(keys)
    for rotation in rotations:
        changed = rotated(rotation, now)
        now |= changed
        for known in changed.values():
            yield KeyChange(known.key.raw.hex(), known.key.name, KeyState(known.state), rotation.old)


def _starters_signature() -> Signature | None:
    """What labref's own key signed of the starter that comes with it; None where that is not to be had."""
    with contextlib.suppress(BundleError, OSError):
        file = starter_bundle()
        beside = file.with_name(file.name + DETACHED)
        signature = read_signature(read_file(beside, MAX_DOCUMENT_BYTES), beside)
        own = built_in_key()
        return judge(signature, Trust({own.id: KnownKey(own, "trusted")}), file).signature
    return None
