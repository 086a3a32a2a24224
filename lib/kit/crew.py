"""Notebooks side by side, each run by a process of its own, which ends when this one does."""

import graphlib
import os
import signal
import subprocess
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from lib.kit import stamps
from lib.kit.claims import SECOND

KERNEL = 2_000_000_000  # bytes that one may take
MEMBER = "KIT_CREW"  # tells a process that it may run as long as its standard input is open


def room(names: list[str]) -> int:
    """How many of these notebooks fit side by side: one for a single number, and on a GPU."""
    numbers = len(set(map(stamps.lesson_of, names)))
    if numbers < 2:
        return 1
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own = memory // KERNEL - 1  # a share is left to all that is no kernel
    return 1 if torch.cuda.is_available() else max(1, min(numbers, _cores(), own))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(names: list[str], command: list[str], width: int) -> dict[str, int]:
    """Run `command name` for each notebook, `width` at a time; return {name: exit status}.

    A lesson comes before its evidence, with which it shares what is cached, and a second family
    last: it reads the rows of all others. An exception in here, also an interrupt, interrupts what
    runs, which then has nothing more to say, and waits until it has ended.
    """
    order = graphlib.TopologicalSorter({name: _before(name, names) for name in names})
    order.prepare()
    lifeline, held = os.pipe()  # `held` is closed by us, or with us when we are killed
    at_work, ended, silent = {}, {}, threading.Event()
    pool = ThreadPoolExecutor(width)
    try:
        while order.is_active():
            ready = order.get_ready()
            threads = max(1, _cores() // min(width, len(at_work) + len(ready)))
            for name in ready:
                job = pool.submit(_follow, [*command, name], threads, lifeline, silent)
                at_work[job] = name
            for job in wait(at_work, return_when=FIRST_COMPLETED).done:
                name = at_work.pop(job)
                ended[name] = job.result()
                order.done(name)
    finally:
        silent.set()
        os.close(held)
        pool.shutdown(cancel_futures=True)
        os.close(lifeline)
    return ended


def _before(name: str, names: list[str]) -> set[str]:
    first = {other for other in names if stamps.lesson_of(other) not in SECOND}
    return first - {name} & ({stamps.lesson_of(name)} if name in first else first)


def _follow(command: list[str], threads: int, lifeline: int, silent: threading.Event) -> int:
    """Run a command, print its lines as whole lines, return its exit status."""
    with subprocess.Popen(
        command,
        env={"OMP_NUM_THREADS": str(threads), **os.environ, MEMBER: "1"},
        stdin=lifeline,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C is for us alone
    ) as process:
        for line in process.stdout:
            if not silent.is_set():
                print(line, end="", flush=True)
    return process.returncode


def join() -> None:
    """In a process of a crew: from now on, be interrupted when the crew is."""
    if os.environ.pop(MEMBER, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & has it ignored
        threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    os.read(0, 1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
