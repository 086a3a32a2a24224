"""Fault drills: what a fault costs, and what the user reads. `make drills` writes docs/drills.md.

python tests/drills/drills.py [WORD ...]     only those whose fault has one of the words
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from drilling import (  # noqa: E402
    CHECKOUT,
    DRILLS,
    FIGURE,
    INTERRUPT,
    KILL,
    NAME,
    SLOW,
    Job,
    Outcome,
    Skipped,
    at_item_three,
    calls,
    drill,
    expect,
    is_gone,
    lost_after,
    new_root,
    obedient,
    pipeline,
    wait_until,
    waits_for_lock,
)

TRIES = int(os.environ.get("TRIES", 2))  # of each fault; make drills TRIES=5
PAGE = CHECKOUT / "docs" / "drills.md"


@drill("kill -9 of a run of the pipeline", short=True)
def killed_run(folder):
    job = at_item_three(new_root(folder, SLOW))
    kernel = dict(calls(folder))[3]
    job.process.kill()
    job.end()
    wait_until(lambda: is_gone(kernel))
    for name in ("figures", "build/stamps"):
        expect(not (folder / name).exists(), f"{name} of a run that was killed")
    return Outcome(lost_after(folder), "no line of ours; the next run goes on")


@drill("kill -9 of the kernel of a run")
def killed_kernel(folder):
    job = at_item_three(new_root(folder, SLOW))
    os.kill(dict(calls(folder))[3], KILL)
    status = job.end()
    expect(status == 1 and "Kernel died" in job.said(), job.said())
    return Outcome(lost_after(folder), job.said().splitlines()[-2])


@drill("Ctrl-C in a run of the pipeline", short=True)
def interrupted_run(folder):
    job = at_item_three(new_root(folder, SLOW))
    status = job.press(INTERRUPT)
    expect(status == 130 and "Traceback" not in job.said(), job.said())
    expect(job.last_line() == "interrupted, 3 items kept, run again", job.said())
    return Outcome(lost_after(folder), job.last_line())


def refreshed(folder, number):
    """Break off a refresh, then run it to the end: the notebook is whole before and after."""
    notebook = new_root(folder, SLOW) / "notebooks" / f"{NAME}.ipynb"
    before = notebook.read_bytes()
    job = at_item_three(folder, "refresh")
    job.press(number)
    wait_until(lambda: is_gone(dict(calls(folder))[3]))
    whole = notebook.read_bytes() == before
    lost = lost_after(folder, "refresh") + (not whole)
    written = json.loads(notebook.read_text(encoding="utf-8"))["cells"][-1]["outputs"]
    return Outcome(lost + (not written), job.last_line())


@drill("kill -9 of a refresh of the notebooks")
def killed_refresh(folder):
    return refreshed(folder, KILL)._replace(saw="no line of ours; the next refresh goes on")


@drill("Ctrl-C in a refresh of the notebooks")
def interrupted_refresh(folder):
    return refreshed(folder, INTERRUPT)


TILES = """
import os, sys, time, torch
from lib.kit import run
root = os.environ["KIT_ROOT"]

def slow(item):
    with open(f"{root}/calls", "a") as log:
        log.write(f"{item} {os.getpid()}\\n")
    while item in (2, 3) and not os.path.exists(f"{root}/go"):
        time.sleep(0.05)
    return float(item) ** 2

torch.set_num_threads(2)
print(sum(run.tiles(range(6), slow, parallel=True)))
"""


def tiles_until_both_wait(folder):
    """Two processes have kept items 0 and 1 and wait in 2 and 3."""
    script = folder / "tiles.py"
    script.write_text(TILES)
    job = Job(folder, str(script))
    wait_until(lambda: {2, 3} <= set(dict(calls(folder))), job)
    return job


def tiles_again(folder):
    """Items 0 and 1 that were computed anew, and a wrong sum."""
    (folder / "go").touch()
    job = Job(folder, str(folder / "tiles.py"))
    job.end()
    again = sum([item for item, _ in calls(folder)].count(k) > 1 for k in (0, 1))
    return again + (job.last_line() != "55.0")


@drill("kill -9 of parallel tiles")
def killed_tiles(folder):
    job = tiles_until_both_wait(folder)
    job.process.kill()
    job.end()
    (folder / "go").touch()
    for item in (2, 3):  # the orphans end by themselves, after the item at hand
        wait_until(lambda item=item: is_gone(dict(calls(folder))[item]))
    begun = set(dict(calls(folder)))
    expect(begun == {0, 1, 2, 3}, f"orphans went on to {begun}")
    return Outcome(tiles_again(folder), "no line of ours; the next run goes on")


@drill("kill -9 of one process of parallel tiles", short=True)
def killed_tile(folder):
    job = tiles_until_both_wait(folder)
    os.kill(dict(calls(folder))[3], KILL)
    (folder / "go").touch()
    job.end()
    again = sum([item for item, _ in calls(folder)].count(k) > 1 for k in (0, 1, 2, 4))
    return Outcome(again + (job.last_line() != "55.0"), "nothing: the caller computed its items")


@drill("Ctrl-C in parallel tiles")
def interrupted_tiles(folder):
    job = tiles_until_both_wait(folder)
    job.press(INTERRUPT)
    saw = job.last_line().removeprefix("KeyboardInterrupt: ")
    expect("2 of 6 items; these are kept, rerun to go on" in saw, job.said())
    return Outcome(tiles_again(folder), saw)


TRAIN = """
import functools, os, sys, time, torch
from pathlib import Path
from torch import nn
from lib.training import train
from lib.training.task import Task
root = Path(os.environ["KIT_ROOT"])
build = root / sys.argv[1]

def loss(network, batch, rng):
    with open(build / "steps", "a") as log:
        log.write("step\\n")
    while (build / "steps").read_text().count("step") == 6 and not (root / "go").exists():
        time.sleep(0.05)
    return ((network(batch[0]) - batch[0].sum(1, keepdim=True)) ** 2).mean()

def data():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return 64, lambda indices, rng: (x[indices] + 0.1 * torch.randn(8, 4, generator=rng),)

task = Task("tiny", lambda: nn.Linear(4, 1), None, data, loss, batch=8, steps=12,
    save=lambda n, folder, m: torch.save(n.state_dict(), folder / "w.pt"), evaluate=lambda n: {})
train.tasks = lambda: {"tiny": lambda: task}
build.mkdir(exist_ok=True)
here = {"build": build, "models": build / "models", "checkpoint_every": 0.0}
train.train = functools.partial(train.train, **here)
sys.exit(train.main(["tiny"]))
"""


def trained(folder, number):
    """Break training off in its sixth step, go on, and compare with the weights of a whole run."""
    import torch

    script = folder / "train.py"
    script.write_text(TRAIN)
    job = Job(folder, str(script), "parts")
    steps = folder / "parts" / "steps"
    wait_until(lambda: count(steps) == 6, job)
    job.press(number)
    (folder / "go").touch()
    for name in ("parts", "whole"):
        Job(folder, str(script), name).end()
    repeated = count(steps) - 12
    expect(repeated <= 1, f"{repeated} steps were taken twice")
    ends = [torch.load(folder / k / "models/tiny/w.pt") for k in ("parts", "whole")]
    same = all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    return Outcome(int(not same), job.last_line())


def count(steps):
    """Lines that the steps of training wrote."""
    return steps.read_text().count("step") if steps.is_file() else 0


@drill("kill -9 in a step of training")
def killed_training(folder):
    outcome = trained(folder, KILL)
    return outcome._replace(saw="no line of ours; the next run goes on at the checkpoint")


@drill("Ctrl-C in a step of training")
def interrupted_training(folder):
    outcome = trained(folder, INTERRUPT)
    expect(outcome.saw.startswith("interrupted"), outcome.saw)
    return outcome


@drill("two runs of one notebook at once", short=True)
def two_at_once(folder):
    first = at_item_three(new_root(folder, SLOW))
    second = pipeline(folder)
    wait_until(lambda: waits_for_lock(second), second)
    (folder / "go").touch()
    statuses = first.end(), second.end()
    expect(statuses == (0, 0) and "up to date" in second.said(), first.said() + second.said())
    twice = len(calls(folder)) - 6
    return Outcome(twice + ((folder / FIGURE).read_text() != "55.0"), second.last_line())


def finished_root(folder):
    """A root whose notebook has run."""
    root = new_root(folder, SLOW)
    (root / "go").touch()
    job = pipeline(root)
    expect(job.end() == 0, job.said())
    return root


def cut(path):
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@drill("a truncated entry of the cache", short=True)
def cut_cache(folder):
    cut(min((finished_root(folder) / "cache").rglob("*.npz")))
    job = pipeline(folder, "run", "--force")
    job.end()
    book = (folder / "build/run/quick" / f"{NAME}.ipynb").read_text(encoding="utf-8")
    expect("is corrupt: deleted, computed anew" in book, job.said())
    lost = len(calls(folder)) - 7 + ((folder / FIGURE).read_text() != "55.0")
    return Outcome(lost, "cache entry ... is corrupt: deleted, computed anew (in the notebook)")


@drill("a truncated stamp of a run")
def cut_stamp(folder):
    cut(finished_root(folder) / "build/stamps" / f"{NAME}.quick.json")
    job = pipeline(folder)
    expect(job.end() == 0 and "unreadable" in job.said(), job.said())
    return Outcome(len(calls(folder)) - 6, job.said().splitlines()[0])


@drill("a truncated result in figures/", short=True)
def cut_result(folder):
    cut(finished_root(folder) / FIGURE)
    job = pipeline(folder)
    expect(job.end() == 0 and "edited: figures" in job.said(), job.said())
    lost = len(calls(folder)) - 6 + ((folder / FIGURE).read_text() != "55.0")
    return Outcome(lost, job.said().splitlines()[0])


@drill("a truncated notebook", short=True)
def cut_notebook(folder):
    notebook = finished_root(folder) / "notebooks" / f"{NAME}.ipynb"
    whole = notebook.read_bytes()
    cut(notebook)
    job = pipeline(folder)
    expect(job.end() == 2 and f"{NAME}.ipynb" in job.last_line(), job.said())
    notebook.write_bytes(whole)
    again = pipeline(folder)
    again.end()
    return Outcome(int("up to date" not in again.said()), job.last_line())


@drill("truncated weights")
def cut_weights(folder):
    shutil.copytree(CHECKOUT / "models" / "avatars-ddpm", folder / "weights")
    cut(max((folder / "weights").rglob("*.safetensors"), key=lambda path: path.stat().st_size))
    job = python(folder, f"models.load({str(folder / 'weights')!r})")
    expect(job.end() != 0 and "safetensors" in job.last_line(), job.said())
    return Outcome(0, job.last_line())


def python(folder, code, **environment):
    return Job(folder, "-c", f"from lib.diffusion import models; {code}", **environment)


@drill("a misspelt parameter, name or profile", short=True)
def misspelt(folder):
    new_root(folder, SLOW)
    jobs = [pipeline(folder, "run", "--set", "sed=1"), pipeline(folder, "run", "01_isin")]
    jobs.append(pipeline(folder, "run", "--profile", "quikc"))
    for job in jobs:
        expect(job.end() == 2 and "did you mean" in job.last_line(), job.said())
    return Outcome(len(calls(folder)), jobs[0].last_line())


@drill("no network")
def no_network(folder):
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    nowhere |= {"NO_PROXY": None, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": None}
    job = python(folder, "models.load('google/ddpm-celebahq-256')", **nowhere)
    expect(job.end() != 0 and "check network" in job.last_line(), job.said())
    lost = lost_after(new_root(folder, SLOW), finished=0, **nowhere)
    return Outcome(lost, job.last_line())


@drill("a path with spaces, umlauts and braces", short=True)
def odd_path(folder):
    root = new_root(folder / "ein Käfig für {profile} 100%", SLOW)
    return Outcome(lost_after(root) + lost_after(root, "refresh"), "nothing out of the ordinary")


@drill("a locale without umlauts")
def other_locale(folder):
    plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    root = new_root(folder, SLOW, "print('Größe: 3 · σ')")
    lost = lost_after(root, **plain) + lost_after(root, "refresh", **plain)
    full = ("run", "--profile", "full")
    job = pipeline(root, *full, **plain)
    expect(job.end() == 0, job.said())
    return Outcome(lost, "nothing out of the ordinary")


@drill("a foreign kernel named python3")
def foreign_kernel(folder):
    kernel = folder / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    wrong = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(wrong))
    own = {"JUPYTER_DATA_DIR": str(folder / "jupyter"), "JUPYTER_PATH": str(folder / "jupyter")}
    lost = lost_after(new_root(folder, SLOW), finished=0, **own)
    return Outcome(lost, "nothing: the kit's own kernel ran")


BIG = """
import numpy as np
big = run.tiles(range(4), lambda item: np.random.default_rng(item).random(200_000), label="big")
"""


@drill("a full disk")
def full_disk(folder):
    root = folder / "small"
    root.mkdir()
    mount(root, "-t", "tmpfs", "-o", "size=3m", "none")
    try:
        (new_root(root, SLOW, BIG) / "go").touch()
        job = pipeline(root)
        status = job.end()
        kept = sorted((root / "cache").rglob("*.npz"))
        partial = [path for path in root.rglob("*") if path.name.endswith(".tmp")]
        expect(status in (1, 2) and "No space left" in job.said() and not partial, job.said())
        mount(root, "-o", "remount,size=60m")
        lost = lost_after(root, finished=6)
        line = next(line for line in job.said().splitlines() if "No space left" in line)
        return Outcome(lost + sum(not path.is_file() for path in kept), line)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=False)


def mount(place, *options):
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"mounting is not allowed here: {done.stderr.strip()}")


def read_only(folder, name, finished):
    """Forbid to write into a folder of the root, then allow it."""
    place = new_root(folder / "root", SLOW) / name
    place.mkdir(exist_ok=True)
    (folder / "root" / "go").touch()
    place.chmod(0o555)
    job = pipeline(folder / "root", wrapper=obedient())
    status = job.end()
    place.chmod(0o755)
    expect(status == 2 and "Traceback" not in job.said(), job.said())
    return Outcome(lost_after(folder / "root", finished=finished), job.last_line())


@drill("a read-only folder of figures", short=True)
def read_only_figures(folder):
    return read_only(folder, "figures", 6)


@drill("a read-only checkout")
def read_only_root(folder):
    return read_only(folder, "", 0)


def tried(one, tries):
    """(lost, what the user saw) of some tries, each in a folder of its own."""
    outcomes = []
    for _ in range(tries):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            place = Path(folder).resolve() / "root"
            place.mkdir()
            outcomes.append(one.act(place))
    return sum(outcome.lost for outcome in outcomes), outcomes[-1].saw


def row(one):
    """Cells of the table: fault, tries, lost, what the user saw."""
    try:
        lost, saw = tried(one, TRIES)
        return [one.fault, str(TRIES), str(lost), saw.replace("|", "\\|")]
    except Skipped as reason:
        return [one.fault, "0", "-", f"not tried: {reason}"]
    except Exception as failure:  # one that fails must not cost the table of the others
        return [one.fault, str(TRIES), "?", f"FAILED: {type(failure).__name__}: {failure}"]


def main(words):
    """Run the drills, print the table and, when all of them ran, write the page."""
    chosen = [one for one in DRILLS if not words or any(word in one.fault for word in words)]
    rows = []
    for one in chosen:
        rows.append(row(one))
        print(" | ".join(rows[-1]), flush=True)
    bad = [cells for cells in rows if cells[2] not in ("0", "-")]
    tries, lost = (sum(int(c[k]) for c in rows if c[k].isdigit()) for k in (1, 2))
    total = f"{len(rows)} faults, {tries} tries, {lost} results lost"
    print(total)
    if not words and not bad:
        write(rows, total)
    return int(bool(bad))


def write(rows, total):
    """Put the table into docs/drills.md and its last line into README.md."""
    table = ["| fault | tries | lost | what the user saw |", "| --- | --- | --- | --- |"]
    table += [f"| {' | '.join(cells)} |" for cells in rows]
    texts = {PAGE: "\n".join([*table, "", f"{total}."]), CHECKOUT / "README.md": f"{total}."}
    for path, text in texts.items():
        begin, end = "<!-- drills -->", "<!-- /drills -->"
        head, _, rest = path.read_text(encoding="utf-8").partition(begin)
        path.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
