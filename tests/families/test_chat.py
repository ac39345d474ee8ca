"""Chat templates: the same text as transformers renders, and no way out of the sandbox."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from foveate.errors import MissingDependencyError, PromptError
from foveate.families import chat
from foveate.families.chat import ChatTemplate
from tests.families.reference import TEMPLATE

CHATS: dict[str, list[dict[str, Any]]] = {
    "pictures": [
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "image"},
                {"type": "text", "text": "<b> & 'so' \u00e9"},
            ],
        }
    ],
    "turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": [{"type": "text", "text": "{{ 3 }}"}]},
    ],
}
TEMPLATES = {
    "qwen2-vl": TEMPLATE,
    "loops": (
        "{% for m in messages %}\n    {% if loop.first %}\n<s>\n    {% endif %}\n"
        "{{ loop.index0 }}/{{ loop.length }} {{ m.role | upper }}{% if loop.last %}.{% endif %}\n{% endfor %}"
    ),
    "break and continue": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.role }}{% if loop.index > 1 %}{% break %}{% endif %}{% endfor %}"
    ),
    "tojson": "{{ messages | tojson }} {{ {'b': '<\u00e9>', 'a': 1} | tojson(indent=2, sort_keys=true) }}",
    "namespace": (
        "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
        "{% set ns.last = m.role %}{% endfor %}{{ ns.n }}{{ ns.last }}{{ dict(a=1).a }}{{ dict.fromkeys('ab', 1) }}{{ namespace(self=2).self }}"
    ),
    "macro": "{% macro turn(m) -%}\n [{{ m.role }}] {%- endmacro %}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "generation": (
        "{% set x = 1 %}{% for m in messages %}{% generation %}{% set x = 2 %}{{ x }}{{ m.role }}"
        "{% endgeneration %}{{ x }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    ),
    "absent": "{{ tools is none }}{{ documents is none }}{{ nothing }}{{ eos_token }}{{ bos_token is defined }}",
    "strings": "{{ 'a,b'.split(',') }}{{ '%s-%d' % ('x', 3) }}{{ '{:>4}'.format(7) }}{{ ' x '.strip() }}",
    "date": "{{ strftime_now('%Y %j') }}",
}


@pytest.mark.parametrize("turns", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("opening", [True, False])
def test_the_text_is_what_transformers_renders(template: str, turns: str, opening: bool) -> None:
    ours = ChatTemplate(TEMPLATES[template]).render(
        CHATS[turns], add_generation_prompt=opening, variables={"eos_token": "</s>"}
    )
    [theirs], _ = render_jinja_template(
        [CHATS[turns]],
        chat_template=TEMPLATES[template],
        add_generation_prompt=opening,
        eos_token="</s>",
    )
    assert ours == theirs
    assert ours


def test_the_date_is_todays() -> None:
    before = datetime.now().year
    said = int(ChatTemplate("{{ strftime_now('%Y') }}").render([]))
    assert before <= said <= datetime.now().year


ATTACKS = {
    "globals of a class": "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "globals of a function": "{{ lipsum.__globals__['os'].popen('touch MARK').read() }}",
    "globals by filter": "{{ (lipsum | attr('__globals__'))['os'].system('touch MARK') }}",
    "globals of ours": "{{ strftime_now.__globals__['json'].__loader__ }}",
    "code of ours": "{{ raise_exception.__code__.co_consts }}",
    "all classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "classes of dict": "{{ dict.__subclasses__() }}",
    "order of classes": "{{ namespace.mro() }}",
    "the template itself": "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context.environment.x }}",
    "format": "{{ '{0.__class__.__mro__}'.format(42) }}",
    "format by filter": "{{ ('{0.__init__.__globals__}' | attr('format'))(cycler) }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "format passed on": "{{ ['{0.__class__.__mro__}'] | map('format', 1) | list }}{{ ''.__class__.__mro__ }}",
    "generator": "{{ messages.__iter__().__next__() }}",
    "private name in a namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "private name at birth": "{{ namespace(__class__=1) }}",
    "private name in a dict at birth": "{{ namespace({'__init__': 1}) }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update(role='system') }}",
    "update through the type": "{{ dict.update(messages[0], role='system') }}",
    "append through the type": "{{ [].__class__.append(messages, 1) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "file": "{% include '/etc/hostname' %}",
    "import": "{% import 'os' as os %}{{ os.system('touch MARK') }}",
    "huge range": "{{ range(1000000000) | list }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "division": "{{ 1 // 0 }}",
    "types": "{{ 'a' + 1 }}",
    "missing": "{{ nothing.at.all }}",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_template_cannot_leave_the_sandbox(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    turns: list[dict[str, Any]] = [{"role": "user", "content": "hello"}]
    with pytest.raises(PromptError, match="chat template cannot"):
        ChatTemplate(ATTACKS[attack]).render(turns)
    assert turns == [{"role": "user", "content": "hello"}]
    assert not list(tmp_path.iterdir())


def test_a_blocked_attribute_shows_nothing() -> None:
    assert ChatTemplate("[{{ ''.__class__ }}{{ lipsum.__globals__ }}]").render([]) == "[]"


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ x", "{% generation %}", "{% nonsense %}", "{{ 1 | no }}"]
)
def test_a_broken_template_is_refused_when_it_is_compiled(source: str) -> None:
    with pytest.raises(PromptError, match="cannot be compiled"):
        ChatTemplate(source)


def test_a_template_can_refuse_a_conversation() -> None:
    with pytest.raises(PromptError, match="only one turn"):
        ChatTemplate("{{ raise_exception('only one turn') }}").render([])


@pytest.mark.parametrize("installed", ["3.1.5", "3.0", "2.11.3"])
def test_a_jinja_with_known_holes_is_refused(
    installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "version", lambda package: installed)
    with pytest.raises(MissingDependencyError, match=r"3\.1\.6 or newer"):
        ChatTemplate("x")


@pytest.mark.parametrize("installed", ["3.1.6", "3.2", "4.0.0rc1"])
def test_a_jinja_without_them_is_taken(installed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "version", lambda package: installed)
    assert ChatTemplate("x").render([]) == "x"
