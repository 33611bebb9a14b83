"""The agent as a service of the system, which starts it with the computer and again when it fails: the files that
describe it, and how they are registered. May import a lab and below.

Linux: a systemd unit. Windows: a service by WinSW, whose program the lab's IT brings along, and without it a task of
the Task Scheduler. Containers: `container` holds their definition.
"""

from labref.service.descriptions import NAME, Described, describe
from labref.service.registering import (
    Registered,
    cut_off,
    install,
    is_outdated,
    registered,
    remove,
    renew,
    write_container,
)

__all__ = [
    "NAME",
    "Described",
    "Registered",
    "cut_off",
    "describe",
    "install",
    "is_outdated",
    "registered",
    "remove",
    "renew",
    "write_container",
]
