"""Tables as files for spreadsheets: texts that a spreadsheet would compute are made plain, numbers stay numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # the wide ones count in East Asian editions


def inert(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula, with an apostrophe before it; anything else as it is.

    Signed numbers stay. A text that begins with an apostrophe itself gets one more, so that ``plain`` takes back
    exactly what was added.
    """
    if not isinstance(value, str) or not value.lstrip(" ").startswith(("'", *FORMULAS)):
        return value
    return value if _is_number(value) else f"'{value}"


def plain(text: str) -> str:
    """What ``inert`` was given: a file of the studio's read again."""
    return text[1:] if text.startswith("'") and inert(text[1:]) == text else text


def text(rows: Iterable[Iterable[Any]], separator: str = ",") -> str:
    """Rows as CSV (``separator`` a tab: TSV), with lines that end in a line feed."""
    return "".join(_line([inert(value) for value in row], separator) for row in rows)


def of_frame(frame: pd.DataFrame) -> str:
    """A table with its header, numbers unrounded; nothing where a value is missing."""
    safe = frame.rename(columns=inert)
    for name in safe.columns[[not _is_numeric(kind) for kind in safe.dtypes]]:
        safe[name] = safe[name].map(_one_line, na_action="ignore")
    return safe.to_csv(index=False, lineterminator="\n")


def _one_line(value: Any) -> Any:
    """As ``inert``; pandas would not quote a bare carriage return, and readers take it for the end of a line."""
    value = inert(value)
    return value.replace("\r\n", "\n").replace("\r", "\n") if isinstance(value, str) else value


def _line(values: list[Any], separator: str) -> str:
    """Python quotes only the line ends that it writes itself, and readers stop at others too: so it writes both."""
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\r\n").writerow(values)
    return out.getvalue().removesuffix("\r\n") + "\n"


def _is_number(value: str) -> bool:
    try:
        float(value)
        return "_" not in value and not value.startswith(("\t", "\r", "\n"))
    except ValueError:
        return False


def _is_numeric(kind: Any) -> bool:
    return getattr(kind, "kind", "O") in "biufc"
