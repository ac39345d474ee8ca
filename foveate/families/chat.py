"""Chat templates of Hugging Face checkpoints, rendered where they cannot reach the interpreter."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from foveate.errors import MissingDependencyError, PromptError

_SAFE_JINJA = (3, 1, 6)


class ChatTemplate:
    """One checkpoint's chat template.

    A template can read what it is given and nothing else; it is not limited in time or memory.

    Attributes:
        source: Its text.
    """

    def __init__(self, source: str) -> None:
        """Compile `source`, Jinja text.

        Raises:
            PromptError: The text is no valid template.
            MissingDependencyError: The jinja2 installed has known holes in its sandbox.
        """
        _require_safe_jinja(version("jinja2"))
        self.source = source
        try:
            self._template = _environment().from_string(source)
        except Exception as error:
            fix = "export the bundle again from a checkpoint with a valid one"
            raise PromptError(
                f"The chat template cannot be compiled ({type(error).__name__}: {error}); {fix}."
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Render a conversation.

        Args:
            messages: Plain data only: dicts, lists, strings, numbers.
            add_generation_prompt: End with the opening of the assistant's turn.
            variables: More names for the template, such as eos_token.

        Raises:
            PromptError: The template refused the conversation, broke, or tried to leave the sandbox.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **(variables or {}),
            )
        except Exception as error:
            raise PromptError(
                "The chat template cannot render this conversation "
                f"({type(error).__name__}: {error}); check the bundle's chat template."
            ) from error


class _Generation(Extension):
    """Lets templates mark the assistant's words with {% generation %}; here the mark has no effect."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Replace the block by its body, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(Namespace):
    """Jinja's namespace without names that Python itself looks up."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that starts with an underscore: {name!r}")


class _Dict:
    """Makes dicts. The type itself would let a template change the messages: dict.update(m, ...)."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """A dict with one value under every key."""
        return dict.fromkeys(keys, value)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        dict=_Dict(),
        namespace=_Namespace,
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
    )
    return environment


def _require_safe_jinja(installed: str) -> None:
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:3])
    if numbers < _SAFE_JINJA:
        raise MissingDependencyError(
            f"jinja2 {installed} lets a template escape its sandbox; install jinja2 3.1.6 or newer."
        )
