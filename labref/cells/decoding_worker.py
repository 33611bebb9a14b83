"""The process in which pictures are decoded: reads a task and a picture, answers, until its input ends.

See `labref.cells.decoding`, which starts it. Signals by which a service or a terminal ends the agent are not for it:
the agent ends it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import pickle
import signal
import sys
from typing import IO

from PIL import Image

from labref.cells.decoding import HEADER, OUT_OF_MEMORY, WALL_FACTOR, Answer, Limits
from labref.cells.examination import TASKS
from labref.errors import DecodingLimitError, UnreadableImageError

_LATE_SECONDS = 5.0  # the parent ends a picture that takes too long; where it is gone, the worker does it itself


def _main() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    limits = Limits(**json.loads(sys.argv[1]))
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    _limit(limits)
    Image.MAX_IMAGE_PIXELS = None  # the limit is labref's own
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        _send(answers, Answer.READY, b"")
        os.dup2(null, 2)  # what libraries say of damaged pictures is not for the agent's log
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123
            while _answer(questions, answers, limits, nowhere):
                pass
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone
    os._exit(0)


def _answer(questions: IO[bytes], answers: IO[bytes], limits: Limits, nowhere: IO[str]) -> bool:
    head = questions.read(HEADER.size)
    if len(head) < HEADER.size:
        return False
    name_length, size = HEADER.unpack(head)
    task = questions.read(name_length).decode()
    data = questions.read(size)
    if len(data) < size:
        return False
    # by the clock, in a thread of C: whatever the decoder holds on to
    faulthandler.dump_traceback_later(limits.seconds * WALL_FACTOR + _LATE_SECONDS, file=nowhere, exit=True)
    kind = Answer.DONE
    try:
        payload = pickle.dumps(TASKS[task](data, int(limits.megapixels * 1e6)), protocol=5)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except DecodingLimitError as error:
        kind, payload = Answer.LIMIT, str(error).encode("utf-8", "backslashreplace")
    except UnreadableImageError as error:
        kind, payload = Answer.UNREADABLE, str(error).encode("utf-8", "backslashreplace")
    except Exception as error:  # one odd picture; the message could hold anything
        kind = Answer.LIMIT
        payload = f"damaged image: cannot be used ({type(error).__name__} while it was prepared)".encode()
    finally:
        faulthandler.cancel_dump_traceback_later()
    _send(answers, kind, payload)
    return True


def _send(answers: IO[bytes], kind: int, payload: bytes) -> None:
    answers.write(HEADER.pack(kind, len(payload)))
    answers.write(payload)
    answers.flush()


def _limit(limits: Limits) -> None:
    """What the system itself can hold this process to; the parent watches the rest."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)  # a crash asks nobody to click
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the picture
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            now = int(file.read().split()[0]) * resource.getpagesize()
        with contextlib.suppress(ValueError, OSError):
            most = now + int(limits.memory_megabytes * 1e6)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    _main()
