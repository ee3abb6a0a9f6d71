"""Runs jobs on a Ray cluster, each as a remote task; a lost worker's or node's jobs run again.

Suites, backbone and the cache of features have to be found under the same paths on every node (a shared
folder), or the node refuses the job: what it finds is compared by digest. Results come back to this
process, which alone writes them.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from softcpt.compare.executor import ATTEMPTS, Failure, Outcome, attempt
from softcpt.compare.work import Job
from softcpt.core.errors import ConfigError, Fault

LOCAL = "local"

logger = logging.getLogger("softcpt")

_WAIT_S = 10.0


class OnRay:
    """Remote tasks, as many at a time as the cluster has room for.

    Args:
        address: of the cluster; ``auto`` for the one this machine belongs to, ``local`` for a new one here.
        threads: cores that a job takes.
        gpus: share of a GPU that a job takes.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, *, threads: int, gpus: float) -> None:
        try:
            import ray
        except ImportError as error:
            fault = Fault("--ray", "Ray is not installed", 'install it: pip install "softcpt[ray]"')
            raise ConfigError(fault, about="the options") from error
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _check_reachable(address)
            try:
                ray.init(
                    address=None if address == LOCAL else address,
                    logging_level=logging.WARNING,
                    log_to_driver=False,
                    # Set before a worker imports torch.
                    runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads), **_python_path()}},
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                fault = Fault(
                    "--ray", f"{address}: {str(error).splitlines()[0]}", "start a cluster: ray start --head"
                )
                raise ConfigError(fault, about="the options") from error
        if gpus and not ray.cluster_resources().get("GPU"):
            logger.warning("no node of the cluster has a GPU now; cells wait for one (or give --device cpu)")
        # Retries are Ray's own, after a worker or a node is lost; what a job raises comes back as a result.
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=ATTEMPTS - 1)(attempt)
        self._running: dict[Any, Job] = {}

    def each(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """As they come."""
        ray = self._ray
        self._running = {self._task.remote(job): job for job in jobs}
        while self._running:
            ready, _ = ray.wait(list(self._running), num_returns=1)
            for reference in ready:
                job = self._running.pop(reference)
                try:
                    outcome: Outcome = ray.get(reference)
                except ray.exceptions.RayError as error:
                    what = f"its worker was lost {ATTEMPTS} times: {type(error).__name__}"
                    outcome = Failure((Fault(job.label, what, "look for missing memory"),))
                yield job, outcome

    def close(self) -> None:
        """Cancel what still runs; a cluster that was started here ends."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        if self._ours:
            self._ray.shutdown()


def _python_path() -> dict[str, str]:
    """A package that is used from its source tree is found by the workers too."""
    path = os.environ.get("PYTHONPATH")
    return (
        {"PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in path.split(os.pathsep))}
        if path
        else {}
    )


def _check_reachable(address: str) -> None:
    """Whether anything listens at HOST:PORT; Ray itself would try for minutes and say little.

    Raises:
        ConfigError: nothing does.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_WAIT_S).close()
    except (OSError, OverflowError) as error:
        fault = Fault("--ray", f"nothing answers at {address} ({error})", "start a cluster: ray start --head")
        raise ConfigError(fault, about="the options") from error
