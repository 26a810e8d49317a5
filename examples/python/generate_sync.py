"""Stream an answer, the plain way: one call, a deadline, and a retry policy that gRPC itself carries out.

    python generate_sync.py 'repeat “hello” :'

The router is at TANDEM_ADDRESS, else at 127.0.0.1:50051.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
from refusal import refusal_of

from tandem.v1 import generate_pb2, router_service_pb2_grpc, sampling_pb2

ADDRESS = os.environ.get("TANDEM_ADDRESS", "127.0.0.1:50051")
SERVICE_CONFIG = (Path(__file__).parent.parent / "service_config.json").read_text()
"""The retry policy. It is valid until response headers come, which is when the first token does; never after that."""


def main(prompt: str) -> int:
    request = generate_pb2.GenerateRequest(
        text=prompt,
        # 0 is greedy. An absent field takes the model's default, so set only what you mean.
        sampling=sampling_pb2.SamplingParams(temperature=0, max_tokens=64),
    )
    # One channel per process: it is safe to share among threads, and opening it costs more than a call.
    with grpc.insecure_channel(ADDRESS, options=[("grpc.service_config", SERVICE_CONFIG)]) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        # The deadline travels with the call: when it passes, the workers stop too.
        call = stub.Generate(request, timeout=30)
        try:
            for message in call:
                match message.WhichOneof("event"):
                    case "chunk":
                        # Pieces hold whole characters only. A chunk may hold several pieces, or none.
                        print("".join(message.chunk.text), end="", flush=True)
                    case "finished":
                        # Always the last message. A stream that ends without it has failed, and raises below.
                        usage = message.finished.usage
                        print(f"\n{usage.prompt_tokens} + {usage.completion_tokens} tokens", file=sys.stderr)
        except KeyboardInterrupt:
            # Leaving the loop does not end the call; cancel does, and frees the workers within milliseconds.
            call.cancel()
            return 130
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            print(f"\n{refusal.code.name} {refusal.reason}: {refusal.message}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
