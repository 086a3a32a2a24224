"""Print every speed claim as one table: `python -m benchmarks [NAME ...]`."""

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

HEAD = ("claim", "measured", "unit", "target", "holds")
WIDTHS = (72, 12, 22, 18, 5)


def modules(chosen: list[str]) -> Iterator[str]:
    """Yield the names of the benchmark modules, all if none is chosen."""
    known = {path.stem for path in Path(__file__).parent.glob("[a-z]*.py")}
    known = sorted(known - {"small"})  # networks to run, no benchmark
    for name in chosen:
        if name not in known:
            raise SystemExit(f"unknown benchmark {name!r}: expected some of {', '.join(known)}")
    yield from chosen or known


def line(cells: tuple[str, ...]) -> str:
    """Return one row of the table; a long claim goes on below it."""
    first, *more = textwrap.wrap(cells[0], WIDTHS[0], subsequent_indent="  ")
    padded = (cell.ljust(width) for cell, width in zip((first, *cells[1:]), WIDTHS, strict=True))
    return "\n".join(["  ".join(padded).rstrip(), *more])


def main(chosen: list[str]) -> int:
    """Print the table; return 1 when a claim does not hold."""
    print(line(HEAD), line(tuple("-" * width for width in WIDTHS)), sep="\n", flush=True)
    missed = 0
    for name in modules(chosen):
        for row in importlib.import_module(f"benchmarks.{name}").main():
            holds = "yes" if row["holds"] else "NO"
            missed += not row["holds"]
            cells = (row["claim"], f"{row['measured']:.4g}", row["unit"], row["target"], holds)
            print(line(cells), flush=True)
    print(f"{missed} claim(s) missed" if missed else "all claims hold")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
