// Calls the service by gRPC-Web as a page of another origin would: it sees only the headers that the proxy exposes to it.
// Its settings come as JSON in the first argument; what it found goes to standard output, as JSON.
import { readFileSync } from "node:fs";
import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

const { address, origin, token, protos } = JSON.parse(process.argv[2]);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(protos)));
const SAFE = ["cache-control", "content-language", "content-length", "content-type", "expires", "last-modified", "pragma"];
const list = (value) => (value ?? "").split(",").map((word) => word.trim().toLowerCase()).filter(Boolean);

let exposed = [];
let asked = [];

// A browser asks first whether the page may send these headers, and then shows it the exposed ones of the answer alone.
async function asBrowser(url, init) {
  const headers = new Headers(init.headers);
  asked = [...headers.keys()].filter((name) => !["accept", "accept-language", "content-language"].includes(name));
  const preflight = await fetch(url, {
    method: "OPTIONS",
    headers: { origin, "access-control-request-method": "POST", "access-control-request-headers": asked.join(",") },
  });
  const allowed = list(preflight.headers.get("access-control-allow-headers"));
  const refused = asked.filter((name) => !allowed.includes(name));
  if (!preflight.ok || preflight.headers.get("access-control-allow-origin") !== origin || refused.length > 0) {
    throw new Error(`the preflight was answered with ${preflight.status}; refused: ${refused.join(", ") || "the origin"}`);
  }
  headers.set("origin", origin);
  const response = await fetch(url, { ...init, headers });
  if (response.headers.get("access-control-allow-origin") !== origin) throw new Error("the answer does not allow the origin");
  exposed = list(response.headers.get("access-control-expose-headers"));
  const shown = [...response.headers].filter(([name]) => SAFE.includes(name) || exposed.includes(name));
  return new Response(response.body, { status: response.status, headers: shown });
}

const withToken = (next) => (request) => {
  request.header.set("authorization", `Bearer ${token}`);
  request.header.set("x-request-id", "from-a-page");
  return next(request);
};
const transport = createGrpcWebTransport({ baseUrl: `https://${address}`, fetch: asBrowser, interceptors: [withToken] });
const sessions = createClient(registry.getService("turnkeeper.v1.SessionService"), transport);
const detail = registry.getMessage("turnkeeper.v1.SessionErrorDetail");

const found = {};
let requestId = "";
const created = await sessions.createSession(
  { agent: "worker", requestId: "from-a-page" },
  { timeoutMs: 10000, onHeader: (headers) => { requestId = headers.get("x-request-id") ?? ""; } },
);
found.session = created.session.sessionId;
found.requestId = requestId;
try {
  await sessions.getSession({ sessionId: "no-such-session" }, { timeoutMs: 10000 });
} catch (error) {
  const refused = ConnectError.from(error);
  found.error = Code[refused.code];
  found.details = refused.findDetails(detail).length;
}
let events = 0;
for await (const response of sessions.watchEvents({ sessionId: found.session, follow: false }, { timeoutMs: 10000 })) {
  events += response.events.length;
}
found.events = events;
found.exposed = exposed;
console.log(JSON.stringify(found));
