// Two ways in which a Node client gets our schema: from the router itself by reflection, or from the .proto files.

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import reflection from "grpc-js-reflection-client";

// Revisions are 64 bits wide and do not fit into a JavaScript number.
const OPTIONS = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };

const SERVICES = {
  public: ["tandem.v1.RouterService", "grpc.health.v1.Health"],
  admin: ["tandem.v1.WorkerService", "tandem.v1.JobService", "tandem.v1.PairService"],
};

// Returns {RouterService: client, ...} for both listeners.
export async function connect(how, addresses, protoFolder) {
  const clients = {};
  for (const [listener, names] of Object.entries(SERVICES)) {
    const address = addresses[listener];
    for (const name of names) {
      const root = how === "reflection" ? await reflected(address, name) : loaded(protoFolder, name);
      const Client = name.split(".").reduce((scope, part) => scope[part], root);
      clients[name.split(".").at(-1)] = new Client(address, grpc.credentials.createInsecure());
    }
  }
  return clients;
}

// A map field's value. protobufjs 8.8 does not make maps of what reflection tells; it wants their entries, which are the
// same bytes.
export function mapOf(how, object) {
  return how === "reflection" ? Object.entries(object).map(([key, value]) => ({ key, value })) : object;
}

async function reflected(address, name) {
  const source = new reflection.GrpcReflection(address, grpc.credentials.createInsecure());
  return (await source.getDescriptorBySymbol(name)).getPackageObject(OPTIONS);
}

function loaded(protoFolder, name) {
  if (name === "grpc.health.v1.Health") {
    return grpc.loadPackageDefinition(protoLoader.fromJSON(HEALTH, OPTIONS));
  }
  const [, , service] = name.split(".");
  const file = `tandem/v1/${service.replace("Service", "").toLowerCase()}_service.proto`;
  return grpc.loadPackageDefinition(protoLoader.loadSync(file, { ...OPTIONS, includeDirs: [protoFolder] }));
}

// What a mesh's probe needs of grpc/health/v1/health.proto.
const HEALTH = {
  nested: {
    "grpc.health.v1": {
      nested: {
        HealthCheckRequest: { fields: { service: { type: "string", id: 1 } } },
        HealthCheckResponse: {
          fields: { status: { type: "ServingStatus", id: 1 } },
          nested: { ServingStatus: { values: { UNKNOWN: 0, SERVING: 1, NOT_SERVING: 2, SERVICE_UNKNOWN: 3 } } },
        },
        Health: {
          methods: { Check: { requestType: "HealthCheckRequest", responseType: "HealthCheckResponse" } },
        },
      },
    },
  },
};
