"""Messages of protocol buffers, made from tables of their fields.

For file formats of other tools, of which only the fields' numbers and types are known. protobuf's
own runtime reads and writes them; each table is a package of its own, apart from whatever else the
process has loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

_FIELD = re.compile(
    r"(?P<number>[1-9]\d*) (?P<repeated>repeated )?(?P<type>\w+)(?P<packed> packed)?"
)


def message_classes(package: str, tables: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Classes of the messages of one package (proto2).

    Args:
        package: its name, e.g. ``caffe2``.
        tables: message to field to what the field is: its number, its type (a scalar type of
            protobuf's language, or a message of the tables), with ``repeated`` before the type and
            ``packed`` behind it where it is: ``"2 repeated OperatorDef"``, ``"3 repeated float
            packed"``. A field that is not repeated is optional.

    Returns:
        Message to its class, as protobuf's compiler would have made it.

    Raises:
        ValueError: a field's words are not those.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto", package=package, syntax="proto2"
    )
    for name, fields in tables.items():
        message = file.message_type.add(name=name)
        message.field.extend(_field(*field, tables, package) for field in fields.items())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in tables
    }


def _field(name: str, words: str, messages: Iterable[str], package: str) -> FieldDescriptorProto:
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FieldOptions

    found = _FIELD.fullmatch(words)
    if found is None:
        raise ValueError(f"{package}: {name}: not a field: {words!r}")
    field = FieldDescriptorProto(name=name, number=int(found["number"]))
    field.label = (
        FieldDescriptorProto.LABEL_REPEATED
        if found["repeated"]
        else FieldDescriptorProto.LABEL_OPTIONAL
    )
    if found["type"] in messages:
        field.type_name = f".{package}.{found['type']}"
        field.type = FieldDescriptorProto.TYPE_MESSAGE
    else:
        try:
            field.type = FieldDescriptorProto.Type.Value(f"TYPE_{found['type'].upper()}")
        except ValueError:
            raise ValueError(f"{package}: {name}: no such type: {found['type']}") from None
    if found["packed"]:
        field.options.CopyFrom(FieldOptions(packed=True))
    return field
