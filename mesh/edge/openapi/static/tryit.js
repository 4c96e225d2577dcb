// "Try it": a form for one operation, its request, and the response as it arrives.
import { h } from "./dom.js";

const MAX_SHOWN = 500_000; // characters of a response that are shown

export function tryIt(operation, schemas, base, token) {
  const fields = (operation.parameters ?? []).map((parameter) => field(parameter, schemas));
  const body = requestBody(operation, schemas);
  const accept = acceptChoice(operation);
  const output = h("section", { class: "result", "aria-live": "polite", "aria-label": "Response" });
  const curl = h("pre", { class: "curl", tabindex: "0" });
  const send = h("button", { type: "submit", class: "primary" }, "Send");
  const stop = h("button", { type: "button", class: "button", hidden: true, click: () => abort?.abort() }, "Stop");
  let abort = null;

  const make = () => request(operation, fields, body, accept, base, token());
  const show = () => { curl.textContent = asCurl(make()); };

  async function submit(event) {
    event.preventDefault();
    abort = new AbortController();
    send.disabled = true;
    stop.hidden = false;
    output.setAttribute("aria-busy", "true");
    try {
      await run(make(), output, abort.signal);
    } catch (error) {
      output.replaceChildren(h("p", { class: "failed" }, error.name === "AbortError" ? "Stopped." : `No response: ${error.message}.`));
    } finally {
      send.disabled = false;
      stop.hidden = true;
      output.removeAttribute("aria-busy");
    }
  }

  const form = h("form", { class: "try", submit, input: show, change: show },
    h("h3", {}, "Try it"),
    operation.security?.length ? h("p", { class: "quiet" }, "Needs an access token (above).") : null,
    fields.map((one) => one.row),
    body?.row, accept?.row,
    h("div", { class: "actions" }, send, stop),
    h("details", {}, h("summary", {}, "As a command"), curl),
    output);
  form.addEventListener("focusin", show);
  show();
  return form;
}

function field(parameter, schemas) {
  const schema = schemas.resolve(parameter.schema);
  const id = `parameter-${parameter.in}-${parameter.name}`;
  const many = schema.type === "array";
  const item = schemas.resolve(many ? schema.items : schema);
  const choices = item.enum ?? (item.type === "boolean" ? ["true", "false"] : null);
  const input = many ? h("textarea", { id, rows: 2, placeholder: "one value a line" })
    : choices ? h("select", { id }, h("option", { value: "" }, ""), choices.map((one) => h("option", {}, one)))
    : h("input", { id, required: parameter.in === "path" && !parameter["x-multi-segment"], autocomplete: "off",
        placeholder: item.examples?.[0] ?? item.format ?? "" });
  return {
    parameter,
    values: () => (many ? input.value.split("\n") : [input.value]).filter((one) => one !== ""),
    row: h("div", { class: "row" }, h("label", { for: id }, h("code", {}, parameter.name), " ",
      h("span", { class: "type" }, parameter.in)), input),
  };
}

function requestBody(operation, schemas) {
  const content = operation.requestBody?.content;
  if (!content) return null;
  const [media, { schema }] = Object.entries(content)[0];
  const example = JSON.stringify(schemas.example(schemas.inner(schema)), null, media === "application/json" ? 2 : 0);
  const whole = media === "application/json" ? JSON.stringify(schemas.example(schema), null, 2) : media === "*/*" ? "" : example;
  const rows = Math.min(16, Math.max(3, whole.split("\n").length));
  const text = h("textarea", { id: "body", rows, spellcheck: "false" }, whole);
  const note = h("small", { class: "failed", role: "status" });
  text.addEventListener("input", () => {
    try {
      if (media === "application/json" && text.value.trim()) JSON.parse(text.value);
      note.textContent = "";
    } catch (error) {
      note.textContent = error.message;
    }
  });
  return {
    media: media === "*/*" ? "application/octet-stream" : media,
    value: () => text.value,
    row: h("div", { class: "row" }, h("label", { for: "body" }, "body ", h("span", { class: "type" }, media)), text, note),
  };
}

function acceptChoice(operation) {
  const success = Object.entries(operation.responses).find(([status]) => status.startsWith("2"))?.[1];
  const kinds = Object.keys(success?.content ?? {}).filter((one) => one !== "application/x-protobuf");
  if (kinds.length < 2) return null;
  const select = h("select", { id: "accept" }, kinds.map((one) => h("option", {}, one)));
  return { value: () => select.value, row: h("div", { class: "row" }, h("label", { for: "accept" }, "accept"), select) };
}

function request(operation, fields, body, accept, base, token) {
  let path = operation.path;
  const query = new URLSearchParams();
  for (const { parameter, values } of fields) {
    if (parameter.in === "query") for (const one of values()) query.append(parameter.name, one);
    else {
      const value = values()[0] ?? "";
      const text = parameter["x-multi-segment"] ? value.split("/").map(encodeURIComponent).join("/") : encodeURIComponent(value);
      path = path.replace(`{${parameter.name}}`, () => text);
    }
  }
  const headers = {};
  if (token) headers.authorization = `Bearer ${token}`;
  if (accept) headers.accept = accept.value();
  const content = body && body.value() !== "" ? body.value() : undefined;
  if (content !== undefined) headers["content-type"] = body.media;
  const search = query.toString();
  return { method: operation.method, url: base + path + (search ? `?${search}` : ""), headers, body: content };
}

function asCurl({ method, url, headers, body }) {
  const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const lines = [`curl -i -X ${method} ${quote(new URL(url, location.href).href)}`];
  for (const [name, value] of Object.entries(headers)) {
    lines.push(name === "authorization" ? `-H "authorization: Bearer $TOKEN"` : `-H ${quote(`${name}: ${value}`)}`);
  }
  if (body !== undefined) lines.push(`--data-binary ${quote(body)}`);
  return lines.join(" \\\n  ");
}

async function run({ method, url, headers, body }, output, signal) {
  const begun = performance.now();
  const response = await fetch(url, { method, headers, body, signal, credentials: "same-origin", cache: "no-store" });
  const took = h("span", { class: "quiet" }, `${Math.round(performance.now() - begun)} ms`);
  const trace = response.headers.get("x-trace-id");
  const text = h("pre", { class: "body", tabindex: "0" });
  output.replaceChildren(
    h("p", { class: "status" }, h("strong", { class: response.ok ? "ok" : "failed", "data-status": response.status },
      `${response.status} ${response.statusText}`.trim()), " ", took),
    trace ? h("p", {}, "Trace ", h("code", { class: "trace" }, trace)) : "",
    text,
    h("details", {}, h("summary", {}, "Headers"), h("table", {}, h("tbody", {},
      [...response.headers].map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)))))));
  await read(response, text);
  took.textContent = `${Math.round(performance.now() - begun)} ms`;
}

// Shows the body as it arrives; complete JSON is formatted.
async function read(response, text) {
  const media = (response.headers.get("content-type") ?? "").split(";")[0];
  if (!response.body) return;
  const textual = /^text\/|json|xml|event-stream/.test(media);
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let whole = "";
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (textual && whole.length < MAX_SHOWN) text.textContent = whole += decoder.decode(value, { stream: true });
  }
  if (!textual) text.textContent = size ? `${size} bytes of ${media || "an unknown type"}` : "(no body)";
  else if (whole.length >= MAX_SHOWN) text.textContent += "\n… (cut)";
  else if (media === "application/json") {
    try {
      text.textContent = JSON.stringify(JSON.parse(whole), null, 2);
    } catch {
      text.textContent = whole;
    }
  }
}
