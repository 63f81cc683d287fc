"""The sandbox that chat templates run in: jinja2's immutable one, plus a budget.

jinja2 keeps a template from Python's internals, not from looping for ever or building strings until memory is gone.
Here every loop iteration, call and filter costs steps, and every string made or printed costs characters.
"""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from types import GeneratorType
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

MAX_STEPS = 300_000  # loop iterations, calls and filters, in one rendering
MAX_CHARACTERS = 16_000_000  # printed in one rendering, and in any string on the way
_MAX_WIDTH = 10_000  # of padding, indentation and the like
# Filters that no chat needs and that are slow on purpose-made input, or random.
_LEFT_OUT = frozenset(["pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"])
_WIDE_FORMAT = re.compile(r"\d{5,}|%[^%a-zA-Z]*\*")


class BudgetError(jinja2.TemplateError):
    """The template goes over its budget."""


class Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._characters = MAX_CHARACTERS

    def steps(self, count: int) -> None:
        self._steps -= count
        if self._steps < 0:
            raise BudgetError(f"it loops or calls more than {MAX_STEPS} times, perhaps for ever")

    def characters(self, count: int) -> None:
        self._characters -= count
        if self._characters < 0:
            raise BudgetError(f"it prints more than {MAX_CHARACTERS} characters")


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2 as chat templates expect it (the names and options of transformers), with a budget."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=self._print,
            cache_size=0,
        )
        filters = {name: function for name, function in self.filters.items() if name not in _LEFT_OUT}
        self.filters = {name: self._budgeted(function) for name, function in (filters | {"tojson": _to_json}).items()}
        self.globals.pop("lipsum")
        self.globals |= {"raise_exception": _raise_exception, "dict": _make_dict, "namespace": _Namespace}

    def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
        """An attribute that the sandbox hides is an error at once, not an empty string."""
        raise jinja2.exceptions.SecurityError(f"it reads the attribute {attribute!r} of a {type(obj).__name__}")

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call that a template makes, recursion of macros and loops included."""
        if getattr(function, "__self__", None) is self:  # bounded and joined, which no template wrote
            return function(*args)
        self._budget.steps(1)
        bound = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner, name = getattr(bound, "__self__", None), getattr(bound, "__name__", "")
        if isinstance(owner, (str, bytes, int, float)):
            self._check_arguments((owner, *args), kwargs, name)
        elif isinstance(function, jinja2.runtime.LoopContext) and args:
            args = (self.bounded(args[0], 0), *args[1:])
        return self._checked(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """`+ * ** %`, refused when the result would be huge."""
        if operator == "*":
            for size, times in ((left, right), (right, left)):
                if isinstance(size, (str, list, tuple)) and isinstance(times, int):
                    self._check_size(len(size) * max(times, 0))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MAX_WIDTH:
                raise BudgetError(f"it computes a number of more than {_MAX_WIDTH} bits")
        if operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise BudgetError(f"it formats to a width of more than {_MAX_WIDTH}")
        return self._checked(super().call_binop(context, operator, left, right))

    def bounded(self, items: Iterable[Any], literal: int) -> Iterator[Any]:
        """What `for` walks: `literal` is the number of characters that the body prints as they stand."""
        for item in items:
            self._budget.steps(1)
            self._budget.characters(literal)
            yield item

    def joined(self, text: str) -> str:
        """What `~` makes."""
        return self._checked(text)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            parts = [part for node in loop.body for part in node.find_all(jinja2.nodes.TemplateData)]
            literal = sum(len(part.data) for part in parts)
            loop.iter = self._calling("bounded", loop.iter, jinja2.nodes.Const(literal))
        return self._bound_joins(tree)

    def _bound_joins[N: jinja2.nodes.Node](self, node: N) -> N:
        for name, value in list(node.iter_fields()):
            if isinstance(value, list):
                setattr(node, name, [self._bound_join(entry) for entry in value])
            else:
                setattr(node, name, self._bound_join(value))
        return node

    def _bound_join(self, value: Any) -> Any:
        if not isinstance(value, jinja2.nodes.Node):
            return value
        self._bound_joins(value)
        return self._calling("joined", value) if isinstance(value, jinja2.nodes.Concat) else value

    def _calling(self, method: str, *args: jinja2.nodes.Node) -> jinja2.nodes.Call:
        function = jinja2.nodes.EnvironmentAttribute(method)
        call = jinja2.nodes.Call(function, list(args), [], None, None)
        call.set_lineno(args[0].lineno).set_environment(self)
        return call

    def _print(self, value: Any) -> Any:
        text = value if isinstance(value, str) else str(value)
        self._budget.characters(len(text))
        return text

    def _budgeted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps the marks of filters that take the environment
        def run(*args: Any, **kwargs: Any) -> Any:
            for value in args:
                if isinstance(value, (list, tuple, dict, range)):
                    self._budget.steps(len(value) // 64)
            self._budget.steps(1)
            self._check_arguments(
                tuple(value for value in args if not hasattr(value, "filters")), kwargs, function.__name__
            )
            return self._checked(function(*args, **kwargs))

        return run

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
        """Refuse methods and filters of strings that would build something huge in one go."""
        numbers = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, int)]
        if any(abs(number) > _MAX_WIDTH for number in numbers) and name not in ("do_default", "do_int", "do_float"):
            raise BudgetError(f"it calls {name} with a number above {_MAX_WIDTH}")
        if not args or not isinstance(args[0], str):
            return
        text = args[0]
        if "format" in name and _WIDE_FORMAT.search(text):
            raise BudgetError(f"it formats to a width of more than {_MAX_WIDTH}")
        if "replace" in name and len(args) > 2 and isinstance(args[1], str) and isinstance(args[2], str):
            self._check_size(len(text) + text.count(args[1]) * len(args[2]))
        if name == "join" and len(args) > 1 and isinstance(args[1], (list, tuple)):
            parts: list[Any] = list(args[1])
            self._check_size(len(parts) * len(text) + sum(len(part) for part in parts if isinstance(part, str)))

    def _checked[V](self, value: V) -> V:
        if isinstance(value, (str, list, tuple)):
            self._check_size(len(value))
        if isinstance(value, GeneratorType):  # what map, select and the like return
            return self._counted(value)
        return value

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._budget.steps(1)
            self._budget.characters(len(value) if isinstance(value, str) else 0)
            yield value

    def _check_size(self, size: int) -> None:
        if size > MAX_CHARACTERS:
            raise BudgetError(f"it builds a string or list of {size} entries, at most {MAX_CHARACTERS} are allowed")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the assistant said, for training; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The body alone, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [jinja2.nodes.Scope(body).set_lineno(line)]


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"it stores {name!r} on a namespace; names may not begin with _")


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers writes it: nothing escaped for HTML (jinja2's own filter does)."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
