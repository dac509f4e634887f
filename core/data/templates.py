"""Rows to prompts and prompts to token ids, without torch.

The page that previews a prompt, the worker that trains on it and the scorer all call ``TextEncoder.encode``, so what
is shown is what the model sees.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from jinja2 import Template
from jinja2.exceptions import TemplateError
from pydantic import BaseModel, ConfigDict, Field, field_validator
from tokenizers import Tokenizer

from core.data import chat_templates
from core.errors import ConfigurationError, NotFoundError

FIELDS = ("task", "instruction", "input", "choices")
BLOCK = 1024  # rows that are encoded at once


class PromptTemplate(BaseModel):
    """How a row becomes a prompt; part of a run, editable per task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str = Field(
        "{instruction}\n\n{input}",
        max_length=20_000,
        description="What the user says. Fields: {task}, {instruction}, {input}, {choices}. "
        "A paragraph whose fields are all empty is left out.",
    )
    system: str = Field(
        "", max_length=20_000, description="System message for every row; a row's own system message wins."
    )
    style: Literal["chat", "plain", "none"] = Field(
        "chat",
        description="chat: the tokenizer's chat template; plain: text, a line break, the answer; "
        "none: no prompt, the answer is a whole text of its own.",
    )

    @field_validator("user")
    @classmethod
    def _known_fields(cls, value: str) -> str:
        try:
            parts = list(string.Formatter().parse(value))
        except ValueError as error:
            raise ValueError(f"{error}; write {{{{ and }}}} for braces that are text") from error
        if any(form or conversion for _, _, form, conversion in parts):  # a width of millions, a field inside a field
            raise ValueError("a field is a name alone, such as {input}, without : and !")
        names = [name for _, name, _, _ in parts if name is not None]
        unknown = sorted(set(names) - set(FIELDS))
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
        return value

    def user_text(self, row: Mapping[str, Any]) -> str:
        """The user's turn for one canonical row."""
        values = {name: row.get(name) or "" for name in FIELDS}
        values["choices"] = "\n".join(f"- {choice}" for choice in row.get("choices") or ())
        paragraphs = []
        for paragraph in self.user.split("\n\n"):
            names = [name for _, name, _, _ in string.Formatter().parse(paragraph) if name is not None]
            if not names or any(values[name] for name in names):
                paragraphs.append(paragraph.format(**values).strip("\n"))
        return "\n\n".join(paragraphs)

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, str]]:
        """The conversation before the answer, as role/content messages."""
        system = row.get("system") or self.system
        start = [{"role": "system", "content": system}] if system else []
        return [*start, *(row.get("history") or ()), {"role": "user", "content": self.user_text(row)}]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One training or scoring sample. The loss and the likelihood run over ``answer`` alone."""

    prompt: list[int]
    answer: list[int]
    cut: int = 0  # prompt tokens left out to fit the length

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


class TextEncoder:
    """A tokenizer folder's text side: chat template, special tokens, token ids; imports no torch.

    ``folder`` holds ``tokenizer.json`` and ``tokenizer_config.json`` as transformers saves them.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise NotFoundError(
                f"{folder} has no tokenizer.json.",
                "Save a fast tokenizer there with AutoTokenizer.save_pretrained.",
            )
        self.tokenizer = _tokenizer(folder / "tokenizer.json")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        path = folder / "tokenizer_config.json"
        self.config = _settings(path) if path.is_file() else {}
        jinja = folder / "chat_template.jinja"
        self.chat_template = jinja.read_text("utf-8") if jinja.is_file() else self._inline_template()

    @cached_property
    def fingerprint(self) -> str:
        """Of all that decides what ids a text becomes."""
        told = json.dumps([self.tokenizer.to_str(), self.config, self.chat_template], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def _inline_template(self) -> str | None:
        template = self.config.get("chat_template")
        if isinstance(template, list):  # several named templates
            named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
            template = named[0].get("template") if named else None
        return template if isinstance(template, str) else None

    def special(self, name: str) -> str | None:
        """The text of ``bos_token``, ``eos_token`` or ``pad_token``."""
        value = self.config.get(name)
        return value.get("content") if isinstance(value, dict) else value

    @cached_property
    def eos_id(self) -> int:
        token = self.special("eos_token")
        index = None if token is None else self.tokenizer.token_to_id(token)
        if index is None:
            raise ConfigurationError(
                "The tokenizer names no end-of-sequence token.", "Set eos_token in its tokenizer_config.json."
            )
        return index

    @cached_property
    def pad_id(self) -> int:
        token = self.special("pad_token")
        index = None if token is None else self.tokenizer.token_to_id(token)
        return self.eos_id if index is None else index

    @cached_property
    def start_ids(self) -> list[int]:
        """What a text without a prompt begins with: the begin token, or the end token where there is none."""
        token = self.special("bos_token")
        index = None if token is None else self.tokenizer.token_to_id(token)
        return [self.eos_id if index is None else index]

    @cached_property
    def _chat(self) -> Template:
        return chat_templates.compiled(self.chat_template)

    def render(self, messages: Sequence[Mapping[str, str]], style: str = "chat") -> str:
        """The prompt text up to where the answer begins."""
        if style == "none":
            return ""
        if style == "plain" or self.chat_template is None:
            return "\n\n".join(message["content"] for message in messages) + "\n"
        try:
            return chat_templates.render(
                self._chat,
                messages,
                add_generation_prompt=True,
                enable_thinking=False,
                bos_token=self.special("bos_token") or "",
                eos_token=self.special("eos_token") or "",
                pad_token=self.special("pad_token") or "",
            )
        except TemplateError as error:
            raise ConfigurationError(
                f"The tokenizer's chat template refused the conversation: {error}.",
                "Leave out the system message or choose the plain prompt style.",
            ) from error

    def ids(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=not keep_special)

    def prompt_ids(self, row: Mapping[str, Any], template: PromptTemplate) -> list[int]:
        if template.style == "none":
            return list(self.start_ids)
        chat = template.style == "chat" and self.chat_template is not None
        return self.ids(self.render(template.messages(row), template.style), special=not chat)

    def answer_ids(self, answer: str) -> list[int]:
        """The answer and the end-of-sequence token."""
        return [*self.ids(answer), self.eos_id]

    def encode(
        self, row: Mapping[str, Any], template: PromptTemplate, max_length: int | None = None, answer: str | None = None
    ) -> Encoded:
        """Prompt and answer ids of one row; ``answer`` replaces the row's output (for scoring options).

        Over ``max_length`` tokens the prompt loses its middle (its two ends hold the instruction and the question),
        then the answer its end.
        """
        return fit(
            self.prompt_ids(row, template), self.answer_ids(row["output"] if answer is None else answer), max_length
        )

    def encode_all(
        self, rows: Iterable[Mapping[str, Any]], template: PromptTemplate, max_length: int | None = None
    ) -> Iterator[Encoded]:
        """As ``encode``, of many rows: the tokenizer reads a block of them at once."""
        chat = template.style == "chat" and self.chat_template is not None
        waiting = iter(rows)
        while block := list(islice(waiting, BLOCK)):
            if template.style == "none":
                prompts = [list(self.start_ids) for _ in block]
            else:
                texts = [self.render(template.messages(row), template.style) for row in block]
                prompts = [found.ids for found in self.tokenizer.encode_batch(texts, add_special_tokens=not chat)]
            answers = self.tokenizer.encode_batch([row["output"] for row in block], add_special_tokens=False)
            for prompt, answer in zip(prompts, answers, strict=True):
                yield fit(prompt, [*answer.ids, self.eos_id], max_length)


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library knows no other class
        raise ConfigurationError(
            f"{path} is not a tokenizer: {error}.", "Save it again with AutoTokenizer.save_pretrained."
        ) from error


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not valid JSON: {error}.", "Save the tokenizer again.") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} holds no settings.", "Save the tokenizer again.")
    return found


def fit(prompt: list[int], answer: list[int], max_length: int | None) -> Encoded:
    """Cut a sample to ``max_length`` tokens, answer first in rank, prompt from its middle."""
    if max_length is None or len(prompt) + len(answer) <= max_length:
        return Encoded(prompt, answer)
    answer = answer[: max_length - 1]
    room = max_length - len(answer)
    cut = len(prompt) - room
    if cut <= 0:
        return Encoded(prompt, answer)
    head = room // 2
    return Encoded(prompt[:head] + prompt[len(prompt) - (room - head) :], answer, cut)
