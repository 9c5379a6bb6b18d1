"""Recipes: trees of frozen dataclasses, read from YAML, changed by KEY=VALUE, or built in Python.

`from_dict` converts a mapping to a dataclass and `to_dict` converts it back; `apply_overrides` applies `key.path=value`
assignments; `load_yaml` and `dump_yaml` read and write YAML. A field may be a bool, int, float, str, Path, Literal,
tuple, another dataclass, None, or a union of these. Where a union has more than one dataclass, `kind` selects one by
its class name in snake case. No value is converted silently and no key is skipped: all problems of the whole tree are
collected and raised together.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from qkv.errors import ConfigError, QkvError

T = TypeVar("T")

_MAX_DEPTH, _MAX_DIGITS, _MAX_VALUES = 64, 100, 100_000  # of YAML

_INVALID: Any = object()  # stands for a value that was reported as a problem
_SCALAR_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def from_dict(cls: type[T], mapping: object, source_name: str = "recipe.yaml") -> T:
    """Build the dataclass `cls` from a mapping that was read from YAML.

    source_name: the source that messages name. Raises ConfigError with every problem, each with the dotted path of the
    option, what was given, what was expected and the nearest valid name.
    """
    reader = _Parser(cls, source_name)
    instance = reader.parse_value(cls, mapping, "")
    if reader.problems:
        raise ConfigError(reader.problems)
    return typing.cast("T", instance)


def to_dict(instance: object) -> dict[str, Any]:
    """Convert a dataclass tree to a mapping, defaults included, from which `from_dict` builds an equal tree."""
    cls: Any = type(instance)
    return {name: _to_plain(_get_type_hints(cls)[name], getattr(instance, name)) for name in _get_fields(cls)}


def apply_overrides(mapping: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return a copy of `mapping` with assignments such as `training.max_steps=500` applied in order.

    The value is read as YAML, so `a=null`, `a=[1, 2]` and `a={kind: adam}` work; a number in the path selects
    an item of a list. Raises ConfigError with every assignment that cannot be applied.
    """
    result: dict[str, Any] = copy.deepcopy(dict(mapping))
    problems = []
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not all(path.split(".")):
            problems.append(f"{assignment!r} is not an assignment; expected key=value, as in training.max_steps=500")
            continue
        try:
            _assign(result, path.split("."), _parse_yaml(text, assignment))
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return result


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that contains one mapping. Raises ConfigError if it is missing or contains anything else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text"]) from error
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"]) from error
    content = _parse_yaml(text, str(path))
    if not isinstance(content, dict):
        given = "nothing" if content is None else _format_value(content)
        raise ConfigError([f"{path}: contains {given}; expected a mapping, one 'option: value' per line"])
    return content


def dump_yaml(mapping: Mapping[str, Any]) -> str:
    """Return YAML text from which `load_yaml` reads an equal mapping, with the keys in the same order."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Parser:
    """A parser that traverses types and values together, and collects problems."""

    def __init__(self, root: type, source_name: str) -> None:
        self.root = root
        self.source_name = source_name
        self.problems: list[str] = []

    def parse_value(self, hint: Any, value: Any, path: str) -> Any:
        """Parse one value of any supported type."""
        members = _union_members(hint)
        nodes = [member for member in members if _is_dataclass(member)]
        if nodes and isinstance(value, Mapping):
            return self._parse_dataclass(nodes, value, path)
        for member in members:
            if typing.get_origin(member) is tuple and isinstance(value, list | tuple):
                return self._parse_tuple(member, value, path)
            result = _parse_scalar(member, value)
            if result is not _INVALID:
                return result
        advice = "; put it in quotes" if str in members and isinstance(value, int | float) else ""
        choices = [choice for member in members for choice in typing.get_args(member) if isinstance(choice, str)]
        advice += _suggest_name(value, choices)
        return self._report(path, f"given {_format_value(value)}, expected {describe_type(hint)}{advice}")

    def _parse_dataclass(self, nodes: Sequence[Any], mapping: Mapping[Any, Any], path: str) -> Any:
        """Build one of the dataclasses in `nodes` from a mapping."""
        cls, options = self._choose_class(nodes, dict(mapping), path)
        if cls is None:
            return _INVALID
        hints, fields, values = _get_type_hints(cls), _get_fields(cls), {}
        before = len(self.problems)
        for name, option in options.items():
            if name in fields:
                values[name] = self.parse_value(hints[name], option, _join_path(path, name))
            else:
                self._report_unknown(str(name), list(fields), path)
        for name, field in fields.items():
            if name not in options and _is_required(field):
                self._report(_join_path(path, name), f"missing, expected {describe_type(hints[name])}")
        if len(self.problems) > before:
            self._check_rules(cls, values, path)
            return _INVALID
        try:
            return cls(**values)
        except QkvError as error:
            for problem in _get_problems(error):
                self._report(path, problem)
        return _INVALID

    def _check_rules(self, cls: Any, values: Mapping[str, Any], path: str) -> None:
        """Report the valid options that break a rule of their class, although other options are invalid.

        Invalid options take their defaults; a problem that mentions one of them is left out.
        """
        fields = _get_fields(cls)
        good = {name: value for name, value in values.items() if value is not _INVALID}
        absent = {name: _INVALID for name, field in fields.items() if name not in good and _is_required(field)}
        try:
            cls(**good, **absent)
        except QkvError as error:
            waiting = [name for name in fields if name not in good and (name in values or name in absent)]
            for problem in _get_problems(error):
                if not any(re.search(rf"\b{name}\b", problem) for name in waiting):
                    self._report(path, problem)
        except (TypeError, AttributeError, ValueError):
            pass  # a rule that needs the missing options

    def _choose_class(self, nodes: Sequence[Any], options: dict[Any, Any], path: str) -> tuple[Any, dict[Any, Any]]:
        """Return the class that `kind` names, and the options without `kind`; the class is None after a problem."""
        kinds = {_kind_name(node): node for node in nodes}
        if len(nodes) == 1 and ("kind" in _get_fields(nodes[0]) or "kind" not in options):
            return nodes[0], options
        if "kind" not in options:
            self._report(_join_path(path, "kind"), f"missing, expected one of {_join_names(kinds)}")
            return None, options
        kind = options.pop("kind")
        if not isinstance(kind, str) or kind not in kinds:
            advice = _suggest_name(kind, list(kinds))
            expected = f"given {_format_value(kind)}, expected one of {_join_names(kinds)}{advice}"
            self._report(_join_path(path, "kind"), expected)
            return None, options
        return kinds[kind], options

    def _parse_tuple(self, hint: Any, items: Sequence[Any], path: str) -> Any:
        """Build a tuple from a list."""
        arguments = typing.get_args(hint)
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(items)
        if len(arguments) != len(items):
            return self._report(
                path, f"given {len(items)} items {_format_value(items)}, expected {describe_type(hint)}"
            )
        values = tuple(
            self.parse_value(argument, item, _join_path(path, str(index)))
            for index, (argument, item) in enumerate(zip(arguments, items, strict=True))
        )
        return _INVALID if any(value is _INVALID for value in values) else values

    def _report_unknown(self, name: str, names: list[str], path: str) -> None:
        """Report an unknown option, with the nearest known one, here or elsewhere in the tree."""
        advice = _suggest_name(name, names)
        if not advice:
            elsewhere = sorted(set(_find_options(self.root, name)))
            advice = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
        options = f"options here: {', '.join(names)}" if names else "nothing can be set here"
        self._report(_join_path(path, name), f"no such option{advice or ''} ({options})")

    def _report(self, path: str, message: str) -> Any:
        self.problems.append(f"{self.source_name}: {path}: {message}" if path else f"{self.source_name}: {message}")
        return _INVALID


def _get_problems(error: QkvError) -> Sequence[str]:
    return error.problems if isinstance(error, ConfigError) else [str(error)]


def _parse_scalar(hint: Any, value: Any) -> Any:
    """Return the value of a type without parts, or _INVALID; True is not 1 here, and 3 is not "3"."""
    if typing.get_origin(hint) is typing.Literal:
        same = [choice for choice in typing.get_args(hint) if type(choice) is type(value) and choice == value]
        return same[0] if same else _INVALID
    if hint is types.NoneType:
        return None if value is None else _INVALID
    if hint is float:
        is_number = type(value) in (int, float) and not math.isnan(value)
        return float(value) if is_number else _INVALID
    if hint is Path:
        return Path(value) if isinstance(value, str | Path) else _INVALID
    if hint in (bool, int, str):
        return value if type(value) is hint else _INVALID
    if _is_dataclass(hint) or typing.get_origin(hint) is tuple:
        return _INVALID
    raise TypeError(f"a recipe cannot hold the type {hint!r}")


def describe_type(hint: Any) -> str:
    """Describe in words what a type expects."""
    members = _union_members(hint)
    nodes = [member for member in members if _is_dataclass(member)]
    words = []
    if len(nodes) == 1:
        words.append(f"a mapping with the options {', '.join(_get_fields(nodes[0])) or '(none)'}")
    elif nodes:
        words.append(f"a mapping with kind: {_join_names(map(_kind_name, nodes))}")
    for member in members:
        arguments = typing.get_args(member)
        if member in _SCALAR_NAMES:
            words.append(_SCALAR_NAMES[member])
        elif typing.get_origin(member) is typing.Literal:
            words.append(f"one of {_join_names(arguments)}")
        elif typing.get_origin(member) is tuple and arguments[-1] is Ellipsis:
            words.append(f"a list, each item {describe_type(arguments[0])}")
        elif typing.get_origin(member) is tuple:
            words.append(f"a list of {len(arguments)} ({', '.join(map(describe_type, arguments))})")
    if types.NoneType in members:
        words.append("null")
    return " or ".join(words)


def _to_plain(hint: Any, value: Any) -> Any:
    """Convert one value, with its `kind` where the type has several dataclasses."""
    members = _union_members(hint)
    if _is_dataclass(value):
        cls: Any = type(value)
        tagged = sum(map(_is_dataclass, members)) > 1
        return ({"kind": _kind_name(cls)} if tagged else {}) | to_dict(value)
    if isinstance(value, tuple):
        arguments = next(typing.get_args(member) for member in members if typing.get_origin(member) is tuple)
        each = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        return [_to_plain(argument, item) for argument, item in zip(each, value, strict=True)]
    return str(value) if isinstance(value, Path) else value


def _assign(target: Any, keys: list[str], value: Any) -> None:
    """Set one value deep inside mappings and lists, and create missing mappings."""
    for position, key in enumerate(keys):
        path, last = ".".join(keys[:position]), position == len(keys) - 1
        if isinstance(target, list):
            if not key.isdecimal() or len(key) > _MAX_DIGITS or int(key) >= len(target):
                items = f"items 0 to {len(target) - 1}" if target else "no items"
                raise ConfigError([f"{path}.{key}: the list at {path} has {items}; set {path} itself to add one"])
            place: Any = int(key)
        elif isinstance(target, dict):
            place = key
        else:
            raise ConfigError(
                [f"{'.'.join(keys)}: {path} is {_format_value(target)} and has no parts; set {path} itself"]
            )
        if last:
            target[place] = value
        elif isinstance(target, dict) and target.get(place) is None:
            target[place] = {}
        target = target[place]


def _union_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type alone."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


@functools.cache
def _get_type_hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _get_fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _is_dataclass(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _kind_name(cls: Any) -> str:
    """Convert a class name to snake case: RelativeBias -> relative_bias."""
    return re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", cls.__name__).lower()


def _find_options(hint: Any, name: str, path: str = "", ancestors: tuple[Any, ...] = ()) -> Iterator[str]:
    """Yield the paths of all options of this name in the tree; a recursive class is entered once."""
    nodes = [member for member in _union_members(hint) if _is_dataclass(member) and member not in ancestors]
    for node in nodes:
        for other, inner in _get_type_hints(node).items():
            if other == name:
                yield _join_path(path, name) + (f" with kind: {_kind_name(node)}" if len(nodes) > 1 else "")
            yield from _find_options(inner, name, _join_path(path, other), (*ancestors, node))


def _join_path(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _suggest_name(name: object, names: list[str]) -> str:
    close = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _join_names(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)


def _format_value(value: object) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Loader(yaml.SafeLoader):
    """A loader for YAML 1.2's plain values: 1e-4 is a number, `no`, `on` and 12:30 are text, and keys occur only
    once."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a repeated key; plain PyYAML would silently keep the last one."""
        keys: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            keys.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes exactly the text that _Loader would read as another type."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Escape text that is not printable; single quotes would lose the rarer line breaks."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


_NUMBER_STARTS = list("-+.0123456789")
for _tag, _pattern, _first in (
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", _NUMBER_STARTS),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", _NUMBER_STARTS),
    ("float", r"[-+]?\.inf|\.nan", _NUMBER_STARTS),
):
    for _side in (_Loader, _Dumper):
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})\\Z"), _first)


def _parse_yaml(text: str, source_name: str) -> Any:
    """Parse YAML text. Raises ConfigError with the line and column of a mistake."""
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {}, 1)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{source_name}: line {mark.line + 1}, column {mark.column + 1}" if mark else source_name
        raise ConfigError([f"{place}: {error.problem}; expected YAML"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"{source_name}: {error}; expected YAML"]) from error
    except RecursionError:
        raise ConfigError([f"{source_name}: is nested more than {_MAX_DEPTH} deep; expected a recipe"]) from None
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:  # of values with a tag of YAML's
        raise ConfigError([f"{source_name}: holds a value that cannot be read ({error}); expected YAML"]) from error
    finally:
        if loader is not None:
            loader.dispose()


def _check_size(node: yaml.Node, sizes: dict[int, int | None], depth: int) -> int:
    """Return how many values a node holds, each alias counted as what it stands for.

    Raises MarkedYAMLError for more than a recipe can need: too many, too deep, too long a number, or a node in itself.
    """

    def refuse(problem: str) -> yaml.MarkedYAMLError:
        return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise refuse("an alias stands for what it lies in")
        return known
    if depth > _MAX_DEPTH:
        raise refuse(f"nested more than {_MAX_DEPTH} deep")
    sizes[id(node)] = None
    total = 1
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MAX_DIGITS:
            raise refuse(f"a number of {len(node.value):,} digits, expected at most {_MAX_DIGITS}")
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise refuse("half of a surrogate pair, which is no Unicode text")
    else:
        items = node.value if isinstance(node, yaml.SequenceNode) else [one for pair in node.value for one in pair]
        total += sum(_check_size(item, sizes, depth + 1) for item in items)
    if total > _MAX_VALUES:
        raise refuse(f"more than {_MAX_VALUES:,} values")
    sizes[id(node)] = total
    return total
