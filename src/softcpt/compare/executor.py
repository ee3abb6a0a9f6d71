"""Runs jobs: in this process, or in several of this machine. Ray has a file of its own.

An executor hands results out as they come, in any order. A job whose process dies is begun again by
another one; a job that fails by itself is handed out with its reason.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, current_process, get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any, Protocol

from softcpt.compare.work import Job, do
from softcpt.core.errors import ConfigError, Fault, SoftCPTError

ATTEMPTS = 3
"""Processes that may die over one job before it is given up."""

ENDING_S = 10.0
"""Seconds that a process which closed its pipe has to end."""

UNGUARDED = 78
"""Exit status of a process that was to begin a comparison while it was made to run one's cells."""


def leave_if_imported() -> None:
    """End a process that imports the script which started it, and which would compare once more.

    Raises:
        SystemExit: the process that started it says what is wrong.
    """
    if getattr(current_process(), "_inheriting", False):  # what multiprocessing itself asks
        raise SystemExit(UNGUARDED)


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
        faults: what a user can mend, or one that says what happened.
        exit_code: of the error.
        details: a traceback where it is not the user's fault.
    """

    faults: tuple[Fault, ...]
    exit_code: int = 1
    details: str = ""


Outcome = dict[str, Any] | Failure


class Executor(Protocol):
    """Runs jobs until it is closed."""

    def each(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Every job once, with its result or why there is none, as they come."""

    def close(self) -> None:
        """Stop everything that still runs."""


def attempt(job: Job) -> Outcome:
    """The result of a job, or why there is none."""
    try:
        return do(job)
    except SoftCPTError as error:
        return Failure(error.faults, error.exit_code)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        return Failure((Fault(job.label, what),), details=traceback.format_exc())


class InProcess:
    """One job after the other, here."""

    def each(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """In the order given."""
        for job in jobs:
            yield job, attempt(job)

    def close(self) -> None:
        """Nothing runs on."""


class Processes:
    """Several jobs at a time, each process with as many threads as a cell has.

    Args:
        n: processes.
        threads: of each.
    """

    def __init__(self, n: int, threads: int) -> None:
        self._n, self._threads = n, threads
        self._workers: list[_Worker] = []

    def each(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """As they come; a job whose process died is begun again, at most :data:`ATTEMPTS` times in all."""
        waiting = deque(jobs)
        deaths: Counter[str] = Counter()
        while waiting or any(worker.job for worker in self._workers):
            self._hand_out(waiting)
            busy = {worker.pipe: worker for worker in self._workers if worker.job}
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                job = worker.job
                assert job is not None  # it was busy
                try:
                    outcome: Outcome = worker.pipe.recv()
                except (EOFError, OSError):
                    self._bury(worker)
                    deaths[job.key] += 1
                    if deaths[job.key] < ATTEMPTS:
                        waiting.append(job)
                        continue
                    what = f"its process died {ATTEMPTS} times"
                    outcome = Failure((Fault(job.label, what, "look for missing memory; lower --jobs"),))
                worker.job = None
                yield job, outcome

    def close(self) -> None:
        """Kill the processes; they hold nothing that is not written yet but their present job."""
        for worker in list(self._workers):
            self._drop(worker)

    def _hand_out(self, waiting: deque[Job]) -> None:
        while waiting:
            idle = next((worker for worker in self._workers if worker.job is None), None)
            if idle is None:
                if len(self._workers) >= self._n:
                    return
                idle = _Worker(self._threads)
                self._workers.append(idle)
            job = waiting.popleft()
            try:
                idle.pipe.send(job)
            except OSError:  # it died while it was idle
                waiting.appendleft(job)
                self._bury(idle)
                continue
            idle.job = job

    def _bury(self, worker: _Worker) -> None:
        """Drop a process that ended by itself.

        Raises:
            ConfigError: the script that started this comparison has no guard.
        """
        worker.process.join(ENDING_S)
        self._drop(worker)
        if worker.process.exitcode == UNGUARDED:
            what = "it compares as soon as it is imported, and the processes that run cells import it"
            fault = Fault("the script", what, 'put the call under `if __name__ == "__main__":`')
            raise ConfigError(fault, about="the comparison") from None

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


class _Worker:
    """A process and our end of its pipe."""

    def __init__(self, threads: int) -> None:
        context = get_context("spawn")  # torch does not survive a fork
        self.job: Job | None = None
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when the process imports torch
        try:
            self.process.start()
        finally:
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()


def _serve(pipe: Connection) -> None:
    """What a process does: jobs in, results out, until there is nobody left to hand them to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(attempt(job))


def _die_with_parent() -> None:
    """A killed comparison leaves no process that computes for nobody."""
    parent = parent_process()
    if parent is not None:
        parent.join()
    sys.stderr.flush()
    os._exit(1)
