"""What is wrong with a section of params.yaml, in one sentence: where, what, what is allowed."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import CollectionNode, Node

from pipeline.errors import UserError


def checked(model: type[BaseModel], values: Any, where: str) -> Any:
    """The values as a model; UserError says in one sentence, begun by `where`, what the first fault is."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(model, error, where)) from None


def _sentence(model: type[BaseModel], error: ValidationError, where: str) -> str:
    """The first fault as one sentence: where, what, what is allowed."""
    fault, *others = error.errors()
    if fault["type"] == "missing":  # perhaps it is there and misspelt
        slips = [other for other in others if other["type"] == "extra_forbidden"]
        fault = next((slip for slip in slips if slip["loc"][:-1] == fault["loc"][:-1]), fault)
    path = ".".join(str(part) for part in fault["loc"])
    name = f"{where}: {path}" if path else where
    more = len(others)
    tail = f" ({more} more fault{'s' if more > 1 else ''} after this one)" if more else ""
    if fault["type"] == "extra_forbidden":
        owner = _model_at(model, fault["loc"][:-1])
        allowed = f"; allowed here: {', '.join(owner.model_fields)}" if owner else ""
        return f"{name} is an unknown key{allowed}{tail}"
    if fault["type"] == "missing":
        return f"{name} is missing{tail}"
    if fault["type"] == "value_error":
        return f"{name}: {fault['ctx']['error']}{tail}"
    return f"{name} is {shown(fault['input'])} but {expected(fault)}{tail}"


def expected(fault: Any) -> str:
    """What one of pydantic's faults says of a value: "should be a valid number"."""
    if fault["type"] in ("model_type", "dict_type"):
        return "should be a section of keys"
    if fault["type"] == "tuple_type":
        return "should be a list"
    message = re.sub("(Input|Tuple|String|List) should", "should", fault["msg"])
    return message.partition(" after validation")[0]


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model that a path of keys leads to; dictionaries count as their values."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue  # a key of a dictionary: the values' model was already entered
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return None
        model = inner
    return model


def shown(value: Any) -> str:
    """A value as a sentence has it: not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4,300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, as DVC reads it too: YAML 1.2, in which 010 is ten and `no` and 1:30 are text.

    UserError in one sentence for whatever isn't text, numbers, true, false and null in lists and sections.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for without end
            raise UserError(f"{path} can't be read: it is no regular file")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from None
    return parsed_yaml(content, path)


def parsed_yaml(content: bytes, path: Path) -> Any:
    """`read_yaml` of a file's bytes."""
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES // 1000} kB, which no file of parameters is")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} isn't YAML: it is UTF-16, but UTF-8 is needed")
    try:
        text = content.decode("utf-8-sig")
        marker = CONFLICT.search(text)
        if marker:
            line = text.count("\n", 0, marker.start()) + 1
            raise UserError(f"{path} isn't YAML at line {line}: git's conflict marker {marker[0]} is still there")
        _bounded(YAML(typ="safe", pure=True).compose(text), path)
        return plain(YAML(typ="safe", pure=True).load(text), str(path))
    # ValueError: no UTF-8, an impossible date or number; LookupError, OverflowError: `!!int ''`, `!!bool x`
    except (YAMLError, ValueError, RecursionError, LookupError, OverflowError) as error:
        raise UserError(f"{path} isn't YAML{_what(error)}") from None


MAX_BYTES = 64_000  # ours has 3; the reader takes seconds for that many
MAX_VALUES = 100_000  # with what aliases repeat: ten lines of them can hold a billion
MAX_TEXT = 1000  # characters
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # in a path or a name they spoil every sentence with it
NO_TEXT = f"has control characters or more than {MAX_TEXT} characters; neither is allowed"
CONFLICT = re.compile(r"^(<{7}|>{7}|\|{7})(?= |\r?$)", re.MULTILINE)


def _what(error: Exception) -> str:
    """Where the YAML is at fault, and why."""
    mark = getattr(error, "problem_mark", None)
    place = f" at line {mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
    twice = re.match("found duplicate key (.+?) with value", reason)
    if twice:
        reason = "key '{}' stands twice".format(twice[1].strip('"'))
    elif isinstance(error, RecursionError):
        reason = "its lists or sections are nested too deep"
    elif isinstance(error, LookupError | OverflowError):
        reason = "a value isn't what its tag or its escape says"
    elif reason == "but found another document":
        reason = "a second document begins, but one is allowed"
    elif reason == "found unhashable key":
        reason = "a list or a section is a key, but keys are text"
    elif reason.startswith("Exceeds the limit"):
        reason = "a number has more than 4300 digits"
    elif reason.startswith("could not determine a constructor"):
        reason = f"the tag {reason.rpartition(' ')[2]} isn't allowed"
    return f"{place}: {' '.join(reason.split())}"


def _bounded(document: Node | None, path: Path) -> None:
    """UserError for a section or list that holds itself, and for aliases that repeat more than MAX_VALUES values.

    Looked at before values are made: merged sections (`<<`) multiply while they are made.
    """
    sizes: dict[int, int] = {}  # of what each node holds, aliases as often as they stand there; 0: being counted

    def size(node: Node | None) -> int:
        if not isinstance(node, CollectionNode):
            return 1
        line = node.start_mark.line + 1
        known = sizes.get(id(node))
        if known == 0:
            raise UserError(f"{path} isn't YAML at line {line}: a section or list holds itself by an alias")
        if known is None:
            sizes[id(node)], known = 0, 1
            for item in node.value:
                known += sum(map(size, item)) if isinstance(item, tuple) else size(item)
            sizes[id(node)] = known
            if known > MAX_VALUES:
                raise UserError(f"{path} isn't YAML at line {line}: aliases make more than {MAX_VALUES} values of it")
        return known

    size(document)


def plain(value: Any, where: str, key: str = "") -> Any:
    """The value, which holds text, numbers, true, false and null in lists and sections, with text as keys.

    UserError, begun by `where`, for anything else.
    """
    if isinstance(value, datetime.date):
        raise UserError(f"{where}: {key} is {value}, which YAML reads as a date; in quotes it is text")
    if isinstance(value, list):
        for number, item in enumerate(value):
            plain(item, where, f"{key}.{number}" if key else str(number))
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                what = "a list" if isinstance(name, tuple) else shown(name)
                raise UserError(f"{where}: {f'{key}: ' if key else ''}a key is {what}, but keys are text, as in quotes")
            if len(name) > MAX_TEXT or CONTROL.search(name):
                raise UserError(f"{where}: {f'{key}: ' if key else ''}the key {shown(name)} {NO_TEXT}")
            plain(item, where, f"{key}.{name}" if key else name)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT or CONTROL.search(value):
            raise UserError(f"{where}: {key} is {shown(value)}, which {NO_TEXT}")
    elif value is not None and not isinstance(value, int | float):
        raise UserError(f"{where}: {key} is {shown(value)}, but text, numbers, lists and sections are allowed")
    return value


def flat(section: Any, prefix: str = "") -> dict[str, Any]:
    """A section of the parameters as dotted keys, for the tracking store."""
    if hasattr(section, "model_dump"):
        section = section.model_dump(exclude_none=True)  # what isn't set is no parameter of the run
    if not isinstance(section, dict):
        return {prefix: section}
    dotted: dict[str, Any] = {}
    for key, value in section.items():
        dotted |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return dotted
