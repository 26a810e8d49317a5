"""What every .proto file of ours keeps true, so that a reader of the schema needs no other document."""

from __future__ import annotations

import re
from collections import Counter

from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from proto_image import ROOT, elements, files, messages

from tandem_router.errors import TABLE, Code, Reason

PROTOS = sorted((ROOT / "proto").rglob("*.proto"))


def rpc_comments() -> dict[str, str]:
    return {element.name: element.comment for element in elements() if element.kind == "rpc"}


def test_every_file_is_compiled() -> None:
    assert sorted(file.name for file in files()) == [str(path.relative_to(ROOT / "proto")) for path in PROTOS]


def test_every_element_has_a_comment() -> None:
    assert [f"{element.kind} {element.name}" for element in elements() if not element.comment] == []


def test_every_rpc_comment_lists_its_errors_last() -> None:
    lacking = []
    for name, comment in rpc_comments().items():
        _, errors, rest = comment.partition("Errors")
        entries = [line for line in rest.splitlines()[1:] if line.strip()]
        if not errors or ":" not in rest or any(not line.startswith("   ") for line in entries):
            lacking.append(name)
    assert lacking == []


def test_every_rpc_comment_says_whether_it_is_idempotent() -> None:
    assert [name for name, comment in rpc_comments().items() if "dempotent" not in comment] == []


def test_every_stream_says_its_order_end_and_resume() -> None:
    comments = rpc_comments()
    streams = [
        f"{file.package}.{service.name}.{method.name}"
        for file in files()
        for service in file.service
        for method in service.method
        if method.server_streaming
    ]
    assert streams
    words = ("order|first", r"\bend", "resume")
    assert [n for n in streams for word in words if not re.search(word, comments[n], re.IGNORECASE)] == []


def test_every_quoted_reason_is_in_the_error_table() -> None:
    quoted = {(word, element.name) for element in elements() for word in re.findall(r"`([A-Z_]+)`", element.comment)}
    assert quoted
    assert sorted(f"{word} in {name}" for word, name in quoted if word not in Reason.__members__) == []


def test_every_quoted_reason_stands_beside_its_code() -> None:
    listed = [
        (element.name, code, reason)
        for element in elements()
        for code, reasons in re.findall(r"\b([A-Z][A-Z_]+) ((?:`[A-Z_]+`(?:, )?)+)", " ".join(element.comment.split()))
        for reason in re.findall(r"`([A-Z_]+)`", reasons)
        if code in Code.__members__ and reason in Reason.__members__
    ]
    assert listed
    assert [entry for entry in listed if TABLE[Reason[entry[2]]].code is not Code[entry[1]]] == []


def test_no_file_is_longer_than_300_lines() -> None:
    assert [path.name for path in PROTOS if len(path.read_text(encoding="utf-8").splitlines()) > 300] == []


def test_no_line_is_longer_than_120_characters() -> None:
    assert [
        f"{path.name}:{number}"
        for path in PROTOS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120
    ] == []


def test_no_rpc_takes_or_returns_a_message_of_google() -> None:
    types = [t for file in files() for s in file.service for m in s.method for t in (m.input_type, m.output_type)]
    assert [name for name in types if not name.startswith(".tandem.")] == []


def test_no_two_rpcs_share_a_message() -> None:
    types = Counter(
        t for file in files() for s in file.service for m in s.method for t in (m.input_type, m.output_type)
    )
    assert [name for name, count in types.items() if count > 1] == []


def test_zero_of_every_enum_is_unspecified() -> None:
    wrong = [
        f"{file.package}.{enum.name}"
        for file in files()
        for enum in file.enum_type
        if enum.value[0].number != 0 or not enum.value[0].name.endswith("_UNSPECIFIED")
    ]
    assert wrong == []


def test_nothing_foreign_is_imported_but_google_protobuf() -> None:
    imports = {name for file in files() for name in file.dependency}
    assert [name for name in imports if not name.startswith(("google/protobuf/", "tandem/"))] == []


def test_nouns_import_no_verbs() -> None:
    nouns = [file for file in files() if not file.service]
    assert [file.name for file in nouns for name in file.dependency if name.endswith("_service.proto")] == []


def test_every_scalar_of_spec_and_sampling_has_presence() -> None:
    without = []
    for name, message in messages():
        if not re.search(r"\.(WorkerSpec|WorkerCredentials|SamplingParams|ChannelOptions|\w+Overrides)$", name):
            continue
        for field in message.field:
            is_scalar = field.type not in (FieldDescriptorProto.TYPE_MESSAGE, FieldDescriptorProto.TYPE_ENUM)
            is_single = field.label != FieldDescriptorProto.LABEL_REPEATED
            if is_scalar and is_single and not field.HasField("oneof_index"):
                without.append(f"{name}.{field.name}")
    assert without == []


def test_every_dp_rank_and_expected_generation_has_presence() -> None:
    names = {"dp_rank", "expected_generation", "from_revision"}
    assert [
        f"{name}.{field.name}"
        for name, message in messages()
        for field in message.field
        if field.name in names and not field.HasField("oneof_index") and name != "tandem.engine.v1.RankLedger"
    ] == []


def test_credentials_are_in_requests_only() -> None:
    holders = {
        name
        for name, message in messages()
        for field in message.field
        if field.type_name == ".tandem.v1.WorkerCredentials"
    }
    assert holders == {f"tandem.v1.{verb}WorkerRequest" for verb in ("Create", "Replace", "Update")}
