"""Is a part the same in another process, on what might be another machine?

There `hash()` and the order of sets are others, the clock and the number of the process, and the order in which a
folder names its files. One such process is started, and forks for each question: to start takes seconds.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import torch
from torch import Tensor

from sslzoo.testing.report import Make, Skip, Violation, raised

Told = Mapping[str, Any]  # tensors, which may differ by rounding, and plain values, which may not
LATER = 100 * 86400.0 + 4321.0  # seconds
HEAVY = ("torchvision.transforms.v2",)  # what many parts import, and takes long: once, before it forks
_STARTED: list[subprocess.Popen[bytes]] = []  # one, if any


def same_elsewhere(make: Make, tell: Callable[[Make], Told]) -> None:
    """Whether `tell`, a function of a module, tells the same of the part in other processes.

    Raises:
        Violation: it does not.
        Skip: the part cannot be named there, such as a class inside a function.
    """
    here = tell(make)
    module = sys.modules[(make.func if isinstance(make, partial) else make).__module__]
    file = getattr(module, "__file__", None)
    try:
        request = pickle.dumps((sys.path, module.__name__, file, pickle.dumps((make, tell))))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise Skip(f"cannot be made in another process: {error}") from error
    if name := _other(here, _asked(request)):
        came = f"another {name}: does it follow from hash(), the order of a set or of a folder, the clock, the pid?"
        raise Violation("the same in every process", came, "made here and in another process")


def sums(state: Mapping[str, Tensor]) -> Told:
    """What stands for each tensor of a state, which may be large: its sum, and that of its squares."""
    return {name: torch.stack([x.double().sum(), x.double().square().sum()]).detach() for name, x in state.items()}


def _other(here: Told, there: Told) -> str:
    """The first name under which both differ; nothing, if there is none."""
    if here.keys() != there.keys():
        return sorted(here.keys() ^ there.keys())[0]
    return next((name for name, x in here.items() if not _alike(x, there[name])), "")


def _alike(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return one == other
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), 1e-4, 1e-5, equal_nan=True)


def _asked(request: bytes) -> Told:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        pickle.dump(([name for name in HEAVY if name in sys.modules], request), server.stdin)
        server.stdin.flush()
        answer = pickle.load(server.stdout)
    except BaseException:  # time is over, or it ended: its next answer would be that to another question
        server.kill()
        raise
    if isinstance(answer, Exception):
        raise answer
    return answer


def _server() -> subprocess.Popen[bytes]:
    """The process that runs, or a new one."""
    if not _STARTED or _STARTED[0].poll() is not None:
        start = f"import sys; sys.path[:] = {sys.path!r}; from sslzoo.testing.process import serve; serve()"
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        pipe, environment = subprocess.PIPE, os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", start]
        _STARTED[:] = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)]
        atexit.register(_STARTED[0].kill)
    return _STARTED[0]


def serve() -> None:
    """Answers questions from standard input, each in a process of its own, until it is closed."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints is no answer
    while True:
        try:
            heavy, request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        for name in heavy:
            import_module(name)
        read, write = os.pipe()
        if not (child := os.fork()):
            with os.fdopen(write, "wb") as file:
                file.write(_answer(request))
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as file:
            answer = file.read()
        os.waitpid(child, 0)
        answers.write(answer or pickle.dumps(Violation("no error in another process", "none: its process ended")))
        answers.flush()


def _answer(request: bytes) -> bytes:
    path, name, file, asked = pickle.loads(request)
    sys.path[:] = path
    _elsewhere()
    try:
        _import(name, file)
        make, tell = pickle.loads(asked)
    except Exception as error:
        return pickle.dumps(Skip(f"cannot be made in another process: {_brief(error)}"))
    try:
        return pickle.dumps(dict(tell(make)))
    except Exception as error:
        came = raised(error, make)
        return pickle.dumps(Violation("no error in another process", came) if came else RuntimeError(_brief(error)))


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _import(name: str, file: str | None) -> None:
    """The part's module, by name; or by its file: a plugin file, or a module that a test found."""
    try:
        import_module(name)
    except ImportError:
        spec = spec_from_file_location(name, file) if file else None
        if spec is None or spec.loader is None:
            raise
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


def _elsewhere() -> None:
    """Changes what differs on another machine, before the part's module is imported."""
    now, now_ns, names, entries = time.time, time.time_ns, os.listdir, os.scandir

    class Turned:
        """`os.scandir` in another order."""

        def __init__(self, path: Any = ".") -> None:
            with entries(path) as found:
                self.found = iter(sorted(found, key=lambda entry: entry.name, reverse=True))

        def __enter__(self) -> Turned:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def __iter__(self) -> Turned:
            return self

        def __next__(self) -> os.DirEntry[Any]:
            return next(self.found)

        def close(self) -> None:
            """Nothing is open."""

    time.time = lambda: now() + LATER
    time.time_ns = lambda: now_ns() + int(LATER * 1e9)
    os.listdir = lambda path=".": sorted(names(path), reverse=True)
    os.scandir = Turned  # type: ignore[assignment, misc]
