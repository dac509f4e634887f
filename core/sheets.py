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
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n")
    writer.writerows([inert(value) for value in row] for row in rows)
    return out.getvalue()


def of_frame(frame: pd.DataFrame) -> str:
    """A table with its header, numbers unrounded; nothing where a value is missing."""
    safe = frame.rename(columns=inert)
    for name in safe.columns[[not _is_numeric(kind) for kind in safe.dtypes]]:
        safe[name] = safe[name].map(inert, na_action="ignore")
    return safe.to_csv(index=False, lineterminator="\n")


def _is_number(value: str) -> bool:
    try:
        float(value)
        return "_" not in value and not value.startswith(("\t", "\r", "\n"))
    except ValueError:
        return False


def _is_numeric(kind: Any) -> bool:
    return getattr(kind, "kind", "O") in "biufc"
