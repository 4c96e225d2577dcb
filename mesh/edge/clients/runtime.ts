// -- runtime: the same for every contract --

/** 64-bit integer as decimal text: a JavaScript number would lose digits. */
export type Int64 = string;
/** Bytes as base64 text; see `toBase64` and `fromBase64`. */
export type Base64 = string;
/** Time as RFC 3339 text, such as "2026-01-31T12:00:00Z". */
export type Timestamp = string;
/** Seconds as text, such as "1.5s". */
export type Duration = string;
/** Paths of fields, joined by commas, such as "name,homeAddress.zip". */
export type FieldMask = string;
export type JsonValue = null | boolean | number | string | JsonValue[] | JsonObject;
export type JsonObject = { [key: string]: JsonValue };
/** Message of any type: "@type" names it, its fields stand beside it. */
export type AnyMessage = { "@type": string; [key: string]: unknown };
/** Body of any media type, as it is sent. */
export interface HttpBodyInput {
  contentType?: string | undefined;
  data: BodyInit;
}
/** Body of any media type, as it was received. */
export interface HttpBody {
  contentType: string;
  data: Blob;
}
/** At most one of the fields is set. */
type OneOf<T> =
  | { [K in keyof T]: { [P in K]: T[P] } & { [P in Exclude<keyof T, K>]?: undefined } }[keyof T]
  | { [P in keyof T]?: undefined };

const CODES = [
  "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
  "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE",
  "DATA_LOSS", "UNAUTHENTICATED",
] as const;
/** Standard code of an error. */
export type Code = Exclude<(typeof CODES)[number], "OK">;

/** What is wrong with one field of a request. */
export interface FieldViolation {
  /** Path of the field; a JSON name, or that of the .proto file. */
  field: string;
  description: string;
  /** Id of the rule, if one is broken. */
  reason?: string;
}

/** A call has failed. */
export class MeshError extends Error {
  override readonly name: string = "MeshError";
  readonly code: Code;
  /** HTTP status; 0: there is no response. */
  readonly status: number;
  /** Details of the error: `google.rpc.ErrorInfo`, `google.rpc.BadRequest`, messages of the contract. */
  readonly details: readonly AnyMessage[];
  /** Fields of the request that are wrong, of the detail `google.rpc.BadRequest`. */
  readonly violations: readonly FieldViolation[];
  /** Seconds to wait before the next attempt, if the server says so. */
  readonly retryAfter: number | undefined;
  /** Trace of the request, for `mesh trace`. */
  readonly traceId: string | undefined;

  constructor(
    code: Code,
    message: string,
    more: { status?: number; details?: readonly AnyMessage[]; headers?: Headers; cause?: unknown } = {},
  ) {
    super(message, { cause: more.cause });
    this.code = code;
    this.status = more.status ?? 0;
    this.details = more.details ?? [];
    this.violations = this.details
      .filter((detail) => detail["@type"] === "type.googleapis.com/google.rpc.BadRequest")
      .flatMap((detail) => (detail["fieldViolations"] as FieldViolation[] | undefined) ?? []);
    const seconds = Number(more.headers?.get("retry-after") ?? NaN);
    this.retryAfter = Number.isFinite(seconds) ? seconds : undefined;
    this.traceId = more.headers?.get("x-trace-id") ?? undefined;
  }
}

export interface ClientOptions {
  /** URL of the edge; by default that of the page. */
  baseUrl?: string | undefined;
  /** Access token of the user, or an API key. It is not sent with methods that anybody may call. */
  token?: string | undefined;
  /**
   * Returns a new access token, or undefined if the user has to log in again. It is called once when the server refuses
   * the token, for all calls in progress, which are then made again.
   */
  refresh?: (() => Promise<string | undefined>) | undefined;
  /** Headers of every request. */
  headers?: Readonly<Record<string, string>> | undefined;
  /** Milliseconds that a call may take; by default the server decides. Streams have no limit by default. */
  timeout?: number | undefined;
  /** Whether cookies are sent (Fetch standard). */
  credentials?: RequestCredentials | undefined;
  /** Replacement of `fetch`. */
  fetch?: typeof fetch | undefined;
}

export interface CallOptions {
  /** Cancels the call. */
  signal?: AbortSignal | undefined;
  /** Milliseconds that the call may take, a stream to its end. */
  timeout?: number | undefined;
  /** Headers of this request. */
  headers?: Readonly<Record<string, string>> | undefined;
}

/** Bytes as base64 text. */
export function toBase64(bytes: Uint8Array): Base64 {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/** Base64 text as bytes. */
export function fromBase64(text: Base64): Uint8Array {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

/** Field of a response: name, kind, type of a value ("#": floating point), value of a field that is left out. */
type Field = readonly [name: string, kind: "value" | "list" | "map", type?: string | undefined, absent?: unknown];
/** HTTP route of a method. A variable of the path is the way to its field; the last element tells whether it has slashes. */
interface Route {
  verb: string;
  path: readonly (string | readonly [readonly string[], boolean])[];
  /** Field that is the body; "*": the whole request. */
  body?: string;
  /** Whether anybody may call the method. */
  open?: true;
  /** Whether the body of the request, of the response, is bytes. */
  bytes?: "in" | "out" | "both";
  response: Field;
}

/** Value of the JSON of a response: fields that are left out have their default. */
function filled([name, kind, type, absent]: Field, value: unknown): unknown {
  if (value === undefined) return kind === "list" ? [] : kind === "map" ? {} : absent;
  if (value === null || type === undefined) return value;
  if (kind === "list") return (value as unknown[]).map((one) => filled([name, "value", type], one));
  if (kind === "map") {
    const entries = Object.entries(value as object);
    return Object.fromEntries(entries.map(([key, one]) => [key, filled([name, "value", type], one)]));
  }
  if (type === "#") return Number(value);
  const message = value as Record<string, unknown>;
  for (const field of MESSAGES[type] ?? []) {
    const found = filled(field, message[field[0]]);
    if (found !== undefined) message[field[0]] = found;
  }
  return message;
}

/** JSON of a request. JSON has no NaN and no Infinity; proto3 JSON writes them as text. */
function encoded(value: unknown): string {
  return JSON.stringify(value, (_, one: unknown) => (typeof one === "number" && !Number.isFinite(one) ? String(one) : one));
}

function pathOf(route: Route, request: unknown): string {
  const parts = route.path.map((part) => {
    if (typeof part === "string") return part;
    const [names, slashes] = part;
    const text = String(names.reduce<unknown>((at, name) => (at as Record<string, unknown> | undefined)?.[name], request) ?? "");
    const segments = slashes ? text.split("/") : [text];
    // A URL with an empty segment, "." or ".." is another path.
    if ((text === "" && !slashes) || segments.some((one) => one === "." || one === ".."))
      throw new MeshError("INVALID_ARGUMENT", `${names.join(".")}: ${JSON.stringify(text)} cannot be part of a path`);
    return segments.map(encodeURIComponent).join("/");
  });
  return parts.join("");
}

function queryOf(route: Route, request: object): string {
  const query = new URLSearchParams();
  const inPath = new Set(route.path.map((part) => (typeof part === "string" ? "" : part[0].join("."))));
  const add = (name: string, value: unknown): void => {
    if (value === undefined || value === null || name === route.body || inPath.has(name)) return;
    if (Array.isArray(value)) value.forEach((one) => add(name, one));
    else if (typeof value === "object") Object.entries(value).forEach(([key, one]) => add(`${name}.${key}`, one));
    else query.append(name, String(value));
  };
  if (route.body !== "*") Object.entries(request).forEach(([key, one]) => add(key, one));
  const text = query.toString();
  return text && `?${text}`;
}

function codeOf(status: number): Code {
  const codes: Record<number, Code> = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND", 409: "ABORTED",
    413: "OUT_OF_RANGE", 429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE",
    503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED",
  };
  return codes[status] ?? (status >= 500 ? "INTERNAL" : "UNKNOWN");
}

/** The error of a `google.rpc.Status`; of the HTTP status, if a proxy answered. */
function errorOf(body: unknown, status: number, headers?: Headers): MeshError {
  const more = { status, ...(headers && { headers }) };
  if (typeof body !== "object" || body === null || typeof (body as { code?: unknown }).code !== "number")
    return new MeshError(codeOf(status), typeof body === "string" && body ? body : `HTTP status ${status}`, more);
  const found = body as { code: number; message?: string; details?: AnyMessage[] };
  const code = CODES[found.code];
  return new MeshError(!code || code === "OK" ? "UNKNOWN" : code, found.message ?? "", { ...more, details: found.details ?? [] });
}

/** Cancels a request with the caller's signal or after a time. */
class Cancel {
  readonly signal: AbortSignal;
  readonly #controller = new AbortController();
  readonly #outer: AbortSignal | undefined;
  readonly #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #abort = (): void => this.#controller.abort(this.#outer?.reason);
  #late = false;

  constructor(signal: AbortSignal | undefined, timeout: number | undefined) {
    this.signal = this.#controller.signal;
    this.#outer = signal;
    if (signal?.aborted) this.#abort();
    signal?.addEventListener("abort", this.#abort);
    if (timeout !== undefined)
      this.#timer = setTimeout(() => {
        this.#late = true;
        this.#controller.abort();
      }, timeout);
  }

  stop(): void {
    this.#controller.abort();
  }

  done(): void {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener("abort", this.#abort);
  }

  /** What the failure of a request means. */
  error(cause: unknown): unknown {
    if (cause instanceof MeshError) return cause;
    if (this.#late) return new MeshError("DEADLINE_EXCEEDED", "the call took too long", { cause });
    if (this.signal.aborted) return new MeshError("CANCELLED", "the call was cancelled", { cause });
    return new MeshError("UNAVAILABLE", "the server cannot be reached, or the connection was lost", { cause });
  }
}

/** What all services of a client share. */
class Connection {
  token: string | undefined;
  readonly options: ClientOptions;
  #refreshed: Promise<string | undefined> | undefined;

  constructor(options: ClientOptions) {
    this.options = options;
    this.token = options.token;
  }

  get base(): string {
    return (this.options.baseUrl ?? globalThis.location?.origin ?? "").replace(/\/+$/, "");
  }

  /** A response with a status of success. */
  async response(url: string, route: Route, init: RequestInit, options: CallOptions): Promise<Response> {
    const fetched = this.options.fetch ?? fetch;
    for (let attempt = 1; ; attempt++) {
      const token = route.open ? undefined : this.token;
      const headers = new Headers({ ...this.options.headers, ...(init.headers as Record<string, string>), ...options.headers });
      if (token !== undefined && !headers.has("authorization")) headers.set("authorization", `Bearer ${token}`);
      const { credentials } = this.options;
      const response = await fetched(this.base + url, { ...init, headers, ...(credentials && { credentials }) });
      if (response.ok) return response;
      if (response.status === 401 && attempt === 1 && !route.open && (await this.#refresh(token))) {
        void response.body?.cancel();
        continue;
      }
      const text = await response.text();
      let body: unknown = text;
      try {
        body = JSON.parse(text);
      } catch {
        // a proxy's page
      }
      throw errorOf(body, response.status, response.headers);
    }
  }

  /** Whether there is another token than the one that was refused. */
  async #refresh(refused: string | undefined): Promise<boolean> {
    const { refresh } = this.options;
    if (this.token !== refused) return this.token !== undefined;
    if (refresh === undefined) return false;
    this.#refreshed ??= refresh().finally(() => (this.#refreshed = undefined));
    this.token = await this.#refreshed;
    return this.token !== undefined;
  }

  request(route: Route, request: object): { url: string; init: RequestInit } {
    const url = pathOf(route, request) + queryOf(route, request);
    const init: RequestInit = { method: route.verb, headers: {} };
    if (route.body === undefined) return { url, init };
    const body = route.body === "*" ? request : (request as Record<string, unknown>)[route.body];
    if (route.bytes === "in" || route.bytes === "both") {
      const { contentType, data } = body as HttpBodyInput;
      return { url, init: { ...init, body: data, headers: { "content-type": contentType ?? "application/octet-stream" } } };
    }
    return { url, init: { ...init, body: encoded(body ?? {}), headers: { "content-type": "application/json" } } };
  }

  async call<T>(route: Route, request: object, options: CallOptions): Promise<T> {
    const { url, init } = this.request(route, request);
    return this.unary(route, url, init, options);
  }

  async unary<T>(route: Route, url: string, init: RequestInit, options: CallOptions): Promise<T> {
    const cancel = new Cancel(options.signal, options.timeout ?? this.options.timeout);
    try {
      const response = await this.response(url, route, { ...init, signal: cancel.signal }, options);
      if (route.bytes === "out" || route.bytes === "both") {
        const found: HttpBody = { contentType: response.headers.get("content-type") ?? "", data: await response.blob() };
        return found as T;
      }
      const text = await response.text();
      return filled(route.response, text ? JSON.parse(text) : {}) as T;
    } catch (error) {
      throw cancel.error(error);
    } finally {
      cancel.done();
    }
  }

  /** Messages of requests as the lines of one body; path and query come from the first one. */
  async upload<T>(route: Route, requests: Iterable<object> | AsyncIterable<object>, options: CallOptions): Promise<T> {
    const lines: string[] = [];
    let url: string | undefined;
    for await (const request of requests) {
      url ??= pathOf(route, request);
      lines.push(`${encoded(request)}\n`);
    }
    const headers = { "content-type": "application/x-ndjson" };
    return this.unary(route, url ?? pathOf(route, {}), { method: route.verb, headers, body: lines.join("") }, options);
  }

  /** Messages of a response, as server-sent events. */
  async *stream<T>(route: Route, request: object, options: CallOptions): AsyncGenerator<T, void, undefined> {
    const { url, init } = this.request(route, request);
    const cancel = new Cancel(options.signal, options.timeout);
    const bytes = route.bytes === "out" || route.bytes === "both";
    const headers = { ...(init.headers as Record<string, string>), ...(bytes ? {} : { accept: "text/event-stream" }) };
    try {
      const response = await this.response(url, route, { ...init, headers, signal: cancel.signal }, options);
      if (response.body === null) return;
      if (bytes) yield* chunks(response.body) as AsyncGenerator<T>;
      else
        for await (const event of events(response.body)) {
          const data: unknown = JSON.parse(event.data);
          if (event.name === "error") throw errorOf(data, response.status, response.headers);
          yield filled(route.response, data) as T;
        }
    } catch (error) {
      throw cancel.error(error);
    } finally {
      cancel.stop(); // also when the caller leaves the loop early
      cancel.done();
    }
  }

  /** Messages in both directions at once, over a WebSocket; path and query come from the first request. */
  async *exchange<T>(
    route: Route,
    requests: Iterable<object> | AsyncIterable<object>,
    options: CallOptions,
  ): AsyncGenerator<T, void, undefined> {
    const iterator = Symbol.asyncIterator in requests ? requests[Symbol.asyncIterator]() : requests[Symbol.iterator]();
    const first = await iterator.next();
    const url = this.base.replace(/^http/, "ws") + pathOf(route, first.done ? {} : first.value);
    const cancel = new Cancel(options.signal, options.timeout);
    const token = route.open ? undefined : this.token;
    const socket = new WebSocket(url, token === undefined ? [] : ["bearer", token]);
    const received: unknown[] = [];
    let ended: unknown; // undefined: open; null: ended well; else the error
    let wake: () => void = () => undefined;
    const end = (how: unknown): void => {
      if (ended === undefined) ended = how;
      wake();
    };
    cancel.signal.addEventListener("abort", () => end(cancel.error(undefined)));
    const opened = new Promise<void>((resolve) => socket.addEventListener("open", () => resolve()));
    socket.addEventListener("message", (event: MessageEvent<string>) => {
      received.push(JSON.parse(event.data));
      wake();
    });
    socket.addEventListener("close", (event) => {
      if (event.code === 1000) return end(null);
      const last = event.code >= 4000 ? (received.pop() as { error?: unknown }) : undefined;
      end(last ? errorOf(last.error, 200) : new MeshError("UNAVAILABLE", `the connection was closed (${event.code})`));
    });
    const send = async (): Promise<void> => {
      await opened;
      for (let next = first; !next.done; next = await iterator.next()) {
        if (ended !== undefined) return;
        socket.send(encoded(next.value));
        while (socket.bufferedAmount > 1 << 20) await new Promise((resolve) => setTimeout(resolve, 10));
      }
      if (socket.readyState === WebSocket.OPEN) socket.send("");
    };
    send().catch(end);
    try {
      for (;;) {
        // The last text frame of a failed call is its error, which only the close frame tells.
        while (received.length > 1 || (received.length === 1 && (ended === null || !isError(received[0]))))
          yield filled(route.response, received.shift()) as T;
        if (ended !== undefined && received.length === 0) break;
        if (ended !== undefined && ended !== null) break;
        await new Promise<void>((resolve) => (wake = resolve));
      }
      if (ended !== null) throw ended;
    } finally {
      cancel.done();
      socket.close();
      await iterator.return?.();
    }
  }
}

function isError(value: unknown): boolean {
  return typeof value === "object" && value !== null && Object.keys(value).join() === "error";
}

async function* chunks(body: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array, void, undefined> {
  const reader = body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

/** Server-sent events (HTML standard, "Server-sent events"). */
async function* events(
  body: ReadableStream<Uint8Array>,
): AsyncGenerator<{ name: string; data: string }, void, undefined> {
  const decoder = new TextDecoder();
  let text = "";
  let name = "";
  let data: string[] = [];
  for await (const chunk of chunks(body)) {
    text += decoder.decode(chunk, { stream: true });
    const lines = text.split("\n");
    text = lines.pop() ?? "";
    for (const line of lines) {
      const value = line.slice(line.indexOf(":") + 1).replace(/^ /, "").replace(/\r$/, "");
      if (line.startsWith("event:")) name = value;
      else if (line.startsWith("data:")) data.push(value);
      else if (line.trim() === "" && data.length) {
        yield { name, data: data.join("\n") };
        name = "";
        data = [];
      }
    }
  }
}
