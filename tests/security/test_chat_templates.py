"""Chat templates from elsewhere neither reach out nor run for ever nor fill the memory."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from jinja2.exceptions import TemplateError

from core.data import chat_templates
from core.data.templates import PromptTemplate, TextEncoder
from core.errors import ConfigurationError

MESSAGES = [{"role": "user", "content": "hello"}]
GROW = "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
NEST = "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(999999999) %}{% endfor %}",
    "{% for a in range(9999) recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 'a' * 10 ** 12 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
    "{{ 'a'.ljust(10 ** 10) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ ('a' * 1000).translate({97: 'x' * 100000}) }}",
    "{{ ('x' * 100000).join(range(99999) | map('string')) }}",
    "{{ range(99999) | map('string') | join('x' * 100000) }}",
    GROW + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    GROW + "{% set n.x = n.x + n.x %}{% endfor %}",
    GROW + "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    pytest.param(NEST + "{{ n.x | tojson }}", marks=pytest.mark.long),
    pytest.param(NEST + "{{ n.x }}", marks=pytest.mark.long),
    "{{ ''.__class__.__mro__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ 1 / 0 }}",
    "{{ none + 'a' }}",
    "{{ messages[0].content | unknown }}",
    "{{ raise_exception('no system message') }}",
    "{% for %}",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_is_refused_soon(source: str):
    began = time.process_time()
    with pytest.raises(TemplateError):
        chat_templates.render(chat_templates.compiled(source), MESSAGES)
    assert time.process_time() - began < 20


def test_what_published_templates_do_works():
    source = (
        "{% for m in messages %}{{ loop.index ~ '/' ~ loop.length ~ (', ' if not loop.last else '. ') }}"
        "{{ m.content | trim | tojson }}{% if loop.first %}!{% endif %}{% endfor %}"
        "{% for k, v in messages[0] | items %}{{ k }}={{ v }} {% endfor %}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} "
        "{{ messages | map(attribute='content') | join(', ') }} {{ 'a-b'.split('-')[1] ~ 'x' * 3 }}"
        "{% set n = namespace(s='') %}{% for m in messages %}{% set n.s = n.s + m.role %}{% break %}"
        "{% endfor %}{{ n.s }}"
    )
    told = chat_templates.render(chat_templates.compiled(source), MESSAGES)
    assert told == '1/1. "hello"!role=user content=hello 1 hello bxxxuser'


def test_long_conversations_are_within_the_bounds():
    source = "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim ~ '\n' }}{% endfor %}"
    turns = [{"role": "user", "content": "word " * 300}] * 2000
    assert len(chat_templates.render(chat_templates.compiled(source), turns)) > 2_900_000


def test_a_template_that_never_ends_is_a_sentence_on_a_preview(tiny: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(HOSTILE[0])
    with pytest.raises(ConfigurationError, match="chat template refused .* run for too long"):
        TextEncoder(folder).encode({"instruction": "a", "input": "b", "output": "c"}, PromptTemplate())
