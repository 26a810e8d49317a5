"""A conversation: every line of input is a message, and the answer is streamed. Ctrl-D ends it.

    python chat.py 'You are brief.'

The argument, if there is one, is the system message. The router is at TANDEM_ADDRESS, else at 127.0.0.1:50051.
"""

from __future__ import annotations

import os
import sys

import grpc
from refusal import refusal_of

from tandem.v1 import generate_pb2, generate_result_pb2, message_pb2, router_service_pb2_grpc, sampling_pb2

ADDRESS = os.environ.get("TANDEM_ADDRESS", "127.0.0.1:50051")


def main(instructions: str = "") -> int:
    # The server keeps no conversation: the client sends all of it each time, and prefix caches make that cheap.
    history = message_pb2.ChatInput()
    if instructions:
        history.messages.add(role=message_pb2.CHAT_ROLE_SYSTEM, content=instructions)
    with grpc.insecure_channel(ADDRESS) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        for line in sys.stdin:
            history.messages.add(role=message_pb2.CHAT_ROLE_USER, content=line.removesuffix("\n"))
            request = generate_pb2.GenerateRequest(
                chat=history,
                sampling=sampling_pb2.SamplingParams(temperature=0, max_tokens=256),
            )
            try:
                answer = say(stub, request)
            except grpc.RpcError as error:
                print(f"\n[{refusal_of(error).message}]", file=sys.stderr)
                del history.messages[-1]  # the question was not answered, so it was not asked
                continue
            history.messages.add(role=message_pb2.CHAT_ROLE_ASSISTANT, content=answer)
    return 0


def say(stub: router_service_pb2_grpc.RouterServiceStub, request: generate_pb2.GenerateRequest) -> str:
    """Print one answer as it comes, and return it. Raises grpc.RpcError."""
    pieces: list[str] = []
    for message in stub.Generate(request, timeout=60):
        piece = "".join(message.chunk.text)
        pieces.append(piece)
        print(piece, end="", flush=True)
        if message.HasField("finished"):
            usage, (choice,) = message.finished.usage, message.finished.choices
            if choice.reason == generate_result_pb2.FINISH_REASON_LENGTH:
                print(" [cut at max_tokens]", end="")
            print(f"[{usage.prompt_tokens} prompt tokens, {usage.cached_prompt_tokens} cached]", file=sys.stderr)
    print(flush=True)
    return "".join(pieces)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
