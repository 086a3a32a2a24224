"""Numbers as text."""

from collections.abc import Mapping

from lib.intervals import with_error


def number_text(value: object) -> str:
    """Return a short text for a number, a named set of numbers, or None."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {number_text(item)}" for name, item in value.items())
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def measured_text(row: Mapping) -> str:
    """Return `measured ± error (n)` of a row."""
    if row["measured"] is None:
        return "-"
    found = number_text(row["measured"])
    if row["error"]:
        found = with_error(row["measured"], row["error"])
    return found + (f" ({row['n']})" if row["n"] else "")
