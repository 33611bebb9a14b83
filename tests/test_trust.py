"""A lab takes in what a key that it trusts has signed, remembers what it learned, and says so."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from labref import failpoints
from labref.bundles import proof, trial
from labref.bundles.bundle import Bundle
from labref.bundles.signing import built_in_key
from labref.cli import app
from labref.errors import BundleError, LabrefError
from labref.lab import Lab
from labref.lab.trust import bring_in, revoke_key, standing
from labref.operations import bundle as operations
from labref.operations import find_operation
from labref.roles import Role
from labref.store import Store
from labref.web import desk
from tests.keys import TestKey, signed, tiny

CENTRE, NEXT, THIEF = (TestKey.make(name) for name in ("the centre", "the centre's next", "a thief"))
SCHEMAS = Path(__file__).parent / "schemas"


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """First runs are left out: what the networks give is not the matter here."""
    shown = trial.Shown("CPUExecutionProvider", "full", "", 0.0)
    for module in (proof, operations):
        monkeypatch.setattr(module, "tried", lambda *_: shown)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "export").mkdir()
    return Lab.create(tmp_path / "lab", [tmp_path / "export"])


class Shop:
    """The centre, which makes bundles of one name."""

    def __init__(self, starter: Bundle, folder: Path) -> None:
        self.starter, self.folder, self.made = starter, folder, 0

    def ships(self, key: TestKey, number: int, **more: Any) -> Path:
        self.made += 1
        folder = tiny(self.starter, self.folder / f"draft-{self.made}", version=f"v{self.made}")
        return signed(folder, self.folder / f"{self.made}.labref", key, number, **more)


@pytest.fixture
def shop(starter: Bundle, tmp_path: Path) -> Shop:
    return Shop(starter, tmp_path / "shop")


def install(lab: Lab, file: Path, **more: Any) -> dict[str, Any]:
    return next(desk.run(lab, "bundle.install", file=str(file), **more))


def trust(lab: Lab, key: TestKey, **more: Any) -> dict[str, Any]:
    return next(desk.run(lab, "key.trust", document=key.public.to_bytes().decode(), **more))


def states(lab: Lab) -> dict[str, str]:
    return {row["id"]: row["state"] for row in desk.run(lab, "key.list")}


def command(lab: Lab, *words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words), "--lab", str(lab.folder)])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_a_fresh_lab_trusts_the_key_that_comes_with_labref_alone(lab: Lab, shop: Shop) -> None:
    own = built_in_key()
    assert states(lab) == {own.id: "trusted"}
    status = next(desk.run(lab, "status"))
    assert status["signature"]["state"] == "signed" and status["signature"]["key"] == own.id
    assert f"signed by {own.name} ({own.id}), number {status['signature']['number']}" in command(lab, "status")
    file = shop.ships(CENTRE, 1)
    assert f"signed by the key {CENTRE.public.id}, which this lab does not trust" in command(
        lab, "bundle", "install", file, code=1
    )
    assert "does not trust" in command(lab, "bundle", "verify", file, code=1)


def test_a_lab_is_made_with_a_key_of_its_own_centre(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    file = shop.ships(CENTRE, 1)
    words = ["init", tmp_path / "lab", "--watch", tmp_path / "export", "--bundle", file]
    refused = CliRunner().invoke(app, [*map(str, words)])
    assert refused.exit_code == 1 and not (tmp_path / "lab").exists()
    (tmp_path / "centre.pub").write_bytes(CENTRE.public.to_bytes())
    made = CliRunner().invoke(app, [*map(str, words), "--key", str(tmp_path / "centre.pub")])
    assert made.exit_code == 0 and f"signed by the centre ({CENTRE.public.id}), number 1" in made.output
    assert states(Lab.open(tmp_path / "lab")) == {built_in_key().id: "trusted", CENTRE.public.id: "trusted"}


def test_the_commands_trust_list_and_revoke(lab: Lab, shop: Shop, tmp_path: Path) -> None:
    pub = tmp_path / "centre.pub"
    pub.write_bytes(CENTRE.public.to_bytes())
    assert f"The key the centre ({CENTRE.public.id}) is trusted. Compare the id" in command(lab, "key", "trust", pub)
    trust(lab, NEXT)
    assert list(states(lab).values()) == ["trusted"] * 3
    command(lab, "bundle", "install", shop.ships(CENTRE, 1))
    command(lab, "bundle", "install", shop.ships(NEXT, 2))
    assert "revoked: nothing more that it signs is taken in" in command(lab, "key", "revoke", CENTRE.public.id)
    assert f"{CENTRE.public.id} revoked since" in command(lab, "key", "list")
    assert "was revoked here" in command(lab, "bundle", "install", shop.ships(CENTRE, 3), code=1)
    command(lab, "bundle", "install", shop.ships(NEXT, 3))
    for words in (
        ("trust", pub),
        ("revoke", "0" * 16),
        ("revoke", "x"),
        ("trust", tmp_path),
        ("trust", tmp_path / "no"),
    ):
        command(lab, "key", *words, code=1)
    (tmp_path / "noise").write_bytes(b"\xff\0")
    command(lab, "key", "trust", tmp_path / "noise", code=1)
    assert states(lab)[CENTRE.public.id] == "revoked"
    command(lab, "key", "trust", pub, "--again")
    assert states(lab)[CENTRE.public.id] == "trusted"


def test_who_may_trust_a_key(lab: Lab) -> None:
    for name in ("key.trust", "key.revoke", "bundle.install"):
        assert find_operation(name).role is Role.ADMIN


def test_an_older_number_is_refused_also_after_its_bundle_was_dropped(lab: Lab, shop: Shop) -> None:
    trust(lab, CENTRE)
    first, second = shop.ships(CENTRE, 1), shop.ships(CENTRE, 2)
    row = install(lab, first)
    assert row["signature"] == {
        "state": "signed", "key": CENTRE.public.id, "key_name": "the centre", "number": 1
    }  # fmt: skip
    install(lab, second)
    install(lab, first)  # it is here, and may be mended
    next(desk.run(lab, "bundle.drop", bundle=row["digest"]))
    with pytest.raises(BundleError, match="is number 1 of the bundles tiny, and this lab has had number 2"):
        install(lab, first)
    with pytest.raises(BundleError, match="this lab has had number 2"):
        install(lab, shop.ships(CENTRE, 2))


def test_two_bundles_at_once_come_in_by_their_numbers(lab: Lab, shop: Shop) -> None:
    trust(lab, CENTRE)
    older, newer = shop.ships(CENTRE, 5), shop.ships(CENTRE, 6)
    with lab.open_store() as store:

        def meanwhile(_: Bundle) -> None:
            bring_in(store, newer, lab.bundles, check=lambda _: None)

        with pytest.raises(BundleError, match="this lab has had number 6"):
            bring_in(store, older, lab.bundles, check=meanwhile)
        assert {found.name for found in lab.bundles.iterdir()} == {
            digest[:12] for digest in store.keys.known().admissions
        }


def test_a_key_that_is_revoked_while_its_bundle_is_looked_at_signs_nothing(lab: Lab, shop: Shop) -> None:
    trust(lab, CENTRE)
    with lab.open_store() as store, pytest.raises(BundleError, match="was revoked here"):
        bring_in(store, shop.ships(CENTRE, 1), lab.bundles, check=lambda _: revoke_key(store, CENTRE.public.id))
    assert len(list(lab.bundles.iterdir())) == 1


@pytest.mark.parametrize("way", ["a file", "the bundle"])
def test_a_key_hands_over_to_the_next(way: str, lab: Lab, shop: Shop, tmp_path: Path) -> None:
    trust(lab, CENTRE)
    before = shop.ships(CENTRE, 1)
    digest = install(lab, before)["digest"]
    record = CENTRE.hands_over_to(NEXT)
    if way == "a file":
        (tmp_path / "next.rotation").write_bytes(record.to_bytes())
        said = command(lab, "key", "trust", tmp_path / "next.rotation")
        assert f"It took over from the key {CENTRE.public.id}, which is trusted no more" in said
        command(lab, "key", "trust", tmp_path / "next.rotation")  # said again, it changes nothing
        install(lab, shop.ships(NEXT, 2))
    else:
        install(lab, shop.ships(NEXT, 2, rotations=[record]))
    assert states(lab) == {built_in_key().id: "trusted", CENTRE.public.id: "replaced", NEXT.public.id: "trusted"}
    with pytest.raises(BundleError, match="was replaced by a newer key"):
        install(lab, shop.ships(CENTRE, 3))
    with lab.open_store() as store:  # what the old key signed before stays
        assert standing(store, digest).state == "signed"
    (lab.bundles / digest[:12] / "trunk.onnx").write_bytes(b"damaged")
    assert install(lab, before)["digest"] == digest
    # a damaged bundle is mended, and no number of a key that is trusted no more keeps those of the next key out
    again = signed(shop.folder / "draft-1", shop.folder / "again.labref", CENTRE, 10**13)
    assert install(lab, again)["signature"]["number"] == 1
    install(lab, shop.ships(NEXT, 3))
    # whoever stole the old key comes too late, and so does the record once the next key is revoked
    with pytest.raises(BundleError, match="does not trust"):
        install(lab, shop.ships(THIEF, 4, rotations=[CENTRE.hands_over_to(THIEF)]))
    next(desk.run(lab, "key.revoke", key=NEXT.public.id))
    with pytest.raises(BundleError, match="which another has replaced"):
        next(desk.run(lab, "key.trust", document=record.to_bytes().decode()))
    with pytest.raises(BundleError, match="was revoked here"):
        install(lab, shop.ships(NEXT, 5, rotations=[record]))
    assert states(lab)[NEXT.public.id] == "revoked"


def test_a_bundle_that_is_refused_changes_no_trust(lab: Lab, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rotation record would hold; its golden cells do not."""

    def wrong(*_: object) -> trial.Shown:
        raise BundleError("does not give its golden outputs")

    trust(lab, CENTRE)
    monkeypatch.setattr(proof, "tried", wrong)
    monkeypatch.setattr(proof, "_shown_here", {})
    file = shop.ships(NEXT, 9, rotations=[CENTRE.hands_over_to(NEXT)])
    with pytest.raises(BundleError, match="golden outputs"):
        install(lab, file)
    assert states(lab) == {built_in_key().id: "trusted", CENTRE.public.id: "trusted"}
    with lab.open_store() as store:
        assert "tiny" not in store.keys.known().numbers


def test_an_unsigned_bundle_is_said_wherever_it_is(lab: Lab, starter: Bundle, tmp_path: Path) -> None:
    folder = tiny(starter, tmp_path / "plain")
    assert "--unsigned" in command(lab, "bundle", "install", folder, code=1)
    assert "NOT SIGNED" in command(lab, "bundle", "install", folder, "--unsigned")
    assert "NOT SIGNED" in command(lab, "bundle", "list")
    assert "is not signed" in command(lab, "bundle", "verify", folder, code=1)
    (tmp_path / "export").mkdir(exist_ok=True)
    other = Lab.create(tmp_path / "other", [tmp_path / "export"], folder, unsigned=True)
    assert "NOT SIGNED: somebody said that it may come in so" in command(other, "status", code=1)  # it has no networks
    assert next(desk.run(other, "status"))["signature"]["state"] == "unsigned"


def test_a_bundle_that_nobody_took_in_is_not_changed_to(lab: Lab, starter: Bundle, tmp_path: Path) -> None:
    folder = tiny(starter, tmp_path / "plain")
    shutil.copytree(folder, lab.bundles / Bundle.open(folder).short)
    assert "NOT TAKEN IN" in command(lab, "bundle", "list")
    for words in (("activate", "tiny"), ("verify",)):
        assert "labref did not take it in" in command(lab, "bundle", *words, code=1)


def test_what_a_revoked_key_signed_goes_on_answering_and_is_said(lab: Lab) -> None:
    next(desk.run(lab, "key.revoke", key=built_in_key().id))
    said = command(lab, "status", code=1)
    assert "WAS REVOKED here" in said and "the lab needs attention: the active bundle is signed by the key" in said
    assert "was revoked here" in command(lab, "bundle", "verify", code=1)
    with lab.open_store() as store:
        assert lab.bundle(store).manifest.name == "starter"


def test_a_signature_that_went_from_a_bundles_folder_is_noticed(lab: Lab, shop: Shop) -> None:
    trust(lab, CENTRE)
    file = shop.ships(CENTRE, 1)
    digest = install(lab, file)["digest"]
    (lab.bundles / digest[:12] / "signature.json").unlink()
    assert "its folder no longer holds that" in command(lab, "bundle", "verify", code=1)
    install(lab, file)
    *_, row = desk.run(lab, "bundle.verify")
    assert "no longer holds" not in str(row)


@contextlib.contextmanager
def before_signatures(lab: Lab) -> Iterator[None]:
    """The lab as a labref of before signatures left it."""
    for file in lab.bundles.glob("*/signature.json"):
        file.unlink()
    with duckdb.connect(str(lab.store_file)) as connection:
        connection.execute("DELETE FROM admission")
        connection.execute("UPDATE before_signatures SET waits = TRUE")
    yield


def test_a_lab_of_before_signatures_keeps_what_it_has(lab: Lab, starter: Bundle, tmp_path: Path) -> None:
    folder = tiny(starter, tmp_path / "plain")
    digest = install(lab, folder, unsigned=True)["digest"]
    with before_signatures(lab):
        assert "signed by labref starter" in command(lab, "status")  # the starter's signature is here now
        row = next(row for row in desk.run(lab, "bundle.list") if row["digest"] == digest)
        assert row["signature"]["state"] == "before"
        assert "not signed: it came in when labref knew no signatures" in command(lab, "bundle", "list")
        assert "no longer holds" not in command(lab, "bundle", "verify")
    # once: what is put into the folder later is not taken over
    late = tiny(starter, tmp_path / "late", version="late")
    shutil.copytree(late, lab.bundles / Bundle.open(late).short)
    assert "NOT TAKEN IN" in command(lab, "bundle", "list")


@pytest.mark.parametrize("kept", sorted(SCHEMAS.glob("*.duckdb")), ids=lambda path: path.stem)
def test_a_store_of_an_older_labref_waits_to_be_taken_over_and_a_new_one_does_not(kept: Path, tmp_path: Path) -> None:
    shutil.copyfile(kept, tmp_path / "store.duckdb")
    found: list[str] = []
    with contextlib.closing(Store.open(tmp_path / "store.duckdb")) as store:
        had = [bundle.digest for bundle in store.bundles()]
        assert had
        store.keys.take_over(lambda: found.append("asked") or [])  # type: ignore[func-returns-value]
        store.keys.take_over(lambda: found.append("again") or [])  # type: ignore[func-returns-value]
    assert found == ["asked"]
    with contextlib.closing(Store.create(tmp_path / "new.duckdb")) as store:
        store.keys.take_over(lambda: found.append("new") or [])  # type: ignore[func-returns-value]
    assert found == ["asked"]


def test_a_decision_is_written_whole_or_not_at_all(lab: Lab, shop: Shop) -> None:
    trust(lab, CENTRE)
    file = shop.ships(NEXT, 1, rotations=[CENTRE.hands_over_to(NEXT)])
    failpoints.arm("keys.change=enospc@1")
    try:
        with pytest.raises(LabrefError):
            install(lab, file)
    finally:
        failpoints.disarm()
    assert states(lab)[CENTRE.public.id] == "trusted" and NEXT.public.id not in states(lab)
    assert len(list(lab.bundles.iterdir())) == 1
    install(lab, file)
    assert states(lab)[CENTRE.public.id] == "replaced"
