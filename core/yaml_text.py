"""YAML that people write, read as plain data: keys stand once, and a short text cannot become an endless value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from core.errors import ConfigurationError

LONGEST = 300_000  # characters; so many take seconds to read
DEEPEST = 40  # levels of lists and mappings; a run has seven
MOST = 100_000  # values, aliases written out


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses a key that stands twice: one of its values would be lost."""

    _pairs = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Write merged mappings (``<<``) out, and stop where mappings that merge one another become endless."""
        super().flatten_mapping(node)
        self._pairs += len(node.value)
        if self._pairs > MOST:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST:,} values", node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in known:
                    said = f"{key.value[:60]!r} stands twice"
                    raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
                known.add(key.value)
        return super().construct_mapping(node, deep)


def read(text: str) -> Any:
    """The value of a YAML text; None where it is empty.

    Raises:
        ConfigurationError: what does not parse, with line and column, and what is too long, too deep or too much.
    """
    if len(text) > LONGEST:
        raise ConfigurationError(f"The YAML has {len(text):,} characters.", f"Write at most {LONGEST:,}.")
    try:
        value = yaml.load(text, _Loader)  # a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        said = f": {problem}" if problem else ""
        raise ConfigurationError(
            f"The YAML does not parse{place}{said}.", "Check indentation, colons and quotes there."
        ) from error
    except (ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
        # A date that is none, a number of too many digits, a tag whose value is of another kind.
        raise ConfigurationError(f"The YAML has a value that cannot be read: {error}.", "Put it in quotes.") from error
    except RecursionError as error:
        raise ConfigurationError("The YAML is nested too deeply.", "Write it with fewer levels.") from error
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Refuse what aliases make endless."""
    level, seen = [value], 0
    for _ in range(DEEPEST):
        level = [inner for one in level for inner in _inside(one)]
        seen += len(level)
        if seen > MOST:
            raise ConfigurationError(f"The YAML has more than {MOST:,} values.", "Write fewer, or fewer aliases.")
        if not level:
            return
    raise ConfigurationError(f"The YAML has more than {DEEPEST} levels.", "Write it with fewer levels.")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple | set) else ()
