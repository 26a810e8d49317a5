// Turn texts into vectors in one call, and say how near each text is to the first one.
//
//   node embed.mjs 'good bread' 'good butter' '12 + 34 ='
//
// The router is at TANDEM_ADDRESS, else at 127.0.0.1:50051.

import { connect, deadline, refusalOf, SERVICE_CONFIG } from "./tandem.mjs";

const texts = process.argv.slice(2);
const client = connect("RouterService", process.env.TANDEM_ADDRESS ?? "127.0.0.1:50051", {
  // Embed is idempotent: gRPC may repeat it at any time before its answer.
  "grpc.service_config": SERVICE_CONFIG,
  // 2,048 vectors of 4,096 values are 33 MB; a client takes 4 MB unless it is told.
  "grpc.max_receive_message_length": 64 * 1024 * 1024,
});

// Up to 2,048 inputs: one call with all of them costs far less than a call for each.
client.Embed({ inputs: texts.map((text) => ({ text })) }, deadline(30), (error, answer) => {
  client.close();
  if (error) {
    // field names the input at fault, if one is: inputs[2].text
    const { code, message } = refusalOf(error);
    console.error(`${code}: ${message}`);
    process.exitCode = 1;
    return;
  }
  const first = answer.embeddings[0].values;
  for (const { index, values } of answer.embeddings) {
    // Vectors have length 1 unless normalize is false, so the product is the cosine.
    const cosine = values.reduce((sum, value, at) => sum + value * first[at], 0);
    console.log(`${cosine < 0 ? "" : "+"}${cosine.toFixed(3)} ${texts[index]}`);
  }
  console.error(`${answer.usage.prompt_tokens} tokens, ${first.length} values each, ${answer.served_model}`);
});
