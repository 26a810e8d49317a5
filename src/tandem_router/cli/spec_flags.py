"""A worker's spec from a file and from flags: any field by its path, and the common ones by name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import descriptor, json_format

from tandem.v1 import worker_pb2, worker_service_pb2, worker_spec_pb2

__all__ = ["ApiKeyFile", "File", "Generation", "Labels", "Sets", "SpecDocument", "TlsCa", "TlsCertificate", "TlsKey"]
__all__ += ["assign", "credentials", "key_values", "read_spec"]

File = Annotated[
    str, typer.Option("--file", "-f", metavar="PATH", help="A WorkerSpec, or a Worker, as YAML or JSON; - is stdin.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Any field of WorkerSpec: health.timeout=2s; null is its default."
    ),
]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; may be repeated.")]
Generation = Annotated[
    int | None, typer.Option(min=0, help="Refuse if the worker has changed since it had this generation.")
]
ApiKeyFile = Annotated[str, typer.Option(metavar="PATH", help="File with the worker's API key; - is stdin.")]
TlsCa = Annotated[str, typer.Option("--worker-tls-ca", metavar="PATH", help="Authorities of the worker, PEM.")]
TlsCertificate = Annotated[str, typer.Option("--worker-tls-certificate", metavar="PATH", help="Ours for it, PEM.")]
TlsKey = Annotated[str, typer.Option("--worker-tls-key", metavar="PATH", help="The certificate's key, PEM.")]

_SCALARS_OF_TEXT = (descriptor.FieldDescriptor.TYPE_STRING, descriptor.FieldDescriptor.TYPE_ENUM)


@dataclass(frozen=True, slots=True)
class SpecDocument:
    """What a file holds: a spec, and the generation of the worker it was read from, if it says one."""

    spec: worker_spec_pb2.WorkerSpec
    generation: int | None = None


def read_spec(path: str) -> SpecDocument:
    """The spec in a file; an empty path is an empty spec. Raises typer.BadParameter."""
    if not path:
        return SpecDocument(worker_spec_pb2.WorkerSpec())
    # Imported here: few commands read YAML.
    import yaml

    try:
        fields = yaml.safe_load(_read(path, "--file"))
        if not isinstance(fields, dict):
            raise typer.BadParameter(f"{path} holds no fields", param_hint="--file")
        if "spec" not in fields:
            return SpecDocument(json_format.ParseDict(fields, worker_spec_pb2.WorkerSpec()))
        # What `workers get -o yaml` wrote: facts and status are not ours to state, and newer ones are no error.
        kept = {key: fields[key] for key in ("spec", "generation") if key in fields}
        worker = json_format.ParseDict(kept, worker_pb2.Worker())
        return SpecDocument(worker.spec, worker.generation or None)
    except (yaml.YAMLError, json_format.ParseError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--file") from None


def assign(spec: worker_spec_pb2.WorkerSpec, settings: Sequence[str]) -> list[str]:
    """Set fields of a spec from PATH=VALUE; returns the paths. Raises typer.BadParameter.

    PATH=null puts the field's default back (an UpdateWorker's mask names it, its spec leaves it out).
    """
    return [_assign(spec, *_split(setting, "--set", "PATH=VALUE")) for setting in settings]


def key_values(pairs: Sequence[str] | None, flag: str) -> dict[str, str]:
    """KEY=VALUE pairs as a map. Raises typer.BadParameter."""
    return dict(_split(pair, flag, "KEY=VALUE") for pair in pairs or ())


def credentials(api_key_file: str, ca: str, certificate: str, key: str) -> worker_spec_pb2.WorkerCredentials | None:
    """Secrets from files, since a command line is read by others; None when no file is named."""
    if not (api_key_file or ca or certificate or key):
        return None
    answer = worker_spec_pb2.WorkerCredentials()
    if api_key_file:
        answer.api_key = _read(api_key_file, "--api-key-file").decode().strip()
    if ca:
        answer.tls_ca_pem = _read(ca, "--worker-tls-ca")
    if certificate:
        answer.tls_certificate_pem = _read(certificate, "--worker-tls-certificate")
    if key:
        answer.tls_private_key_pem = _read(key, "--worker-tls-key")
    return answer


def refuse_nothing(request: worker_service_pb2.UpdateWorkerRequest) -> None:
    """Raises typer.BadParameter for an update that changes nothing."""
    if not (request.update_mask.paths or request.remove_labels or request.HasField("credentials")):
        raise typer.BadParameter("name something to change: --set, --label, --remove-label or credentials")


def _split(pair: str, flag: str, form: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"{pair!r} is not {form}", param_hint=flag)
    return key, value


def _read(path: str, flag: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint=flag) from None


def _assign(spec: worker_spec_pb2.WorkerSpec, path: str, text: str) -> str:
    message: Any = spec
    *parents, name = path.split(".")
    for parent in parents:
        field = _field(message, parent, path)
        if field.message_type is None or field.is_repeated:
            raise typer.BadParameter(f"{path}: {parent} has no fields of its own", param_hint="--set")
        message = getattr(message, parent)
    field = _field(message, name, path)
    message.ClearField(name)
    if text == "null":
        return path
    try:
        json_format.ParseDict({name: _value(field, text)}, message)
    except json_format.ParseError as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--set") from None
    return path


def _field(message: Any, name: str, path: str) -> descriptor.FieldDescriptor:
    fields: Any = message.DESCRIPTOR.fields_by_name
    if name not in fields:
        raise typer.BadParameter(f"{path}: WorkerSpec has no such field", param_hint="--set")
    found: descriptor.FieldDescriptor = fields[name]
    return found


def _value(field: descriptor.FieldDescriptor, text: str) -> Any:
    if not field.is_repeated and field.type in _SCALARS_OF_TEXT:
        if field.enum_type is not None and text.islower():
            # WORKER_TYPE_UNSPECIFIED tells the prefix: "prefill" is WORKER_TYPE_PREFILL.
            names = [one.name for one in field.enum_type.values]
            prefix = names[0].removesuffix("UNSPECIFIED")
            if prefix + text.upper() not in names:
                words = ", ".join(name.removeprefix(prefix).lower() for name in names[1:])
                raise typer.BadParameter(f"{field.name}: {text!r} is none of {words}", param_hint="--set")
            return prefix + text.upper()
        return text
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise typer.BadParameter(f"{field.name}: {text!r} is no value", param_hint="--set") from None
