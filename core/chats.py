"""Talking to runs and looking into their gates: what the pages ask of the inference worker, and what is kept of it."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from core import chat_growing
from core.access import LOCAL, acting, need
from core.chat import client
from core.chat.client import Answering, Question
from core.chat.conversation import BASE, Adapter, Conversation, adapters_of
from core.chat.settings import Sampling
from core.chat.trace import Trace
from core.errors import ConfigurationError, NotFoundError, StudioError
from core.home import Home, read_json
from core.inference import Inference
from core.records import Records
from core.schema import ModelSpec

if TYPE_CHECKING:
    from storage.queries.chats import ConversationPage, ConversationRow, MessageRow

LONGEST_PROMPT = 100_000
LONGEST_TRACE = 512

Turn = tuple["MessageRow", list["MessageRow"]]


@dataclass(frozen=True)
class Answer:
    """One model's answer as far as it has come. ``turn`` is its number in the history, once it has ended."""

    model: str
    text: str
    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0
    ended: str | None = None
    problem: str = ""
    hint: str = ""
    turn: int | None = None


class Chats:
    """Conversations of one home; answers that are growing can be stopped by the id of their asking."""

    def __init__(self, home: Home, records: Records) -> None:
        self._home, self._records = home, records
        self.inference = Inference(home, records)

    # Answers

    def open(self, runs: Sequence[str], device: str = "auto") -> Conversation:
        """A conversation that is not kept, for commands and notebooks."""
        model, adapters = self._models(runs)
        return Conversation(
            lambda: self.inference.connect(model, device), adapters, lambda: self.inference.leave(model, device)
        )

    def ask(
        self,
        models: Sequence[str],
        prompt: str,
        *,
        conversation: int | None = None,
        system: str = "",
        **settings: Any,
    ) -> Asking:
        """Put a question to one to four models; iterate for their growing answers, which are kept when they end."""
        from storage.queries import chats

        need("researcher")
        sampling = Sampling.parse(settings)
        if not prompt.strip():
            raise ConfigurationError("There is no question.", "Type one.")
        if len(prompt) > LONGEST_PROMPT:
            raise ConfigurationError(f"The question has {len(prompt):,} characters.", f"At most {LONGEST_PROMPT:,}.")
        model, adapters = self._models(models)
        kept = sampling.model_dump(mode="json") | {"system": system}
        with self._records.write() as session:
            if conversation is None:
                conversation = chats.start(
                    session, title=prompt, models=list(adapters), system=system, settings=kept, owner=acting().name
                ).id
            else:
                _own(chats.get(session, conversation=conversation))
            before = chats.turns(session, conversation=conversation)
            question = chats.ask(
                session, conversation=conversation, text=prompt, models=list(adapters), system=system, settings=kept
            )
            number = uuid.uuid4().hex
            chats.grow(session, question=question.id, models=list(adapters), by=chat_growing.sign(number))
        questions = []
        for name, adapter in adapters.items():
            messages = [*history(before, name, system), {"role": "user", "content": prompt}]
            task = sampling.task if sampling.task in tasks_of(adapter) else None
            questions.append(Question(adapter.name, adapter.folder, messages, task))
        answering = Answering(lambda: self.inference.connect(model), questions, sampling)
        return Asking(self, number, adapters, answering, conversation, question.id)

    def stop(self, asking: str, model: str | None = None) -> None:
        """Stop one model's answer, or all of an asking; nothing happens where it has ended, or is somebody else's."""
        if (found := chat_growing.asked.get(asking)) and acting() in (found.by, LOCAL):
            found.stop(model)

    def check(self, models: Sequence[str]) -> None:
        """Raise what speaks against asking these models together."""
        self._models(models)

    def tasks(self, models: Sequence[str]) -> list[str]:
        """The tasks that some of these models can act as."""
        found = [tasks_of(adapter) for adapter in self._models(models)[1].values()] if models else []
        return list(dict.fromkeys(task for tasks in found for task in tasks))

    def warm(self, models: Sequence[str]) -> None:
        """Start the worker and have it load these models, without waiting for it."""
        need("researcher")
        model, adapters = self._models(models)
        wanted = {one.name: str(one.folder) for one in adapters.values() if one.name is not None}

        def load() -> None:
            for _ in client.replies(lambda: self.inference.connect(model), {"op": "load", "adapters": wanted}):
                pass

        threading.Thread(target=_quietly, args=(load,), daemon=True, name="warm-inference").start()

    # Routing

    def trace(
        self,
        run: str,
        text: str,
        *,
        answer: str | None = None,
        generate: int = 0,
        task: str | None = None,
        system: str = "",
        raw: bool = False,
    ) -> Trace:
        """The gates of a run's adapter for every token of a user's turn (``raw``: of the bare text) and an answer.

        ``answer`` is given, or made greedily of at most ``generate`` tokens; ``task`` is for gates that choose by task.
        """
        if not text.strip():
            raise ConfigurationError("There is no text to look at.", "Type a prompt.")
        start = [{"role": "system", "content": system}] if system else []
        wanted = {"raw": text} if raw else {"messages": [*start, {"role": "user", "content": text}]}
        return self._trace(run, answer=answer, generate=generate, task=task, **wanted)

    def turn(self, turn: int) -> dict[str, Any]:
        """One kept answer: model, messages before it, answer, conversation, settings."""
        from storage.queries import chats

        with self._records.read() as session:
            found = chats.message(session, message=turn)
            if found.model is None or found.question_id is None:
                raise NotFoundError(f"Message {turn} is a question, not an answer.", "Open it from the chat page.")
            asked = chats.message(session, message=found.question_id)
            chat = _own(chats.get(session, conversation=found.conversation_id))
            before = chats.turns(session, conversation=chat.id, before=asked.id)
        system = asked.settings.get("system", chat.system)
        messages = [*history(before, found.model, system), {"role": "user", "content": asked.text}]
        values = {"model": found.model, "messages": messages, "answer": found.text, "settings": found.settings}
        return values | {"question": asked.text, "conversation": chat.id, "turn": found.id, "system": system}

    def trace_turn(self, turn: int, *, task: str | None = None) -> Trace:
        """The routing of an answer that was kept, in the conversation in which it was given."""
        kept = self.turn(turn)
        if kept["model"] == BASE:
            raise ConfigurationError("The untouched base has no gates.", "Choose the answer of a trained run.")
        task = task or kept["settings"].get("task")
        return self._trace(kept["model"], messages=kept["messages"], answer=kept["answer"], task=task)

    def _trace(self, run: str, **wanted: Any) -> Trace:
        need("researcher")
        model, adapters = self._models([run])
        adapter = next(iter(adapters.values()))
        if adapter.name is None:
            raise ConfigurationError(f"{run} is the untouched base: it has no gates.", "Choose a trained run.")
        wanted["generate"] = min(max(int(wanted.get("generate") or 0), 0), LONGEST_TRACE)
        return client.trace(lambda: self.inference.connect(model), adapter.name, adapter.folder, **wanted)

    # What is kept

    def page(self, *, limit: int = 30, offset: int = 0) -> ConversationPage:
        from storage.queries import chats

        with self._records.read() as session:
            return chats.page(session, owner=acting().name, limit=limit, offset=offset)

    def conversation(self, conversation: int) -> ConversationRow:
        from storage.queries import chats

        with self._records.read() as session:
            return _own(chats.get(session, conversation=conversation))

    def turns(self, conversation: int, *, limit: int | None = None, before: int | None = None) -> list[Turn]:
        """The newest questions in the order of asking, each with its answers."""
        from storage.queries import chats

        with self._records.read() as session:
            _own(chats.get(session, conversation=conversation))
            found = chats.turns(session, conversation=conversation, limit=limit, before=before)
        return [(question, chat_growing.settled(answers)) for question, answers in found]

    def delete(self, conversation: int) -> None:
        from storage.queries import chats

        self.conversation(conversation)
        for asking in list(chat_growing.asked.values()):
            if asking.of(self, conversation):
                asking.stop()
        with self._records.write() as session:
            chats.remove(session, conversation=conversation)

    def export(self, conversation: int, kind: str = "md") -> str:
        """A conversation as ``jsonl`` (one line for each question, with its answers) or ``md``."""
        from core import chat_export

        return chat_export.write(self.conversation(conversation), self.turns(conversation), kind)

    # Within

    def keep(self, question: int, answer: Answer) -> int:
        from storage.queries import chats

        fields = {name: getattr(answer, name) for name in ("model", "text", "tokens", "seconds")}
        problem = f"{answer.problem} {answer.hint}".strip() or None
        with self._records.write() as session:
            kept = chats.answer(session, question=question, ended=answer.ended or "stopped", problem=problem, **fields)
        return kept.id

    def _models(self, names: Sequence[str]) -> tuple[ModelSpec, dict[str, Adapter]]:
        rows = {}
        for name in names:
            row = None if name == BASE else self._records.find(name)
            rows[BASE if row is None else row.id] = row
        if len(rows) < len(names):
            raise ConfigurationError("The same model is named twice.", "Name every run, and the base, once.")
        return adapters_of(self._home, rows)


class Asking:
    """One question on its way: iterate it once for ``Answer`` after ``Answer``; leaving it stops what still grows."""

    def __init__(
        self,
        chats: Chats,
        number: str,
        adapters: Mapping[str, Adapter],
        answering: Answering,
        conversation: int,
        question: int,
    ) -> None:
        self.id = number
        self.by = acting()
        self.conversation, self.question = conversation, question
        self._chats, self._adapters, self._answering = chats, dict(adapters), answering
        self.answers = {model: Answer(model, "") for model in adapters}
        chat_growing.asked[number] = self

    def of(self, chats: Chats, conversation: int) -> bool:
        return self._chats is chats and self.conversation == conversation

    def stop(self, model: str | None = None) -> None:
        if model is None:
            self._answering.stop(every=True)
        elif model in self._adapters:
            self._answering.stop(self._adapters[model].name)

    def close(self) -> None:
        """Leave: what still grows stops and is kept as it is."""
        self._answering.close()
        for model, answer in self.answers.items():
            if answer.turn is None and not (answer.ended and answer.problem):
                self.answers[model] = replace(answer, ended=answer.ended or "stopped")
                self._keep(model)
        chat_growing.asked.pop(self.id, None)

    def __iter__(self) -> Iterator[Answer]:
        names = {adapter.name: model for model, adapter in self._adapters.items()}
        try:
            for piece in self._answering:
                model = names[piece.name]
                fields = {name: value for name, value in asdict(piece).items() if name not in ("name", "text")}
                self.answers[model] = replace(self.answers[model], text=self.answers[model].text + piece.text, **fields)
                if piece.ended:
                    self._keep(model)
                yield self.answers[model]
        finally:
            self.close()

    def _keep(self, model: str) -> None:
        answer = self.answers[model]
        try:
            self.answers[model] = replace(answer, turn=self._chats.keep(self.question, answer))
        except NotFoundError:
            return  # the conversation was deleted meanwhile
        except StudioError as error:  # it can still be read, and the other models go on
            problem = f"{answer.problem} This answer could not be kept. {error.message}".strip()
            self.answers[model] = replace(answer, problem=problem, hint=error.hint)


def _own(found: ConversationRow) -> ConversationRow:
    """Somebody else's conversation is as if there were none, to admins as well."""
    if acting() != LOCAL and acting().name != found.owner:
        raise NotFoundError(f"There is no conversation {found.id}.", "It may have been deleted; start a new one.")
    return found


def history(turns: Sequence[Turn], model: str, system: str) -> list[dict[str, str]]:
    """What a model is to know of a conversation: the questions that it answered, with its own answers."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, answers in turns:
        own = [answer for answer in answers if answer.model == model and answer.ended not in (None, "failed")]
        if own:
            messages += [
                {"role": "user", "content": question.text},
                {"role": "assistant", "content": own[-1].text},
            ]
    return messages


def tasks_of(adapter: Adapter) -> list[str]:
    """The tasks that an adapter can act as."""
    if adapter.folder is None:
        return []
    try:
        return list(read_json(adapter.folder / "adapter_config.json").get("tasks") or ())
    except (OSError, ValueError):
        return []  # loading it says what is wrong


def _quietly(work: Callable[[], None]) -> None:
    with suppress(StudioError):  # the question that follows says it
        work()
