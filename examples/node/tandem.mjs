// What every program here needs: a client made from the .proto files, and why a call failed.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const beside = (path) => fileURLToPath(new URL(path, import.meta.url));
const PROTO = process.env.TANDEM_PROTO ?? beside("../../proto");

// longs: revisions have 64 bits, a JavaScript number has 53.
const LOADING = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true, includeDirs: [PROTO] };

// A stock policy that gRPC carries out by itself: it repeats a call until response headers come, which is when the first
// token does; never after that.
export const SERVICE_CONFIG = readFileSync(process.env.TANDEM_SERVICE_CONFIG ?? beside("../service_config.json"), "utf8");

// A client of "RouterService" (clients' listener) or "WorkerService" (operators' listener).
export function connect(service, address, options = {}) {
  const file = `tandem/v1/${service.replace("Service", "").toLowerCase()}_service.proto`;
  const { tandem } = grpc.loadPackageDefinition(protoLoader.loadSync(file, LOADING));
  return new tandem.v1[service](address, grpc.credentials.createInsecure(), options);
}

export const deadline = (seconds) => ({ deadline: new Date(Date.now() + seconds * 1000) });

// Why a call failed: {code, message, reason, field, retryAfterMs, mayBeRepeated}. reason is one of docs/errors.md, or ""
// where the status is not Tandem's: the connection failed, the deadline passed here, or a proxy spoke.
export function refusalOf(error) {
  const refusal = { code: grpc.status[error.code], message: error.details, reason: "", field: "", retryAfterMs: null };
  const [packed] = error.metadata?.get("grpc-status-details-bin") ?? [];
  for (const { type_url, value } of packed ? decode("Status", packed).details : []) {
    const type = type_url.split("google.rpc.").at(-1);
    if (!(type in DETAILS)) continue; // others may be added
    const detail = decode(type, value);
    if (type === "ErrorInfo" && detail.domain === "tandem") refusal.reason = detail.reason;
    if (type === "BadRequest") refusal.field = detail.field_violations[0].field;
    if (type === "RetryInfo") refusal.retryAfterMs = Number(detail.retry_delay.seconds) * 1000 + detail.retry_delay.nanos / 1e6;
  }
  refusal.mayBeRepeated =
    refusal.code === "UNAVAILABLE" || ["TOO_MANY_REQUESTS", "ENGINE_ABORTED"].includes(refusal.reason);
  return refusal;
}

// The part of google/rpc/status.proto and error_details.proto that is read here; npm has no package with the whole.
const DETAILS = {
  Status: {
    fields: { code: { type: "int32", id: 1 }, message: { type: "string", id: 2 }, details: { rule: "repeated", type: "Any", id: 3 } },
  },
  Any: { fields: { type_url: { type: "string", id: 1 }, value: { type: "bytes", id: 2 } } },
  ErrorInfo: { fields: { reason: { type: "string", id: 1 }, domain: { type: "string", id: 2 } } },
  BadRequest: {
    fields: { field_violations: { rule: "repeated", type: "FieldViolation", id: 1 } },
    nested: { FieldViolation: { fields: { field: { type: "string", id: 1 }, description: { type: "string", id: 2 } } } },
  },
  RetryInfo: {
    fields: { retry_delay: { type: "Delay", id: 1 } },
    nested: { Delay: { fields: { seconds: { type: "int64", id: 1 }, nanos: { type: "int32", id: 2 } } } },
  },
};
const decoders = protoLoader.fromJSON({ nested: { details: { nested: DETAILS } } }, { ...LOADING, includeDirs: [] });
const decode = (type, bytes) => decoders[`details.${type}`].deserialize(bytes);
