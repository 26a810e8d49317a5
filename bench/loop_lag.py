"""How late the router's loop is while prompts of 1 MB arrive beside 50 streams: `python bench/loop_lag.py`, a minute.

A real `tandem serve` whose own loop tells how late it is (watched_router.py), a pair of workers that emit on time
(metronome.py), 50 clients that read (readers.py), and in this process the senders of big prompts: as text, as token
ids, as a chat, and as text that makes many more tokens. Exits 1 when p99 is 50 ms or more in one of the first three.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from health_latency import child, cpu_s, first_line, machine, register, table

from tandem.v1 import generate_pb2, generate_result_pb2, message_pb2, worker_spec_pb2

HERE = Path(__file__).parent
WARM_UP_S = 3.0
LIMIT_S = 0.05
"""Issue "Clients": p99 of the loop's lag."""
PROMPT_BYTES = 1_000_000
NO_CLAIM = " (no claim)"
_EASY = " first table from the lazy wind, a brown line, 7 thunder"
"""3.7 characters per token of the demo model's small vocabulary, about what common text has with a large one."""
_HARD = "the router reads 4096 words and counts: 1 2 3 4 5, a b c d e. "
"""1.6 characters per token."""


@dataclass
class Watch:
    """What the router has said of its loop."""

    process: subprocess.Popen[str]
    late_s: list[float] = field(default_factory=list)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.late_s.extend(json.loads(line)["late_s"])


@dataclass
class Sender:
    """Sends one prompt after another on a beat, without waiting for the answers, and counts these."""

    address: str
    interval_s: float
    sent: int = 0
    prompt_tokens: list[int] = field(default_factory=list)
    """Of each request that was answered."""
    errors: list[str] = field(default_factory=list)

    def run(self, bodies: Iterator[bytes], duration_s: float) -> None:
        threads = []
        with grpc.insecure_channel(self.address) as channel:
            until_s = time.monotonic() + duration_s
            for due_s in itertools.count(time.monotonic(), self.interval_s):
                if due_s >= until_s:
                    break
                time.sleep(max(0.0, due_s - time.monotonic()))
                threads.append(threading.Thread(target=self._ask, args=(channel, next(bodies))))
                threads[-1].start()
                self.sent += 1
            for thread in threads:
                thread.join(60)

    def _ask(self, channel: grpc.Channel, body: bytes) -> None:
        call: Any = channel.unary_stream(
            "/tandem.v1.RouterService/Generate",
            response_deserializer=generate_result_pb2.GenerateResponse.FromString,
        )
        try:
            for answer in call(body, timeout=60):
                if answer.HasField("finished"):
                    self.prompt_tokens.append(answer.finished.usage.prompt_tokens)
        except grpc.RpcError as error:
            self.errors.append(str(error))


def prompts() -> dict[str, bytes]:
    """A request of each kind; the limit holds for those whose name does not say otherwise."""
    ids = message_pb2.TokenIds(ids=[7 + n % 500 for n in range(PROMPT_BYTES // 4)])
    user = message_pb2.ChatMessage(role=message_pb2.CHAT_ROLE_USER, content=_megabyte(_EASY))
    requests = {
        "text": generate_pb2.GenerateRequest(text=_megabyte(_EASY)),
        "token ids": generate_pb2.GenerateRequest(token_ids=ids),
        "chat": generate_pb2.GenerateRequest(chat=message_pb2.ChatInput(messages=[user])),
        f"text in small tokens{NO_CLAIM}": generate_pb2.GenerateRequest(text=_megabyte(_HARD)),
    }
    for request in requests.values():
        request.sampling.max_tokens, request.sampling.ignore_eos = 4, True
        request.output = generate_pb2.OUTPUT_MODE_TOKENS
    return {name: request.SerializeToString() for name, request in requests.items()}


def _megabyte(sentence: str) -> str:
    return (sentence * (PROMPT_BYTES // len(sentence) + 1))[:PROMPT_BYTES]


def row(phase: str, late_s: list[float], cores: float, note: str) -> list[str]:
    ordered = sorted(late_s)
    cells = [f"{1000 * quantile(ordered, share):.1f}" for share in (0.5, 0.95, 0.99)]
    return [phase, str(len(ordered)), *cells, f"{1000 * ordered[-1]:.1f}", f"{cores:.2f}", note]


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(streams: int, rate: float, interval_s: float, duration_s: float) -> float:
    """Measure, print, and return the worst p99 for which there is a claim, in seconds."""
    print(machine())
    listeners = [f"--{name}=127.0.0.1:0" for name in ("listen", "admin-listen", "health-listen", "metrics-listen")]
    serve = [str(HERE / "watched_router.py"), "--print-ports", "--quiet", *listeners]
    rows = [["beside the streams", "beats", "p50 ms", "p95 ms", "p99 ms", "max ms", "cores", "prompts"]]
    worst_s = 0.0
    with (
        child(str(HERE / "metronome.py"), f"--step={1 / rate}", "--tokenizer") as engines,
        child(*serve) as router,
    ):
        workers, where = first_line(engines), first_line(router)
        watch = Watch(router)
        threading.Thread(target=watch.listen, daemon=True).start()
        with grpc.insecure_channel(where["admin_listen"]) as operators:
            register(operators, workers["kv_producer"], worker_spec_pb2.WORKER_TYPE_PREFILL)
            register(operators, workers["kv_consumer"], worker_spec_pb2.WORKER_TYPE_DECODE)
        with child(str(HERE / "readers.py"), where["listen"], f"--streams={streams}"):
            time.sleep(WARM_UP_S)
            for name, body in {"nothing": b"", **prompts()}.items():
                sender = Sender(where["listen"], interval_s)
                start, used_s, began_s = len(watch.late_s), cpu_s(router.pid), time.monotonic()
                if body:
                    sender.run(itertools.repeat(body), duration_s)
                else:
                    time.sleep(duration_s)
                now_used_s = cpu_s(router.pid)
                cores = (
                    0.0
                    if used_s is None or now_used_s is None
                    else (now_used_s - used_s) / (time.monotonic() - began_s)
                )
                time.sleep(1.2)  # the last second's line
                tokens = f" of {sender.prompt_tokens[0]:,} tokens" if sender.prompt_tokens else ""
                note = f"{len(sender.prompt_tokens)} of {sender.sent} answered{tokens}" if body else ""
                late_s = watch.late_s[start:]
                rows.append(row(name, late_s, cores, note))
                if sender.errors:
                    print(f"{name}: {sender.errors[0]}", file=sys.stderr)
                if body and not name.endswith(NO_CLAIM):
                    worst_s = max(worst_s, quantile(sorted(late_s), 0.99), LIMIT_S if sender.errors else 0.0)
    print(f"{streams} streams x {rate:g} tokens/s; a prompt of {PROMPT_BYTES:,} bytes every {interval_s:g} s")
    print(table(rows))
    return worst_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--rate", type=float, default=20.0, help="tokens per second of each stream")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two prompts")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds of each phase")
    given = parser.parse_args()
    worst_s = measure(given.streams, given.rate, given.interval, given.duration)
    print(f"worst p99 of the loop's lag: {1000 * worst_s:.1f} ms (limit {1000 * LIMIT_S:.0f} ms)")
    return 0 if worst_s < LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
