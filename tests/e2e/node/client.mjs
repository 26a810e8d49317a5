// An operator and a client in one: registers workers, watches them come up, asks for an answer, and takes it all down
// again. Prints what it saw as one JSON object; the test that runs it judges.
//
// usage: node client.mjs reflection|files PUBLIC ADMIN PROTO_FOLDER PREFILL DECODE   (addresses are host:port)

import { promisify } from "node:util";
import { connect, mapOf } from "./schema.mjs";

const [how, publicAddress, adminAddress, protoFolder, prefill, decode] = process.argv.slice(2);
const PROMPT = "repeat “hello 🙂” :";
const PATIENCE_MS = 30_000;

const clients = await connect(how, { public: publicAddress, admin: adminAddress }, protoFolder);
const { RouterService, WorkerService, JobService, PairService, Health } = clients;
const labels = mapOf(how, { from: "node" });
const saw = {};

const deadline = () => ({ deadline: new Date(Date.now() + PATIENCE_MS) });
const call = (client, method, request) =>
  promisify((done) => client[method](request, deadline(), done))();

// Reads a stream until `until` says that this message was the last one wanted; returns every message read.
async function read(stream, until = () => false) {
  const messages = [];
  try {
    for await (const message of stream) {
      messages.push(message);
      if (until(message)) break;
    }
  } finally {
    stream.on("error", () => {}); // our own cancel comes back as an error event
    stream.cancel();
  }
  return messages;
}

async function refusal(promise) {
  try {
    await promise;
    return null;
  } catch (error) {
    return { code: error.code, message: error.details, details: error.metadata.get("grpc-status-details-bin").length };
  }
}

async function endOf(job) {
  const states = await read(JobService.WatchJob({ job_id: job.id }, deadline()));
  return states.at(-1).job.state;
}

const created = [];
for (const [address, worker_type] of [[prefill, "WORKER_TYPE_PREFILL"], [decode, "WORKER_TYPE_DECODE"]]) {
  const request = { spec: { url: `grpc://${address}`, worker_type, labels } };
  created.push(await call(WorkerService, "CreateWorker", request));
}
saw.created = created.map(({ worker }) => ({ status: worker.status, generation: worker.generation }));
saw.again = await refusal(call(WorkerService, "CreateWorker", { spec: { url: `grpc://${prefill}` } }));

const ready = new Set();
let synced = false;
const events = await read(WorkerService.WatchWorkers({ filter: { labels } }, deadline()), (event) => {
  synced ||= event.type === "WATCH_EVENT_TYPE_SYNCED";
  if (event.worker?.status === "WORKER_STATUS_READY") ready.add(event.worker.id);
  return synced && ready.size === 2;
});
saw.watched = { types: [...new Set(events.map((event) => event.type))], ready: ready.size };
saw.revisions = events.map((event) => event.revision);
saw.registered = await Promise.all(created.map(({ job }) => endOf(job)));

saw.health = {};
for (const service of ["", "readiness", "liveness", "tandem.v1.RouterService"]) {
  saw.health[service] = (await call(Health, "Check", { service })).status;
}

const question = { text: PROMPT, sampling: { temperature: 0 } };
const { plan } = await call(PairService, "PlanPair", { request: question });
saw.plan = {
  serving_mode: plan.serving_mode,
  prefill_is_ours: plan.prefill.worker_id === created[0].worker.id,
  decode_is_ours: plan.decode.worker_id === created[1].worker.id,
  failure: plan.failure,
};

const answer = await read(RouterService.Generate(question, deadline()));
const { finished } = answer.at(-1);
saw.answer = {
  chunks: answer.filter((message) => message.chunk).length,
  text: answer.flatMap((message) => message.chunk?.text ?? []).join(""),
  reasons: finished.choices.map((choice) => choice.reason),
  handshake: finished.served_by.handshake,
  attempts: finished.attempts.length,
};

const worker_id = created[1].worker.id;
const drained = await call(WorkerService, "DrainWorker", { worker_id, reason: "a new kernel" });
saw.drained = { status: drained.worker.status, reason: drained.worker.drain.reason, job: await endOf(drained.job) };
saw.without_decode = await refusal(read(RouterService.Generate(question, deadline())));

await call(WorkerService, "UndrainWorker", { worker_id });
const back = await read(
  WorkerService.WatchWorkers({}, deadline()),
  (event) => event.worker?.id === worker_id && event.worker.status === "WORKER_STATUS_READY",
);
saw.undrained = back.at(-1).worker.status;

saw.deleted = [];
for (const { worker } of created) {
  const { job } = await call(WorkerService, "DeleteWorker", { worker_id: worker.id, drain_timeout: { seconds: 5 } });
  saw.deleted.push(await endOf(job));
}
saw.after = await refusal(call(WorkerService, "GetWorker", { worker_id }));
const left = await read(WorkerService.WatchWorkers({ stop_after_synced: true }, deadline()));
saw.left = left.map((event) => event.type);

Object.values(clients).forEach((client) => client.close());
console.log(JSON.stringify(saw));
