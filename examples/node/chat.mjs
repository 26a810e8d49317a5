// A conversation: every line of input is a message, and the answer is streamed. Ctrl-D ends it.
//
//   node chat.mjs 'You are brief.'
//
// The argument, if there is one, is the system message. The router is at TANDEM_ADDRESS, else at 127.0.0.1:50051.

import { createInterface } from "node:readline";
import { SERVICE_CONFIG, connect, deadline, refusalOf } from "./tandem.mjs";

const client = connect("RouterService", process.env.TANDEM_ADDRESS ?? "127.0.0.1:50051", {
  "grpc.service_config": SERVICE_CONFIG,
});

// The server keeps no conversation: the client sends all of it each time, and prefix caches make that cheap.
const messages = [];
if (process.argv[2]) messages.push({ role: "CHAT_ROLE_SYSTEM", content: process.argv[2] });

for await (const line of createInterface({ input: process.stdin })) {
  messages.push({ role: "CHAT_ROLE_USER", content: line });
  try {
    messages.push({ role: "CHAT_ROLE_ASSISTANT", content: await say(messages) });
  } catch (error) {
    console.error(`\n[${refusalOf(error).message}]`);
    messages.pop(); // the question was not answered, so it was not asked
  }
}
client.close();

// Prints one answer as it comes, and returns it.
async function say(messages) {
  let answer = "";
  const request = { chat: { messages }, sampling: { temperature: 0, max_tokens: 256 } };
  for await (const { chunk, finished } of client.Generate(request, deadline(60))) {
    const piece = chunk?.text.join("") ?? "";
    answer += piece;
    process.stdout.write(piece);
    if (finished) {
      const { prompt_tokens, cached_prompt_tokens } = finished.usage;
      if (finished.choices[0].reason === "FINISH_REASON_LENGTH") process.stdout.write(" [cut at max_tokens]");
      console.error(`[${prompt_tokens} prompt tokens, ${cached_prompt_tokens} cached]`);
    }
  }
  process.stdout.write("\n");
  return answer;
}
