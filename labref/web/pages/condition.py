"""How the lab and its agent are, and who may look at its pages."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response

from labref.errors import LabrefError
from labref.roles import Role
from labref.web.pages import Visit, page
from labref.web.texts import Texts

__all__ = ["words"]

_REJECTED: Final = 20  # files shown, the newest


@page("/condition")
def condition(visit: Visit) -> Response:
    state = visit.one("status")
    # of what was removed, as for a patient who withdrew, those are told who can bring it back, on another page
    rejected = list(visit.ask("ledger", outcome="rejected", removed=False, limit=_REJECTED))
    rejected.reverse()
    return visit.show(
        "condition.html",
        state=state,
        map=visit.one("map.status"),
        rejected=rejected,
        words=words(visit.texts),
    )


@page("/users", role=Role.ADMIN)
def users(visit: Visit) -> Response:
    return _users(visit)


@page("/users", methods=("POST",), role=Role.ADMIN)
def change_users(visit: Visit) -> Response:
    form = {name: values[0] for name, values in visit.form().items()}
    name, what = form.get("name", "").strip(), form.get("what", "")
    try:
        if what == "add":
            days = form.get("days", "").strip() or None
            return _users(visit, made=visit.one("user.add", name=name, role=form.get("role", "view"), days=days))
        if what == "renew":
            return _users(visit, made=visit.one("user.renew", name=name))
        if what == "revoke":
            return _users(visit, revoked=visit.one("user.revoke", name=name))
    except LabrefError as error:
        return _users(visit, status=400, problem=visit.problem(error))
    return _users(visit, status=400, problem=visit.texts.gettext("This form is of another version of labref."))


def _users(visit: Visit, *, status: int = 200, **told: Any) -> Response:
    values = {"made": None, "revoked": None, "problem": None} | told
    link = "" if values["made"] is None else f"{visit.request.base_url}sign-in#{values['made']['code']}"
    return visit.show("users.html", status=status, people=list(visit.ask("user.list")), link=link, **values)


def words(texts: Texts) -> dict[str, str]:
    """What operations call things, by a word, in the reader's language. Whole sentences of theirs stay English."""
    return {
        "starting": texts.gettext("starting"),
        "scanning": texts.gettext("looking through the folders"),
        "watching": texts.gettext("watching the folders"),
        "ending": texts.gettext("ending"),
        "map": texts.gettext("the map is trained"),
        "map places": texts.gettext("cells are placed on the map"),
        "retention": texts.gettext("old cells are removed"),
        "fingerprints": texts.gettext("cells are compared with each other"),
        "optics": texts.gettext("the optics of cells are measured"),
        "report": texts.gettext("the report is made"),
        "bundle": texts.gettext("cells are embedded by another bundle"),
        "background_red": texts.gettext("background, red"),
        "background_green": texts.gettext("background, green"),
        "background_blue": texts.gettext("background, blue"),
        "focus": texts.gettext("focus"),
        "density_red": texts.gettext("stain, red"),
        "density_green": texts.gettext("stain, green"),
        "density_blue": texts.gettext("stain, blue"),
        "CPUExecutionProvider": texts.gettext("the processor"),
        "CUDAExecutionProvider": texts.gettext("the graphics card"),
        "none": texts.gettext("nothing"),
    }
