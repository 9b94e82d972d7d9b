"""What is wrong with a section of params.yaml, in one sentence: where, what, what is allowed."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError


def checked(model: type[BaseModel], values: Any, where: str) -> Any:
    """The values as a model; UserError says in one sentence, begun by `where`, what the first fault is."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(model, error, where)) from None


def _sentence(model: type[BaseModel], error: ValidationError, where: str) -> str:
    """The first fault as one sentence: where, what, what is allowed."""
    fault = error.errors()[0]
    path = ".".join(str(part) for part in fault["loc"])
    name = f"{where}: {path}" if path else where
    more = len(error.errors()) - 1
    tail = f" ({more} more fault{'s' if more > 1 else ''} after this one)" if more else ""
    if fault["type"] == "extra_forbidden":
        owner = _model_at(model, fault["loc"][:-1])
        allowed = f"; allowed here: {', '.join(owner.model_fields)}" if owner else ""
        return f"{name} is an unknown key{allowed}{tail}"
    if fault["type"] == "missing":
        return f"{name} is missing{tail}"
    if fault["type"] == "value_error":
        return f"{name}: {fault['ctx']['error']}{tail}"
    return f"{name} is {fault['input']!r} but {expected(fault)}{tail}"


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
        field = model.model_fields.get(str(part)) if model else None
        if field is None:
            continue  # a key of a dictionary: the values' model was already entered
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return None
    return model


class Unambiguous(yaml.SafeLoader):
    """YAML in which no key stands twice in a section: the last one would win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} stands twice", problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def floats(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text, since it has no dot; take such text for the number that was meant."""
    if isinstance(value, dict):
        return {key: floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [floats(item) for item in value]
    if isinstance(value, str) and "e" in value.lower() and value.lstrip("+-")[:1].isdigit():
        try:
            return float(value)
        except ValueError:
            return value
    return value
