"""Reading and writing YAML 1.2 as plain data, with the file and line of every key at hand for error messages.

YAML 1.2 reads ``1e-3`` as a number and ``on`` as a word, unlike the YAML 1.1 of PyYAML. Only mappings with string keys,
lists, strings, numbers, booleans and null are accepted: no tag can construct anything else.
"""

from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import RoundTripRepresenter

from spinup_plugins.errors import ConfigError, nearest

__all__ = ["EXTENDS", "Locate", "dump_yaml", "extended", "load_yaml", "nested", "parse_yaml", "scalars"]

Locate: TypeAlias = Callable[[Sequence[str]], str]
"""Maps a path of keys, such as ``("CartPole-v1", "gamma")``, to the ``"file:line"`` it stands on."""

EXTENDS = "extends"
"""Names another entry of the file, whose values lie beneath an entry's own."""


class _Representer(RoundTripRepresenter):
    """Spells None out as ``null`` rather than leaving its place empty, and gives every key a line of its own.

    Texts that begin with a question mark are quoted: the emitter leaves ``?;`` plain in a list on one line, where the parser
    takes it for a mapping's key.
    """


_Representer.add_representer(type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null"))
_Representer.add_representer(
    dict, lambda representer, data: representer.represent_mapping("tag:yaml.org,2002:map", data, flow_style=False)
)

_Representer.add_representer(
    str,
    lambda representer, data: representer.represent_scalar(
        "tag:yaml.org,2002:str", data, style="'" if data.startswith("?") else None
    ),
)

_CORE = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null")}
_MERGE = "tag:yaml.org,2002:merge"


def load_yaml(path: str | Path) -> tuple[dict[str, Any], Locate]:
    """Read a YAML file whose top level is a mapping.

    :param path: the file; UTF-8
    :return: its content as plain data, and a function from a path of keys to ``"file:line"``
    :raises ConfigError: the file is missing or unreadable, is not YAML, or holds more than plain data
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    data, locate = _parse(text, str(path))
    if not isinstance(data, dict):
        found = "nothing" if data is None else type(data).__name__
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {found}")
    return data, locate


def parse_yaml(text: str, source: str) -> Any:
    """Return the plain data that ``text`` spells in YAML, such as one value of the command line.

    :param text: the YAML
    :param source: what to call it in an error
    :raises ConfigError: it is not YAML, or holds more than plain data
    """
    return _parse(text, source)[0]


def extended(
    entries: Mapping[str, Any], name: str, locate: Locate, what: str = "entry"
) -> tuple[list[dict[str, Any]], Locate]:
    """Follow :data:`EXTENDS` from an entry to those that it lies upon.

    :param entries: all entries of a file
    :param name: the one to begin with
    :param locate: places in that file
    :param what: what an entry is called in an error
    :return: their values without the key itself, the undermost first; and a map from a path of keys within an entry to the
        line of the nearest one that has the key
    :raises ConfigError: one of them is no mapping, or is not there, or extends itself
    """
    names = [name]
    while isinstance(entry := entries[names[-1]], Mapping) and EXTENDS in entry:
        base, where = entry[EXTENDS], locate((names[-1], EXTENDS))
        if not isinstance(base, str) or base not in entries:
            raise ConfigError(f"{where}: there is no {what} {base!r} to extend{nearest(str(base), entries)}")
        if base in names:
            others = names[names.index(base) + 1 :]
            way = f", by way of {' and '.join(map(repr, others))}" if others else ""
            raise ConfigError(f"{where}: {base!r} extends itself{way}")
        names.append(base)
    for each in names:
        if not isinstance(entries[each], dict):
            raise ConfigError(f"{locate((each,))}: expected a mapping of arguments, found {entries[each]!r}")

    def place(keys: Sequence[str]) -> str:
        return locate((next((each for each in names if keys and keys[0] in entries[each]), name), *keys))

    return [{key: value for key, value in entries[each].items() if key != EXTENDS} for each in reversed(names)], place


def scalars(path: Path) -> dict[str, str]:
    """Return the texts at a YAML file's top level, whatever tags it bears: nothing is constructed.

    Beside plain mappings this reads what PyYAML makes of an ``OrderedDict``: lists of pairs below a Python tag.

    :param path: the file; UTF-8
    :raises ConfigError: it is unreadable or not YAML
    """
    try:
        node = YAML(typ="safe", pure=True).compose(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    pairs: list[Any] = []
    if isinstance(node, MappingNode):
        pairs = node.value
    elif isinstance(node, SequenceNode) and len(node.value) == 1 and isinstance(node.value[0], SequenceNode):
        pairs = [item.value for item in node.value[0].value if isinstance(item, SequenceNode) and len(item.value) == 2]
    return {key.value: value.value for key, value in pairs if isinstance(key, ScalarNode) and isinstance(value, ScalarNode)}


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return ``data`` as YAML 1.2 in the order of its keys; lists of scalars stay on one line.

    :param data: plain data; what :func:`parse_yaml` makes of the result is equal to it
    """
    yaml = YAML(typ="rt", pure=True)  # round-trip keeps the order of keys, where the safe dumper sorts
    yaml.Representer = _Representer
    yaml.default_flow_style = None
    yaml.width = 120
    stream = StringIO()
    yaml.dump(dict(data), stream)
    return stream.getvalue()


def _parse(text: str, source: str) -> tuple[Any, Locate]:
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
        if root is not None:
            _require_plain(root, source, (), set())
        data = None if root is None else yaml.constructor.construct_document(root)
    except MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem}") from None
    except ConfigError:
        raise
    except (YAMLError, ValueError) as error:  # ValueError: a scalar that is not what its tag says, as in "!!int x"
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    return data, lambda keys: _locate(root, source, keys)


def _require_plain(node: Node, source: str, above: tuple[Node, ...], seen: set[int]) -> None:
    """Refuse tags beyond YAML's core schema, keys that are not strings, and a node that contains itself."""
    here = f"{source}:{node.start_mark.line + 1}"
    if node in above:
        raise ConfigError(f"{here}: a value contains itself")
    if id(node) in seen:  # an alias of a node already checked
        return
    seen.add(id(node))
    if str(node.tag) not in _CORE:
        spelled = f" {node.value!r}: quote it if it is meant as text" if isinstance(node, ScalarNode) else ""
        raise ConfigError(f"{here}: YAML type {str(node.tag).removeprefix('tag:yaml.org,2002:')!r} is not allowed{spelled}")
    if isinstance(node, SequenceNode):
        for item in node.value:
            _require_plain(item, source, (*above, node), seen)
    elif isinstance(node, MappingNode):
        for key, value in node.value:
            if str(key.tag) not in ("tag:yaml.org,2002:str", _MERGE):
                raise ConfigError(f"{source}:{key.start_mark.line + 1}: keys must be strings, found {key.value!r}")
            _require_plain(value, source, (*above, node), seen)


def _locate(node: Node | None, source: str, keys: Sequence[str]) -> str:
    line = 0
    for wanted in keys:
        pairs = node.value if isinstance(node, MappingNode) else []
        # The last match wins: pairs merged in by "<<" stand before the mapping's own.
        found = [(key, value) for key, value in pairs if key.value == wanted]
        if not found:
            break
        key, node = found[-1]
        line = key.start_mark.line + 1
    return f"{source}:{line}" if line else source


def nested(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what dotted keys stand for: mappings in mappings.

    :param values: by key, such as ``policy_kwargs.net_arch``
    :param where: where they were given, for errors
    :raises ConfigError: a key has a part that is empty, or is both a value and a mapping
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        if not all((*parents, name)):
            raise ConfigError(f"{where} {key}: expected names with dots between them")
        inner = result
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{where} {key}: {parent!r} was set to {inner!r} before")
        inner[name] = value
    return result
