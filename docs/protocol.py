"""Writes the reference of a protocol from its .proto files: services, messages and enums, with the comments there."""

import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from grpc_tools import protoc

WELL_KNOWN = files("grpc_tools") / "_proto"
PROTOS = Path(__file__).resolve().parent.parent / "serving" / "rpc" / "protos"
# Numbers of fields in descriptor.proto, which paths to comments are made of.
_MESSAGE, _ENUM, _SERVICE, _FIELD, _VALUE, _METHOD = 4, 5, 6, 2, 2, 2


def reference(folder: str) -> str:
    """Markdown for every .proto file of a folder such as distaff/v1."""
    names = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / folder).glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        code = protoc.main(
            ["protoc", f"-I{PROTOS}", f"-I{WELL_KNOWN}", "--include_source_info", f"--descriptor_set_out={out}", *names]
        )
        if code:
            raise RuntimeError(f"protoc could not read {', '.join(names)}")
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    parts = [_File(file) for file in files]
    lines: list[str] = []
    for part in parts:
        lines += part.services()
    for part in parts:
        lines += part.types()
    return "\n".join(lines).strip() + "\n"


class _File:
    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._prefix = f".{file.package}."
        self._comments = {
            tuple(place.path): " ".join(place.leading_comments.split()) for place in file.source_code_info.location
        }

    def services(self) -> Iterator[str]:
        for index, service in enumerate(self._file.service):
            at = (_SERVICE, index)
            yield from ("", f"### {self._file.package}.{service.name}", "")
            if comment := self._comment(at):
                yield from (comment, "")
            yield from ("| call | takes | gives | |", "|---|---|---|---|")
            for number, method in enumerate(service.method):
                takes = ("stream of " if method.client_streaming else "") + self._link(method.input_type)
                gives = ("stream of " if method.server_streaming else "") + self._link(method.output_type)
                yield f"| `{method.name}` | {takes} | {gives} | {self._comment((*at, _METHOD, number))} |"

    def types(self) -> Iterator[str]:
        for index, message in enumerate(self._file.message_type):
            yield from self._message(message, (_MESSAGE, index))
        for index, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, (_ENUM, index))

    def _message(self, message: DescriptorProto, at: tuple[int, ...]) -> Iterator[str]:
        yield from ("", f"#### {message.name}", "")
        if comment := self._comment(at):
            yield from (comment, "")
        if not message.field:
            yield "No fields."
            return
        yield from ("| field | number | type | |", "|---|---|---|---|")
        for number, field in enumerate(message.field):
            comment = self._comment((*at, _FIELD, number))
            if field.HasField("oneof_index") and not field.proto3_optional:
                comment = f"One of `{message.oneof_decl[field.oneof_index].name}`. {comment}".strip()
            yield f"| `{field.name}` | {field.number} | {self._type(message, field)} | {comment} |"

    def _enum(self, enum: EnumDescriptorProto, at: tuple[int, ...]) -> Iterator[str]:
        yield from ("", f"#### {enum.name}", "")
        if comment := self._comment(at):
            yield from (comment, "")
        yield from ("| value | number | |", "|---|---|---|")
        for number, value in enumerate(enum.value):
            yield f"| `{value.name}` | {value.number} | {self._comment((*at, _VALUE, number))} |"

    def _type(self, message: DescriptorProto, field: FieldDescriptorProto) -> str:
        for nested in message.nested_type:
            if nested.options.map_entry and field.type_name.endswith(f".{message.name}.{nested.name}"):
                key, value = (self._type(nested, each) for each in nested.field)
                return f"map of {key} to {value}"
        name = (
            self._link(field.type_name) if field.type_name else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
        )
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            return f"list of {name}"
        return f"{name}, optional" if field.proto3_optional else name

    def _link(self, type_name: str) -> str:
        name = type_name.removeprefix(self._prefix)
        return f"`{name.lstrip('.')}`" if "." in name else f"[{name}](#{name.lower()})"

    def _comment(self, at: tuple[int, ...]) -> str:
        return self._comments.get(at, "").replace("|", "\\|")
