import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.training.cards import write_card
from lib.training.task import Task
from lib.training.train import _Share, main, rate_factor, train

COUNT, BATCH = 40, 8


def line(**changes):
    """Fit y = 3 x − 1 with batch statistics, noise and dropout: every kind of state matters."""
    inputs = torch.linspace(-1, 1, COUNT)[:, None]

    def loss(network, batch, rng):
        x, y = batch
        return (network(x + 0.01 * torch.randn(x.shape, generator=rng)) - y).square().mean()

    def save(network, folder, metrics):
        torch.save(network.state_dict(), folder / "weights.pt")

    def load(folder):
        network = build()
        network.load_state_dict(torch.load(folder / "weights.pt"))
        return network

    def build():
        return nn.Sequential(
            nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1)
        )

    task = Task(
        name="line",
        build=build,
        load=load,
        data=lambda: (COUNT, lambda i, rng: (inputs[i], 3 * inputs[i] - 1)),
        loss=loss,
        save=save,
        evaluate=lambda network: {"weight": network[0].weight.flatten().tolist()},
        samples=lambda network: torch.zeros(5, 3, 8, 8),
        steps=23,
        batch=BATCH,
        rate=1e-2,
        average=0.9,
    )
    return dataclasses.replace(task, **changes)


def run(folder, task=None, **options):
    metrics = train(
        task or line(), build=folder / "build", models=folder / "models",
        checkpoint_every=1e9, **options,
    )  # fmt: skip
    cost = metrics.pop("cost", None)
    assert cost is None or (cost["minutes"] >= 0 and "thread" in cost["hardware"])
    return metrics


def state(folder, kind="checkpoint.pt"):
    """A saved state, without the time it took."""
    path = folder / "build" / "line" / kind
    saved = torch.load(path, weights_only=True)
    saved.pop("seconds", None)
    return saved


def flat(state):
    """All tensors and numbers of a nested state, in order."""
    if isinstance(state, dict):
        return [x for key in sorted(state, key=str) for x in flat(state[key])]
    if isinstance(state, list):
        return [x for item in state for x in flat(item)]
    return [state]


def assert_equal(a, b):
    for x, y in zip(flat(a), flat(b), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("limits", [(7, None), (1, 4, 5, None)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, limits):
    whole = run(tmp_path / "whole")
    torch.rand(3)  # a global draw in between must not matter
    for limit in limits:
        parts = run(tmp_path / "parts", limit=limit)
    assert parts == whole and len(state(tmp_path / "parts")["losses"]) == 23
    assert_equal(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_a_run_stopped_by_hand_continues_where_it_stopped(tmp_path):
    task, calls = line(), []

    def interrupted():
        count, fetch = task.data()

        def once(indices, rng):
            calls.append(0)
            if len(calls) == 10:
                raise KeyboardInterrupt
            return fetch(indices, rng)

        return count, once

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", dataclasses.replace(task, data=interrupted))
    assert state(tmp_path / "parts")["step"] == 9
    assert run(tmp_path / "parts") == run(tmp_path / "whole")


def test_a_step_cut_in_two_is_not_saved(tmp_path, monkeypatch):
    from lib.training import train as module

    run(tmp_path / "parts", limit=4)
    average, calls = module._average, []

    def interrupted(*arguments):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt  # the network is a step ahead of its average
        average(*arguments)

    monkeypatch.setattr(module, "_average", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    monkeypatch.undo()
    assert state(tmp_path / "parts")["step"] == 4
    assert run(tmp_path / "parts") == run(tmp_path / "whole")


def test_a_real_network_resumes_bit_for_bit(tmp_path, monkeypatch):
    from lib.faces import avatars
    from lib.training import scorers

    monkeypatch.setitem(scorers.JUDGE_FACES, "a", 16)
    monkeypatch.setattr(avatars, "CACHE", tmp_path)
    load = avatars.load
    monkeypatch.setattr(avatars, "load", lambda *a, **k: load(*a, **k, cache=tmp_path))
    task = dataclasses.replace(
        scorers.judge_task("a"), name="line", batch=8, evaluate=lambda n: {"dropped": []}
    )
    for folder, limits in (("whole", (None,)), ("parts", (2, None))):
        for limit in limits:
            run(tmp_path / folder, task, steps=4, limit=limit)
    assert_equal(state(tmp_path / "parts"), state(tmp_path / "whole"))


def test_training_learns_the_line(tmp_path):
    run(tmp_path, line(steps=300))
    losses = state(tmp_path)["losses"]
    assert sum(losses[-20:]) < 0.2 * sum(losses[:20])


def test_the_saved_weights_are_the_moving_average(tmp_path):
    """Recomputed from checkpoints after every step, with the decay min(0.9, (1 + s) / (10 + s))."""
    torch.manual_seed(0)
    expected = line().build()[4].bias.detach()
    for step in range(6):
        run(tmp_path, limit=1)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * state(tmp_path)["network"]["4.bias"]
    assert torch.allclose(state(tmp_path)["average"]["4.bias"], expected, atol=1e-6)


def test_an_epoch_reads_every_sample_once_and_processes_share_it():
    class Rank:
        num_processes = 2

        def __init__(self, index):
            self.process_index = index

    shares = [_Share(COUNT, BATCH, 5, Rank(index)) for index in (0, 1)]
    epochs = [
        torch.cat([share(step)[0] for step in range(e * 5, e * 5 + 5) for share in shares])
        for e in (0, 1)
    ]
    assert all(sorted(epoch.tolist()) == list(range(COUNT)) for epoch in epochs)
    assert not torch.equal(*epochs)
    noise = [torch.rand(4, generator=share(step)[1]) for share in shares for step in (0, 1)]
    assert len({tuple(draw.tolist()) for draw in noise}) == 4


def plain():
    """Without batch statistics and noise a step is the mean gradient of its batch."""
    return line(
        build=lambda: nn.Linear(1, 1),
        loss=lambda network, batch, rng: (network(batch[0]) - batch[1]).square().mean(),
        evaluate=lambda network: {"weight": network.weight.item()},
    )


def test_two_processes_train_as_one(tmp_path):
    here, script = Path(__file__).parent, tmp_path / "plain.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parents[1])!r}]\n"
        f"from pathlib import Path; from test_train import plain, run\n"
        f"run(Path({str(tmp_path / 'two')!r}), plain())\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(script)], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    two = json.loads((tmp_path / "two" / "models" / "line" / "metrics.json").read_text())
    assert two["training"]["processes"] == 2
    assert two["weight"] == pytest.approx(run(tmp_path / "one", plain())["weight"], rel=1e-4)


def test_warm_start_begins_at_the_shipped_weights_with_a_shorter_warm_up(tmp_path):
    run(tmp_path)
    shipped = line().load(tmp_path / "models" / "line")
    run(tmp_path / "again", line(rate=0.0), start=tmp_path / "models", limit=1)
    assert torch.equal(state(tmp_path / "again")["network"]["0.weight"], shipped[0].weight)
    cold, warm = ({"steps": 10_000, "warm_start": flag} for flag in (False, True))
    assert rate_factor(99, warm) == 0.4 and rate_factor(99, cold) == pytest.approx(0.2)


def test_a_warm_start_reads_on_where_the_first_run_stopped(tmp_path):
    seen = []

    def watched():
        count, fetch = line().data()
        return line(data=lambda: (count, lambda i, rng: seen.append(i.tolist()) or fetch(i, rng)))

    run(tmp_path, watched(), steps=28)
    whole, seen[:] = list(seen), []
    run(tmp_path / "part", line())
    run(tmp_path / "more", watched(), start=tmp_path / "part" / "models", steps=5)
    assert seen == whole[23:]


def test_a_warm_start_counts_what_lies_behind_it_and_keeps_the_early_snapshots(tmp_path):
    saved = lambda network, folder: (  # noqa: E731
        folder.mkdir(),
        torch.save(network.state_dict(), folder / "weights.pt"),
    )
    task = line(snapshots={"early": 0.25}, save_snapshot=saved)
    run(tmp_path, task)
    early = (tmp_path / "models" / "line" / "early" / "weights.pt").read_bytes()
    for again, behind in (("second", 23), ("third", 28)):
        build, models = tmp_path / again, tmp_path / "models"
        metrics = train(task, build=build, models=models, steps=5, start=models)
        assert metrics["training"]["steps"] == 5
        assert metrics["training"]["earlier_steps"] == behind
    assert (tmp_path / "models" / "line" / "early" / "weights.pt").read_bytes() == early


def test_a_warm_start_without_its_snapshots_is_refused_before_it_trains(tmp_path):
    run(tmp_path)
    task = line(snapshots={"early": 0.25})
    with pytest.raises(ValueError, match="has no early"):
        run(tmp_path / "again", task, start=tmp_path / "models")
    assert not (tmp_path / "again").exists()


def test_the_card_tells_steps_of_a_warm_start_apart(tmp_path):
    training = {"steps": 5, "batch": 8, "earlier_steps": 23}
    write_card(tmp_path, "line", "A line.", "no more.", {"training": training})
    assert "23 steps and, with `--from models`, 5 more of 8" in (tmp_path / "README.md").read_text()


def test_the_rate_rises_to_its_peak_and_falls_to_a_hundredth():
    settings = {"steps": 1000, "warm_start": False}
    factors = [rate_factor(step, settings) for step in range(1000)]
    peak = factors.index(max(factors))
    assert max(factors) == 1.0 and factors[-1] == pytest.approx(0.01, abs=1e-4)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak + 1 :] == sorted(factors[peak + 1 :], reverse=True)


def test_losses_samples_and_metrics_are_left_and_nothing_half_written(tmp_path):
    metrics = run(tmp_path)
    build, models = tmp_path / "build" / "line", tmp_path / "models"
    assert {p.name for p in build.iterdir()} == {
        "checkpoint.pt", "loss.json", "loss.png", "samples.png",
    }  # fmt: skip
    assert [p.name for p in models.iterdir()] == ["line"]
    written = json.loads((models / "line" / "metrics.json").read_text())
    assert written.pop("cost") and written == metrics
    assert json.loads((build / "loss.json").read_text()) == pytest.approx(
        state(tmp_path)["losses"], abs=1e-6
    )


def test_a_failed_save_leaves_the_shipped_model(tmp_path):
    run(tmp_path)
    before = (tmp_path / "models" / "line" / "weights.pt").read_bytes()

    def fail(network, folder, metrics):
        (folder / "weights.pt").write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, line(save=fail))
    assert (tmp_path / "models" / "line" / "weights.pt").read_bytes() == before


def test_a_diverged_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    run(tmp_path, limit=3)

    def diverge(network, batch, rng):
        return line().loss(network, batch, rng) * float("nan")

    with pytest.raises(FloatingPointError, match="not finite"):
        run(tmp_path, line(loss=diverge), limit=2)
    assert state(tmp_path)["step"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"limit": 0}, "limit = 0"),
        ({"steps": 24}, "delete the folder"),
    ],
)
def test_bad_input_is_named(tmp_path, options, message):
    run(tmp_path, limit=1)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **options)


def test_too_little_data_is_named(tmp_path):
    with pytest.raises(ValueError, match="40 samples, expected a batch of 64"):
        run(tmp_path, line(batch=64))


def test_an_unknown_task_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["judge-z"])
    assert "unknown task 'judge-z', expected one of judge-a" in capsys.readouterr().err


def test_an_interrupt_of_the_command_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[train.__module__], "train", interrupted)
    assert main(["judge-a"]) == 130
    said = "interrupted, judge-a is kept to its last whole step, run again\n"
    assert capsys.readouterr().err == said


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path, limit=3)
    checkpoint = tmp_path / "build" / "line" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(ValueError, match="checkpoint.pt of line is damaged.*delete"):
        run(tmp_path)


def test_snapshots_hold_the_average_of_their_moment(tmp_path):
    saved = lambda network, folder: (  # noqa: E731
        folder.mkdir(),
        torch.save(network.state_dict(), folder / "weights.pt"),
    )
    task = line(snapshots={"early": 0.25, "last": 1.0}, save_snapshot=saved)
    for limit in (4, None):  # a snapshot lies on either side of an interruption
        run(tmp_path, task, limit=limit)
    read = lambda *parts: torch.load(  # noqa: E731
        (tmp_path / "models" / "line").joinpath(*parts, "weights.pt")
    )
    assert_equal(read("last"), read())
    run(tmp_path / "short", limit=round(0.25 * 23))
    assert_equal(read("early"), state(tmp_path / "short")["average"])


def test_a_part_of_a_later_task_is_not_shipped(tmp_path):
    run(tmp_path, line(shipped=False))
    assert (tmp_path / "build" / "parts" / "line" / "weights.pt").exists()
    assert not (tmp_path / "models").exists()
