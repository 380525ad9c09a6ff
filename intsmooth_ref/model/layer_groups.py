"""Layers as groups of an HDF5 file, whatever dataclasses they are.

Reader and writer follow the dataclass: a field is an attribute or an array under the name that `flat_fields` gives it,
so a new kind of layer needs no line here. Arrays are fields with metadata: their dtype, their rank, and whether they
are optional.
"""

from __future__ import annotations

from dataclasses import Field, fields, is_dataclass
from fractions import Fraction
from math import gcd
from typing import Any, Mapping, Sequence, TypeVar, get_args, get_type_hints

import numpy as np

from ..strict_hdf5 import Array, Attribute, Group, GroupReader
from .layers import flat_fields

AnyLayer = TypeVar("AnyLayer")


# --- writing ----------------------------------------------------------------------------------------------------------


def layer_groups(layers: Sequence[Any]) -> Group:
    """The group that holds a group of each layer; `layers` have a `name` and a `kind`."""
    return Group(groups={_group_name(index, layer.name): _stored(layer) for index, layer in enumerate(layers)})


def _group_name(index: int, layer_name: str) -> str:
    """Four digits, so that sorted by name the groups stand in the order of the layers."""
    return f"{index:04}_{layer_name}"


def _stored(layer: Any) -> Group:
    attributes: dict[str, Attribute] = {"kind": layer.kind}
    arrays: dict[str, Array] = {}
    for name, value in flat_fields(layer):
        if isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            attributes[name] = _stored_attribute(value)
    return Group(attributes, arrays)


def _stored_attribute(value: Any) -> Attribute:
    """A rational as its numerator and denominator; a tuple of integers as an array; the rest as it is."""
    if isinstance(value, Fraction):
        value = (value.numerator, value.denominator)
    if isinstance(value, tuple) and value and not isinstance(value[0], str):
        return np.array(value, dtype=object)  # of Python integers: those beyond int64 are refused, not wrapped
    stored: Attribute = value  # a string, or several
    return stored


# --- reading ----------------------------------------------------------------------------------------------------------


def read_layers(reader: GroupReader, kinds: Mapping[str, type[AnyLayer]]) -> tuple[AnyLayer, ...]:
    """What `layer_groups` stored; `kinds` are the classes by name."""
    layers: list[AnyLayer] = []
    for index, group_name in enumerate(reader.group_names()):
        layer_reader = reader.group(group_name)
        layer: Any = _layer(layer_reader, kinds)
        expected = _group_name(index, layer.name)
        if group_name != expected:
            layer_reader.refuse(f"layer {layer.name!r} as number {index}", f"the group to be called {expected!r}")
        layers.append(layer)
    reader.finish()
    return tuple(layers)


def _layer(reader: GroupReader, kinds: Mapping[str, type[AnyLayer]]) -> AnyLayer:
    kind = reader.string("kind")
    if kind not in kinds:
        reader.refuse(f"the unknown kind {kind[:100]!r}", f"one of {', '.join(kinds)}")
    layer: AnyLayer = _instance(kinds[kind], "", reader)
    reader.finish()
    return layer


def _instance(cls: type, prefix: str, reader: GroupReader) -> Any:
    """An instance of a dataclass, each field under its dotted name; all of them must be there."""
    hints = get_type_hints(cls)
    return cls(**{each.name: _field_value(each, hints[each.name], prefix, reader) for each in fields(cls)})


def _field_value(each: Field[Any], hint: Any, prefix: str, reader: GroupReader) -> Any:
    name = prefix + each.name
    if each.metadata:
        absent = each.metadata.get("optional") and not reader.has(name)
        return None if absent else reader.array(name, each.metadata["dtype"], each.metadata["rank"])
    nested: Any = next((part for part in (hint, *get_args(hint)) if is_dataclass(part)), None)
    if nested is not None:
        optional = type(None) in get_args(hint)
        return None if optional and not reader.has(f"{name}.") else _instance(nested, f"{name}.", reader)
    return _ATTRIBUTES[hint](reader, name)


def _rational(reader: GroupReader, name: str) -> Fraction:
    values = reader.integers(name)
    if len(values) != 2 or values[1] < 1 or gcd(*values) != 1:
        reader.refuse(f"attribute {name!r} = {values}", "a numerator and a positive denominator in lowest terms")
    return Fraction(*values)


def _boolean(reader: GroupReader, name: str) -> bool:
    value = reader.integer(name)
    if value not in (0, 1):
        reader.refuse(f"attribute {name!r} = {value}", "0 or 1")
    return bool(value)


#: How an attribute is read, by the type of the field it fills.
_ATTRIBUTES: Mapping[Any, Any] = {
    int: GroupReader.integer,
    float: GroupReader.number,
    str: GroupReader.string,
    bool: _boolean,
    Fraction: _rational,
    tuple[int, ...]: GroupReader.integers,
    tuple[str, ...]: GroupReader.strings,
}
