"""The engine's command line: every flag, and the options that flags and environment make."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from tandem_engine.credentials import TlsFiles
from tandem_engine.faults import parse_duration, parse_faults
from tandem_engine.options import EngineOptions, Mode, Protocol, Task

__all__ = ["API_KEY_VARIABLE", "make_parser", "parse_options"]

API_KEY_VARIABLE = "TANDEM_ENGINE_API_KEY"
"""Where the API key comes from without --api-key-file."""


def make_parser() -> argparse.ArgumentParser:
    """Every flag, with what it means."""
    plain = EngineOptions()
    parser = argparse.ArgumentParser(
        "tandem_engine", description="Tandem's reference engine.",
        epilog="A duration is a number and us, ms, s or m. docs/reference-engine.md says more.",
    )  # fmt: skip
    add = parser.add_argument
    add("--protocol", choices=[item.value for item in Protocol], default=plain.protocol.value,
        help="whose protocol and habits it has; default: %(default)s")  # fmt: skip
    add("--mode", choices=[item.value for item in Mode], default=plain.mode.value,
        help="what part of a request it serves; default: %(default)s")  # fmt: skip
    add("--listen", default=plain.listen, help="host:port, 0 is any port; default: %(default)s")
    add(
        "--bootstrap-port", type=int, default=plain.bootstrap_port, help="prefill: where decode engines knock; 0 is any"
    )
    add("--advertise-host", help="prefill: the host that decode engines are told; default: the host of --listen")
    add("--model", default=plain.model, help="a Llama's Hugging Face folder, or demo, which is the default")
    add("--served-model-name", help="default: the folder's name")
    add("--name", help="the engine's own name; default: made up")
    add("--kv-lease", default="30s", help="how long a prefill's pages wait for decode; default: %(default)s")
    add("--bootstrap-timeout", default="30s", help="wait for a room, and for each page; default: %(default)s")
    add("--max-running", type=int, default=plain.max_running,
        help="most choices at once, per data-parallel rank; default: %(default)s")  # fmt: skip
    add("--num-pages", type=int, default=plain.num_pages,
        help="KV pages per data-parallel rank, of 16 tokens; default: %(default)s")  # fmt: skip
    add("--dp-size", type=int, default=plain.dp_size, help="data-parallel ranks; default: %(default)s")
    add("--prefill-chunk", type=int, default=plain.prefill_chunk,
        help="most prompt tokens in one step of a rank; default: %(default)s")  # fmt: skip
    add("--max-model-len", type=int, help="most tokens of a prompt and its output; default: what model and pages allow")
    add("--grace", default="10s", help="for running requests after SIGTERM; default: %(default)s")
    add("--parent-pid", type=int, help="end when this process does")
    add("--task", choices=[item.value for item in Task], default=plain.task.value,
        help="what is served: tokens, embeddings (last token, length 1), or both, which real engines cannot; "
        "embeddings only with --mode aggregated")  # fmt: skip
    add("--max-adapters", type=int, default=plain.max_adapters,
        help="LoRA adapters held at once, sglang only; 0: none; default: %(default)s")  # fmt: skip
    add("--no-kv-events", action="store_true", help="do not publish KV events")
    add("--kv-event-history", type=int, default=plain.kv_event_history,
        help="KV events per rank that can be resumed from; default: %(default)s")  # fmt: skip
    add("--kv-event-queue", type=int, default=plain.kv_event_queue,
        help="unread KV events after which a subscriber gets DATA_LOSS; default: %(default)s")  # fmt: skip
    add("--profile-dir", help="where profiles are written when StartProfile does not say")
    add("--tls-certificate", type=Path, help="PEM; serves TLS instead of plain text, with --tls-key")
    add("--tls-key", type=Path, help="PEM")
    add("--tls-client-ca", type=Path, help="PEM; clients must show a certificate of this authority (mTLS)")
    add("--api-key-file", type=Path, help=f"calls must carry the key in this file; default: ${API_KEY_VARIABLE}")
    add("--fault", action="append", default=[], metavar="NAME[=VALUE]",
        help="do this wrong, like step_latency=20ms; repeatable")  # fmt: skip
    return parser


def parse_options(arguments: Sequence[str] | None = None) -> EngineOptions:
    """Options from the command line. Raises ValueError for a value that cannot be."""
    flags = make_parser().parse_args(arguments)
    return EngineOptions(
        protocol=Protocol(flags.protocol),
        mode=Mode(flags.mode),
        listen=flags.listen,
        bootstrap_port=flags.bootstrap_port,
        advertise_host=flags.advertise_host,
        model=flags.model,
        served_model_name=flags.served_model_name,
        name=flags.name,
        kv_lease_s=parse_duration(flags.kv_lease),
        bootstrap_timeout_s=parse_duration(flags.bootstrap_timeout),
        max_running=flags.max_running,
        num_pages=flags.num_pages,
        dp_size=flags.dp_size,
        prefill_chunk=flags.prefill_chunk,
        max_model_len=flags.max_model_len,
        grace_s=parse_duration(flags.grace),
        parent_pid=flags.parent_pid,
        faults=parse_faults(flags.fault),
        task=Task(flags.task),
        max_adapters=flags.max_adapters,
        kv_events=not flags.no_kv_events,
        kv_event_history=flags.kv_event_history,
        kv_event_queue=flags.kv_event_queue,
        profile_dir=flags.profile_dir,
        tls=_tls(flags.tls_certificate, flags.tls_key, flags.tls_client_ca),
        api_key=_api_key(flags.api_key_file),
    )


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise ValueError("--tls-certificate and --tls-key belong together")
    return TlsFiles(certificate, key, client_ca)


def _api_key(file: Path | None) -> str | None:
    """The key from the file, else from the environment; there is no flag for it, since ps shows flags to everybody."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"--api-key-file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--api-key-file {file}: the key is not UTF-8 text") from None
