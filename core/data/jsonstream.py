"""JSON value by value: of a text of any length, only the value at hand is in memory.

The parser is that of the standard library, tried again with more text where the text at hand ends. A streaming parser
(YAJL by way of ijson) is twice as fast, which is little of an upload's time, but names no line, takes the second of two
equal keys, writes "?" for half a surrogate pair, refuses NaN, and needs memory that grows with the square of the depth.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from core.data.textfile import SourceFile
from core.errors import DataError

T = TypeVar("T")
WHOLE = 2**26  # characters of one value, and bytes of a file whose rows cannot be read one by one
CUT = 16  # characters before the end of the text where what looks wrong may only be cut, such as -Infinity or 1.5e300
_CHUNK = 2**20
_BLANKS = re.compile(r"[ \t\n\r]*").match
_KEY = "Expecting property name enclosed in double quotes"
_COMMA = "Remove the comma before the closing bracket."


class Reader:
    """Walks through one JSON text; every refusal names file, line and column."""

    def __init__(self, name: str, file: TextIO) -> None:
        self._name, self._file = name, file
        self._text, self._at = "", 0  # what is at hand, and where in it the next value is
        self._line, self._counted = 1, 0  # the line of that place in what is at hand
        self._before = 0  # characters of its line before what is at hand

    @property
    def line(self) -> int:
        """Where the next value begins, once ``peek`` has found it."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._at = _BLANKS(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def value(self) -> Any:
        """The next value, which ``peek`` found, whole."""
        where = f"{self._name}, line {self.line}"
        while True:
            try:
                value, end = parsed(where, DECODER.raw_decode, self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - CUT or error.msg.startswith("Unterminated")
                if cut and self._more(where):
                    continue
                raise self._refusal(error) from error
            if end > len(self._text) - CUT and isinstance(value, int | float) and self._more():
                continue  # a number may go on
            self._at = end
            return value

    def values(self) -> Iterator[tuple[int, Any]]:
        """(line where it begins, value) of each entry of the array that comes next; of anything else, itself."""
        if self.peek() != "[":
            yield self.line, self.value()
            return
        self._at += 1
        more = not self._closed("]")
        while more:
            yield self.line, self.value()
            more = self._another("]")

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; whoever iterates reads what stands behind each."""
        self.peek()
        self._at += 1
        more = not self._closed("}")
        while more:
            if self.peek() != '"':
                raise self._wrong(_KEY)
            key = self.value()
            if self.peek() != ":":
                raise self._wrong("Expecting ':' delimiter")
            self._at += 1
            yield key
            more = self._another("}")

    def end(self) -> None:
        """Refuse what comes behind the last value."""
        if self.peek():
            raise self._wrong("Extra data")

    def _closed(self, bracket: str) -> bool:
        closed = self.peek() == bracket
        self._at += closed
        return closed

    def _another(self, bracket: str) -> bool:
        """Past the comma behind a value, or past the bracket that closes what holds it."""
        if self._closed(bracket):
            return False
        if not self._closed(","):
            raise self._wrong("Expecting ',' delimiter")
        if self.peek() in ("]", "}"):
            raise self._wrong(_KEY if bracket == "}" else "Expecting value", _COMMA)
        return True

    def _more(self, where: str = "") -> bool:
        """Read on, and let go of what lies behind; False at the end of the file."""
        if len(self._text) - self._at >= WHOLE:
            raise too_long(where)
        found = self._file.read(max(_CHUNK, len(self._text) - self._at))
        if found:
            self._line, last = self.line, self._text.rfind("\n", 0, self._at)
            self._before = self._at - last - 1 if last >= 0 else self._before + self._at
            self._text, self._at, self._counted = self._text[self._at :] + found, 0, 0
        return bool(found)

    def _wrong(self, message: str, remedy: str = "") -> DataError:
        return self._refusal(json.JSONDecodeError(message, self._text, self._at), remedy)

    def _refusal(self, error: json.JSONDecodeError, remedy: str = "") -> DataError:
        line = self.line + self._text.count("\n", self._at, error.pos)
        last = self._text.rfind("\n", 0, error.pos)
        column = error.pos - last if last >= 0 else self._before + error.pos + 1
        return refusal(f"{self._name}, line {line}", column, error, remedy)


@contextmanager
def reading(source: SourceFile) -> Iterator[Reader]:
    with source.text() as file:
        yield Reader(source.name, file)


def lines(source: SourceFile) -> Iterator[tuple[int, Any]]:
    """(number, value) of each line that holds one."""
    with source.text() as file:
        for number, line in enumerate(iter(lambda: file.readline(WHOLE), ""), start=1):
            if not line.strip():
                continue
            where = f"{source.name}, line {number}"
            if len(line) == WHOLE:
                raise too_long(where)
            try:
                yield number, parsed(where, DECODER.decode, line)
            except json.JSONDecodeError as error:
                raise refusal(where, error.colno, error, one_line=True) from error


def parsed(where: str, decode: Callable[..., T], *text: Any) -> T:
    """``decode(*text)``; refuses what is JSON but no data, and leaves what is no JSON to the caller."""
    collecting = gc.isenabled()
    gc.disable()  # text nested without end meets the recursion limit: nothing else may be finalised down there
    try:
        return decode(*text)
    except json.JSONDecodeError:
        raise
    except _Twice as error:
        raise refused_twice(where, str(error)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {error}.", "Write plain objects with texts and numbers.") from error
    finally:
        if collecting:
            gc.enable()


class _Twice(Exception):
    """A key that an object has twice, of which one value would be lost."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def refused_twice(where: str, key: str) -> DataError:
    return DataError(f"{where}: the key {key[:60]!r} stands twice in one object.", "Keep one of the two.")


def too_long(where: str) -> DataError:
    return DataError(
        f"{where}: a value of more than {WHOLE // 2**20} million characters.",
        "Is a bracket or a quotation mark missing there? Write one object per row.",
    )


def refusal(
    where: str, column: int, error: json.JSONDecodeError, remedy: str = "", one_line: bool = False
) -> DataError:
    return DataError(f"{where}, column {column}: {error.msg}.", remedy or _remedy(error, one_line))


def _remedy(error: json.JSONDecodeError, one_line: bool) -> str:
    near = error.doc[max(0, error.pos - 1) : error.pos + 1]
    if "'" in near:
        return "JSON needs double quotation marks."
    if error.doc[error.pos : error.pos + 1] in ("#", "/"):
        return "JSON knows no comments: remove them."
    if "escape" in error.msg:
        return "Write every backslash inside a text twice."
    if "Invalid control character" in error.msg:
        return 'Write line breaks inside a text as "\\n".'
    if "Extra data" in error.msg:
        return "Write one object a line (.jsonl), or all objects in one array."
    if error.doc[: error.pos].rstrip()[-1:] == "," and error.doc[error.pos : error.pos + 1] in ("}", "]"):
        return _COMMA
    if error.pos >= len(error.doc.rstrip()) or "Unterminated" in error.msg:
        known = " Lines of a .jsonl file hold whole objects; name it .json if they go over several." if one_line else ""
        return f"The text ends too early: was the file cut off?{known}"
    return "Check commas, quotation marks and brackets there."
