// Follow the fleet for as long as you like: over broken connections, restarts of the router, and history that is gone.
//
//   node watch_workers.mjs            # until Ctrl-C
//   node watch_workers.mjs --once     # what there is now
//
// The router's admin listener is at TANDEM_ADMIN_ADDRESS, else at 127.0.0.1:50052.

import { setTimeout as sleep } from "node:timers/promises";
import { connect, refusalOf } from "./tandem.mjs";

const once = process.argv.includes("--once");
const client = connect("WorkerService", process.env.TANDEM_ADMIN_ADDRESS ?? "127.0.0.1:50052", {
  "grpc.max_reconnect_backoff_ms": 2000,
});

let workers = new Map(); // a copy of the router's, kept true by the watch
let revision = null; // where to resume; null: begin with a snapshot

const say = (at, what, worker) =>
  console.log([at ?? "", what, ...(worker ? [worker.id, worker.spec.url, worker.status.slice(14)] : [])].join(" "));

// Reads one watch until it ends; throws its error.
async function read() {
  // PROGRESS moves our place on while nothing changes, so that it does not grow too old to resume from.
  const request = { stop_after_synced: once, progress_interval: { seconds: 10 } };
  if (revision !== null) request.from_revision = revision;
  const snapshot = revision === null ? new Map() : null;
  for await (const event of client.WatchWorkers(request)) {
    const what = event.type.replace("WATCH_EVENT_TYPE_", "");
    const { worker } = event;
    if (what === "SNAPSHOT") {
      snapshot.set(worker.id, worker);
      continue; // no place to resume from before SYNCED
    }
    if (what === "SYNCED") {
      if (snapshot !== null) take(snapshot);
      say(event.revision, `SYNCED, ${workers.size} workers`);
    } else if (what === "REMOVED") {
      workers.delete(worker.id);
      say(event.revision, what, worker);
    } else if (what === "ADDED" || what === "UPDATED") {
      workers.set(worker.id, worker); // it comes whole: replace, never merge
      say(event.revision, what, worker);
    }
    revision = event.revision; // a string: it has 64 bits
  }
}

// What went away while we were not looking is in no delta: it is only absent from the snapshot.
function take(snapshot) {
  for (const id of workers.keys()) if (!snapshot.has(id)) say(null, `GONE ${id}`);
  workers = snapshot;
  for (const worker of snapshot.values()) say(null, "PRESENT", worker);
}

for (let goesOn = true; goesOn; ) {
  try {
    await read();
    goesOn = false;
  } catch (error) {
    const refusal = refusalOf(error);
    if (refusal.reason === "REVISION_COMPACTED") {
      revision = null; // our place is too old, or of another life of the router
    } else if (refusal.code === "UNAVAILABLE") {
      console.error(`[${refusal.reason || "not connected"}; trying again]`);
      await sleep(500);
    } else if (refusal.reason !== "SLOW_CLIENT") { // after SLOW_CLIENT nothing was skipped: resume
      console.error(`${refusal.code}: ${refusal.message}`);
      process.exitCode = 1;
      goesOn = false;
    }
  }
}
client.close();
