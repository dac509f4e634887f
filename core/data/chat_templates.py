"""Chat templates of bases: Jinja from elsewhere, in a sandbox that counts what it does and looks at what it makes.

Jinja's own sandbox keeps a template from Python's insides, and nothing here gives it files, a network or a loader.
What is added: turns of loops, calls and filters are counted, and the sizes of what they take and give are bounded, so
that a template neither runs for ever nor fills the memory.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 100_000  # of one rendering; a conversation of a thousand turns takes some ten thousand
LETTERS = 4_000_000  # of a text, or of all texts and items that a call is given
GIVEN = ("range", "dict", "namespace", "cycler", "joiner")
FILTERS = frozenset({
    "abs", "attr", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum", "title",
    "tojson", "trim", "truncate", "unique", "upper",
})  # fmt: skip
GROWING = ("translate", "expandtabs")  # of texts: one letter becomes many
_left: ContextVar[list[int]] = ContextVar("the steps that are left")


class TooMuch(TemplateError):
    """A template that would run or grow without end."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Templates that see what they are given and nothing else, within bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=_looked_at
        )
        own = self.filters | {"tojson": _as_json}
        self.filters = {name: _bounded(name, one) for name, one in own.items() if name in FILTERS}
        self.filters |= {"_turns": _turns, "_joined": _bounded("_joined", _joined)}
        self.globals = {name: self.globals[name] for name in GIVEN}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Every loop counts its turns, and texts are joined by a filter, which is looked at like the others."""
        tree = super()._parse(source, name, filename)
        for node in [tree, *tree.find_all(nodes.Node)]:
            for field, value in node.iter_fields():
                if isinstance(value, list):
                    value[:] = map(_counted, value)
                elif isinstance(value, nodes.Concat):
                    setattr(node, field, _counted(value))
            if isinstance(node, nodes.For):
                node.iter = _filtered("_turns", node.iter)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in GROWING and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(called, LoopContext):  # a recursive loop goes one level down
            args = tuple(map(_turns, args))
        own = getattr(getattr(called, "__wrapped__", called), "__self__", None)  # Jinja wraps the format of texts
        _check(getattr(called, "__name__", ""), [own, *args] if isinstance(own, str) else args, kwargs)
        return _looked_at(super().call(context, called, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _check("format", (left, right), {})
        elif operator == "**" and not (_is_small(left) and _is_small(right)):
            raise TooMuch("it makes a number that is too large")
        elif operator == "*":
            _check("times", (left, right), {})
        else:
            _spend()
        return _looked_at(super().call_binop(context, operator, left, right))


def compiled(source: str) -> Template:
    """A template that ``render`` takes; TemplateError says why it is none."""
    try:
        return Sandbox().from_string(source)
    except RecursionError as error:
        raise TemplateError("it is nested too deeply") from error


def render(template: Template, messages: Sequence[Mapping[str, Any]], **names: Any) -> str:
    """The text of a conversation; TemplateError for whatever a template does wrong."""
    token = _left.set([STEPS])
    try:
        return _looked_at(template.render(messages=list(messages), **names))
    except TemplateError:
        raise
    except Exception as error:  # a template is a program: it divides by zero, asks for keys that are not there
        raise TemplateError(f"{type(error).__name__}: {error}") from error
    finally:
        _left.reset(token)


def _counted(node: Any) -> Any:
    if not isinstance(node, nodes.Concat):
        return node
    return _filtered("_joined", nodes.List(node.nodes, lineno=node.lineno, environment=node.environment))


def _filtered(name: str, value: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=value.lineno, environment=value.environment)


def _bounded(name: str, own: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments and result are looked at; what Jinja notes on a filter is kept by ``wraps``."""

    @functools.wraps(own)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        args = tuple(list(_turns(one)) if isinstance(one, Iterator) else one for one in args)
        _check(name, args, kwargs)
        return _looked_at(own(*args, **kwargs))

    return bounded


def _check(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call that is given much, or whose result may be much larger than what it is given."""
    _spend()
    values = [*args, *kwargs.values()]
    size = sum(map(_size, values))
    texts = [value for value in values if isinstance(value, str)]
    grows = max([1, *(abs(value) for value in values if isinstance(value, int))])
    if name == "format":
        inner = [one for value in values if isinstance(value, tuple | list) for one in value if isinstance(one, int)]
        widths = [int(width) for text in texts[:1] for width in re.findall(r"\d{4,12}", text)]
        grows = max([grows, *(text.count("%") + text.count("{") for text in texts[:1]), *widths, *map(abs, inner)])
    elif name == "replace" and len(texts) > 2:
        grows = 1 + (texts[0].count(texts[1]) * len(texts[2])) // (1 + size)
    elif name == "join":
        grows = 1 + (max(map(len, texts), default=0) * max(map(_length, values), default=0)) // (1 + size)
    if max(1, size) * grows > 16 * LETTERS:
        raise TooMuch("it makes a text that is too long")


def _looked_at(value: Any) -> Any:
    _size(value)
    return value


def _size(value: Any) -> int:
    """Letters and items in a value and all that it holds; TooMuch where they are too many."""
    total, seen, waiting = 0, 0, [value]
    while waiting:
        one = waiting.pop()
        total += _length(one)
        seen += 1
        if not seen % 25:
            _spend()
        if total > LETTERS:
            raise TooMuch("it makes a text or a list that is too long")
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple | set | frozenset):
            waiting.extend(one)
    return total


def _length(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length() // 32
    return len(value) if isinstance(value, str | bytes | list | tuple | set | frozenset | dict | range) else 0


def _is_small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= 1024


def _spend(steps: int = 1) -> None:
    left = _left.get(None)
    if left is None:  # constants are folded while a template is compiled
        return
    left[0] -= steps
    if left[0] < 0:
        raise TooMuch("it would run for too long")


def _turns(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend()
        yield item


def _joined(parts: Sequence[Any]) -> str:
    return "".join(map(str, parts))


def _as_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _raise(message: str) -> None:
    raise TemplateError(message)
