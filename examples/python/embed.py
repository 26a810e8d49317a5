"""Turn texts into vectors in one call, and say how near each text is to the first one.

    python embed.py 'good bread' 'good butter' '12 + 34 ='

The router is at TANDEM_ADDRESS, else at 127.0.0.1:50051.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import grpc
from refusal import refusal_of

from tandem.v1 import embed_pb2, router_service_pb2_grpc

ADDRESS = os.environ.get("TANDEM_ADDRESS", "127.0.0.1:50051")
SERVICE_CONFIG = (Path(__file__).parent.parent / "service_config.json").read_text()
OPTIONS = [
    # Embed is idempotent: gRPC may repeat it at any time before its answer.
    ("grpc.service_config", SERVICE_CONFIG),
    # 2,048 vectors of 4,096 values are 33 MB; a client takes 4 MB unless it is told.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]


def main(*texts: str) -> int:
    # Up to 2,048 inputs: one call with all of them costs far less than a call for each.
    request = embed_pb2.EmbedRequest(inputs=[embed_pb2.EmbedInput(text=text) for text in texts])
    with grpc.insecure_channel(ADDRESS, options=OPTIONS) as channel:
        try:
            answer = router_service_pb2_grpc.RouterServiceStub(channel).Embed(request, timeout=30)
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            # refusal.field names the input at fault, if one is: inputs[2].text
            print(f"{refusal.code.name} {refusal.reason}: {refusal.message}", file=sys.stderr)
            return 1
    first = answer.embeddings[0].values
    for embedding in answer.embeddings:
        # Vectors have length 1 unless normalize is false, so the product is the cosine.
        cosine = sum(one * other for one, other in zip(first, embedding.values, strict=True))
        print(f"{cosine:+.3f} {texts[embedding.index]}")
    print(f"{answer.usage.prompt_tokens} tokens, {len(first)} values each, {answer.served_model}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
