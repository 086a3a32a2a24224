"""Compute items ahead of their reader, into the cache: on this machine's cores, or on a cluster.

Whoever wants the results then takes them from the cache, so what a process leaves undone is done,
and what fails in one fails again, where it can be read.
"""

import contextlib
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator

import torch

from lib.kit import cache, session

_one_at_a_time = threading.Lock()  # a session, and torch's settings, belong to a whole process


def on_processes(items: list, fn: Callable) -> Iterator[None]:
    """Yield once for each item that forked processes of one thread have put into the cache.

    As many processes as torch has threads, dealt out in turn; none at all for less than two, on a
    GPU, and elsewhere than on Linux. They are forked and not a pool of fresh interpreters (joblib's
    loky), which would have to import torch and be sent the network: for two processes drawing from
    the 32-px model on two busy cores the first item came after 0.8 s against 23 s, all processes
    together took 0.44 GB against 1.1 GB, and 48 images came at 2.1 to 2.7 against 0.6 per second.
    """
    workers = min(torch.get_num_threads(), len(items))
    if workers < 2 or sys.platform != "linux" or torch.cuda.is_available():
        return
    context = multiprocessing.get_context("fork")
    done = context.RawArray("i", workers)  # no lock: a process may be killed while it holds one
    crew = [
        context.Process(target=_compute, args=(items, fn, done, k, os.getpid()), daemon=True)
        for k in range(workers)
    ]
    try:
        for process in crew:
            process.start()
        yield from _arrivals(crew, done)
    finally:
        for process in crew:
            process.terminate()


def _compute(items: list, fn: Callable, done: object, k: int, parent: int) -> None:
    """The k-th share of the items, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal or a kernel: the parent ends us
    torch.set_num_threads(1)  # nested tiles then run one after the other
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        for item in items[k :: len(done)]:
            if os.getppid() != parent:  # it was killed: nobody waits for the rest
                return
            cache.cached(fn, item)
            done[k] += 1


def _arrivals(crew: list, done: object) -> Iterator[None]:
    """Yield for each item as it is finished, until all processes have ended."""
    seen, alive = 0, True
    while alive:
        alive = any(process.is_alive() for process in crew)
        for _ in range(seen, seen := sum(done)):
            yield
        time.sleep(0.1 * alive)


def on_cluster(address: str, items: list, fn: Callable, prepare: Callable) -> Iterator[None]:
    """Yield once for each item that the Dask workers of the scheduler at `address` have computed.

    fn travels once, by value where a notebook defines it; a worker calls `prepare()` before each
    item, so that seeds and keys are those of a run here. A worker that looks into the same cache
    folder leaves its result there, another sends the entry, which is stored here. What a lost
    worker held is computed by another; an item that fails does not stop the others. Raises
    ValueError without the extra `cluster`, where no scheduler answers, or where a worker has other
    code, weights, versions or another kind of device, and with them another key; what fn
    itself raised on a worker comes after all the others have finished.
    """
    with _client(address) as client, _token() as token:  # to close the client cancels what waits
        import cloudpickle

        names = [str(cache.path(fn, item).relative_to(session.cache_folder())) for item in items]
        with warnings.catch_warnings():  # of the size of a network, which has to travel
            warnings.filterwarnings("ignore", "Sending large graph")
            job = client.submit(_unpacked, cloudpickle.dumps((fn, prepare, token)), pure=False)
            futures = client.map(_remember, items, names, job=job, pure=False)
        yield from _collected(dict(zip(futures, names, strict=True)), client.loop)


def _client(address: str) -> object:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            f"KIT_DASK is {address!r}, and distributed is not installed: "
            "pip install -e '.[cluster]', or unset KIT_DASK"
        ) from None
    try:
        return Client(address, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no Dask scheduler answers at KIT_DASK={address!r} ({error}): start one, "
            "or unset KIT_DASK to compute on this machine"
        ) from None


@contextlib.contextmanager
def _token() -> Iterator[str]:
    """Name of a file in the cache folder: a worker that sees it shares the folder."""
    path = session.cache_folder() / f".shared-{uuid.uuid4().hex}"
    session.write_atomically(path, "")
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)


def _unpacked(parts: bytes) -> tuple:
    """A task of its own: its result is made anew on any worker that needs it."""
    import cloudpickle

    return cloudpickle.loads(parts)


def _remember(item: object, name: str, job: tuple) -> bytes | None:
    """On a worker: compute an item into its cache; return the entry unless the folder is shared."""
    fn, prepare, token = job
    with _one_at_a_time, contextlib.redirect_stdout(io.StringIO()):
        os.environ.pop("KIT_DASK", None)  # nested tiles run here, one after the other
        torch.set_num_threads(1)
        prepare()
        path = cache.path(fn, item)
        if path != session.cache_folder() / name:
            raise ValueError(
                "a worker of the cluster would keep this item under another key: give it the same "
                "checkout, models, package versions and kind of device (CPU or GPU) as the notebook"
            )
        cache.cached(fn, item)
        return None if (session.cache_folder() / token).is_file() else path.read_bytes()


def _collected(futures: dict, loop: object) -> Iterator[None]:
    """Store what comes back, one after the other; then raise the first error that was met."""
    from distributed import as_completed

    errors = []
    for future in as_completed(futures, loop=loop):
        if future.status != "finished":
            errors.append(future.exception())
        elif (entry := future.result()) is not None:
            session.write_atomically(session.cache_folder() / futures[future], entry)
        yield
    if errors:
        raise errors[0]
