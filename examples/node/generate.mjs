// Stream an answer: deadline, cancel, retry before the first token, and what failed.
//
//   node generate.mjs 'repeat “hello” :'
//   node generate.mjs --timeout 0.5 'count from 20 to 30:'
//   node generate.mjs --stop-after 3 'count from 20 to 30:'
//
// The router is at TANDEM_ADDRESS, else at 127.0.0.1:50051.

import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { connect, refusalOf } from "./tandem.mjs";

const MOST_ATTEMPTS = 5;
const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { timeout: { type: "string", default: "30" }, "stop-after": { type: "string" } },
});
const stopAfter = Number(values["stop-after"] ?? Infinity);
const client = connect("RouterService", process.env.TANDEM_ADDRESS ?? "127.0.0.1:50051");

// The messages of one answer; repeats the call only while no message has come. After one, a repeat would be another
// answer, so a failure then is the caller's to see. The seconds span all attempts. Leave request_id empty, or take a
// fresh one per attempt: the router may still know the old one.
async function* generate(request, seconds) {
  const endsAt = Date.now() + seconds * 1000;
  for (let attempt = 1; ; attempt += 1) {
    const call = client.Generate(request, { deadline: new Date(endsAt) });
    let isCommitted = false;
    let waitMs;
    try {
      // One message at a time: a slow loop here never fills your memory.
      for await (const message of call) {
        isCommitted = true;
        yield message;
      }
      return;
    } catch (error) {
      const refusal = refusalOf(error);
      // Nobody tells us when the router itself was not reached.
      waitMs = Math.round(refusal.retryAfterMs ?? (0.5 + Math.random() / 2) * 200 * 2 ** (attempt - 1));
      const isOver = attempt === MOST_ATTEMPTS || Date.now() + waitMs >= endsAt;
      if (isCommitted || !refusal.mayBeRepeated || isOver) throw error;
      console.error(`[attempt ${attempt}: ${refusal.reason || refusal.code}, again in ${waitMs / 1000} s]`);
    } finally {
      // Also when the reader leaves early: an abandoned call would run on until its deadline. The cancel comes back as
      // an error event, which is ours.
      call.on("error", () => {});
      call.cancel();
    }
    await sleep(waitMs);
  }
}

const request = {
  text: positionals[0],
  output: "OUTPUT_MODE_BOTH",
  // 0 is greedy. An absent field takes the model's default, so set only what you mean.
  sampling: { temperature: 0, max_tokens: 64 },
};
try {
  for await (const { event, chunk, finished } of generate(request, Number(values.timeout))) {
    if (event === "chunk") {
      process.stdout.write(chunk.text.join("")); // whole characters only; several pieces, or none
      if (chunk.next_offset >= stopAfter) {
        console.error(`\n[cancelled after ${chunk.next_offset} tokens]`);
        break;
      }
    } else if (event === "finished") {
      // Always the last message. A stream that ends without it has failed, and throws.
      console.error(`\n${finished.usage.prompt_tokens} + ${finished.usage.completion_tokens} tokens`);
    }
  }
} catch (error) {
  const { code, reason, message, field } = refusalOf(error);
  console.error(`\n${code}: ${message}\n[${adviceOn(reason, code, field)}]`);
  process.exitCode = 1;
} finally {
  client.close();
}

// Reasons are stable; messages are for people and may change.
function adviceOn(reason, code, field) {
  switch (reason) {
    case "PROMPT_TOO_LONG":
      return "shorten the prompt, or ask for fewer tokens";
    case "MODEL_NOT_FOUND":
      return "ListModels has the names";
    case "INVALID_REQUEST":
      return `correct ${field}`;
    case "WORKER_LOST":
      return "what was printed is true but incomplete; ask again";
    default:
      return code === "DEADLINE_EXCEEDED" ? "allow more time" : "see docs/errors.md";
  }
}
