#!/usr/bin/env bash
# The whole of a client's day with `buf curl` and no file of ours: the router describes itself by reflection.
# With --schema the same without reflection: generate.sh --schema path/to/proto
#
# The router is at TANDEM_ADDRESS, else at 127.0.0.1:50051. buf: https://buf.build/docs/cli, or `pip install buf-bin`.
set -euo pipefail

router="http://${TANDEM_ADDRESS:-127.0.0.1:50051}"
call() { # call METHOD JSON
  buf curl "${schema[@]}" --protocol grpc --http2-prior-knowledge --data "$2" "$router/$1"
}
schema=("$@")

echo "# Can it take requests? Probes should ask the health listener; this is the same answer."
buf curl --protocol grpc --http2-prior-knowledge -d '{"service": "readiness"}' "$router/grpc.health.v1.Health/Check"

echo "# Which models are there?"
call tandem.v1.RouterService/ListModels '{}'

echo "# How many tokens has a prompt?"
call tandem.v1.RouterService/Tokenize '{"text": "12 + 34 ="}'

echo "# One answer, streamed: a JSON object per message, the last one is finished."
call tandem.v1.RouterService/Generate '{"text": "12 + 34 =", "output": "OUTPUT_MODE_BOTH", "sampling": {"temperature": 0}}'

echo "# A chat."
call tandem.v1.RouterService/Generate '{
  "chat": {"messages": [{"role": "CHAT_ROLE_USER", "content": "12 + 34 ="}]},
  "sampling": {"temperature": 0, "max_tokens": 16}
}'

echo "# An error's first word is its reason, in docs/errors.md; its details are google.rpc messages in base64."
call tandem.v1.RouterService/Generate '{"text": "hello", "sampling": {"top_p": 2}}' 2>&1 || true
