"""What docs/clients.md and the build files in examples/ tell client authors is so, as far as it can be seen without
their toolchains: Go, Java and Rust are not installed where these tests run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tandem_router.errors import Code, Reason
from tandem_router.settings import keys

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
PROTOS = sorted(path.relative_to(ROOT / "proto").as_posix() for path in (ROOT / "proto/tandem/v1").glob("*.proto"))
BIN = Path(sys.executable).parent

RECORDER = """#!{python}
import json, sys
from google.protobuf.compiler import plugin_pb2
request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
files = {{
    file.name: [file.options.go_package, file.options.java_package, file.options.java_multiple_files]
    for file in request.proto_file
}}
asked = {{"files": files, "generate": list(request.file_to_generate), "parameter": request.parameter}}
with open({record!r}, "a") as record:
    record.write(json.dumps(asked) + "\\n")
answer = plugin_pb2.CodeGeneratorResponse(supported_features=1)
sys.stdout.buffer.write(answer.SerializeToString())
"""
"""A protoc plugin that generates nothing and writes down what it was asked."""


def blocks(language: str) -> list[str]:
    """The contents of the page's blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def generated_by(language: str, place: Path) -> list[Any]:
    """What the plugins of an example's buf.gen.yaml are asked, with a recorder in the place of each."""
    recorder, record = place / "recorder", place / "record"
    recorder.write_text(RECORDER.format(python=sys.executable, record=str(record)))
    recorder.chmod(0o755)
    template = yaml.safe_load((ROOT / f"examples/{language}/buf.gen.yaml").read_text())
    plugins = []
    for plugin in template["plugins"]:
        kept = {key: value for key, value in plugin.items() if key not in ("local", "protoc_builtin")}
        plugins.append({"local": str(recorder), **kept})
    changed = place / "buf.gen.yaml"
    changed.write_text(yaml.safe_dump({**template, "plugins": plugins}))
    command = [BIN / "buf", "generate", "--template", changed, "--path", "proto/tandem/v1", "-o", place]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    return [json.loads(line) for line in record.read_text().splitlines()]


def test_the_service_config_shown_is_the_one_that_is_tested() -> None:
    shown = [json.loads(block) for block in blocks("json")]
    assert shown == [json.loads((ROOT / "examples/service_config.json").read_text())]


def test_every_word_in_capitals_is_a_code_or_a_reason() -> None:
    others = {"SNAPSHOT", "SYNCED", "PROGRESS", "OUTPUT_MODE_TOKENS", "TANDEM_ADDRESS", "TANDEM_ADMIN_ADDRESS"}
    said = set(re.findall(r"`([A-Z][A-Z_]{3,})`", PAGE))
    assert said - others - {code.name for code in Code} - set(Reason) == set()


def test_every_setting_that_the_page_names_exists() -> None:
    said = set(re.findall(r"\(settings\.md\) `([\w.]+)`", PAGE))
    assert said
    assert said - set(keys()) == set()


def test_the_page_shows_the_build_files_as_they_are() -> None:
    shown = blocks("yaml") + blocks("rust")
    files = ("go/buf.gen.yaml", "java/buf.gen.yaml", "rust/build.rs")
    assert shown == [(ROOT / "examples" / name).read_text() for name in files]


def test_examples_need_nothing_but_the_generated_code() -> None:
    programs = sorted((ROOT / "examples/python").glob("*.py"))
    assert programs
    assert [path.name for path in programs if "tandem_router" in path.read_text().replace("pip install", "")] == []


@pytest.mark.parametrize(
    ("language", "options"),
    [
        ("go", ["example.com/yours/gen/tandem/v1;tandemv1", "com.tandem.v1", True]),
        ("java", [None, "com.example.tandem.v1", True]),
    ],
)
def test_the_template_gives_every_file_its_package(language: str, options: list[Any], tmp_path: Path) -> None:
    asked = generated_by(language, tmp_path)
    assert len(asked) == 2
    for plugin in asked:
        assert sorted(plugin["generate"]) == PROTOS
        for name in PROTOS:
            expected = [
                given if wanted is None else wanted
                for given, wanted in zip(plugin["files"][name], options, strict=True)
            ]
            assert plugin["files"][name] == expected


def test_go_code_lands_in_the_folder_that_its_package_names(tmp_path: Path) -> None:
    template = yaml.safe_load((ROOT / "examples/go/buf.gen.yaml").read_text())
    assert {plugin["out"] for plugin in template["plugins"]} == {"gen"}
    assert {plugin["parameter"] for plugin in generated_by("go", tmp_path)} == {"paths=source_relative"}


def test_well_known_types_keep_the_packages_of_their_runtimes(tmp_path: Path) -> None:
    for plugin in generated_by("go", tmp_path):
        known = {name: options for name, options in plugin["files"].items() if name.startswith("google/")}
        assert set(known) > {"google/protobuf/duration.proto", "google/protobuf/timestamp.proto"}
        for go_package, java_package, _ in known.values():
            assert go_package.startswith("google.golang.org/protobuf/types/known/")
            assert java_package == "com.google.protobuf"


def test_the_protoc_line_maps_every_file_for_both_plugins(tmp_path: Path) -> None:
    script = next(block for block in blocks("bash") if "--go_out" in block)
    fake = tmp_path / "protoc"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    given = done.stdout.splitlines()
    for flag in ("--go_opt", "--go-grpc_opt"):
        mapped = {f"{flag}=M{name}=example.com/yours/gen/tandem/v1;tandemv1" for name in PROTOS}
        assert {argument for argument in given if argument.startswith(f"{flag}=M")} == mapped
        assert f"{flag}=paths=source_relative" in given
    assert sorted(argument for argument in given if argument.endswith(".proto")) == [f"proto/{name}" for name in PROTOS]


def test_the_services_that_rust_builds_import_every_file() -> None:
    script = (ROOT / "examples/rust/build.rs").read_text()
    waiting = re.findall(r'"proto/(tandem/v1/\w+_service\.proto)"', script)
    assert sorted(waiting) == [name for name in PROTOS if name.endswith("_service.proto")]
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += re.findall(r'^import "(tandem/[^"]+)"', (ROOT / "proto" / name).read_text(), re.MULTILINE)
    assert sorted(reached) == PROTOS
