// Entry point of the page: reads openapi.json, lists the operations, shows the operation that the URL names.
import { badge, h, inline, prose } from "./dom.js";
import { Schemas } from "./schema.js";
import { tryIt } from "./tryit.js";

const $ = (id) => document.getElementById(id);
const source = new URL("openapi.json", document.baseURI);

// -- state that is kept: the token for this tab, the theme for this browser --

const root = document.documentElement;
function theme(name) {
  if (name) root.dataset.theme = name;
}
theme(localStorage.getItem("theme"));
$("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  localStorage.setItem("theme", dark ? "light" : "dark");
  theme(dark ? "light" : "dark");
});
$("token").value = sessionStorage.getItem("token") ?? "";
$("token").addEventListener("input", () => sessionStorage.setItem("token", $("token").value.trim()));
$("who").addEventListener("submit", (event) => event.preventDefault());
const token = () => $("token").value.trim().replace(/^Bearer\s+/i, "");

// -- the document --

function operationsOf(spec) {
  const all = Object.entries(spec.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, one]) => ({ ...one, path, method: method.toUpperCase() })));
  return [...all, ...(spec["x-other-operations"] ?? [])];
}

function list(spec, operations) {
  const groups = spec.tags.map((tag) => {
    const own = operations.filter((one) => one.tags.includes(tag.name));
    return h("section", { class: "group" }, h("h2", { title: tag.name }, tag.name.split(".").at(-1)), h("ul", {}, own.map((one) =>
      h("li", { "data-text": `${one.method} ${one.path} ${one.operationId} ${one.summary ?? ""}`.toLowerCase() },
        h("a", { href: `#${one.operationId}`, class: one.deprecated ? "old" : null, title: one.summary },
          badge(one.method), h("span", { class: "path" }, one.path))))));
  });
  $("operations").replaceChildren(...groups, h("p", { id: "none", class: "quiet", hidden: true }, "Nothing matches."));
}

function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const group of document.querySelectorAll(".group")) {
    let own = 0;
    for (const item of group.querySelectorAll("li")) {
      item.hidden = !words.every((word) => item.dataset.text.includes(word));
      own += item.hidden ? 0 : 1;
    }
    group.hidden = own === 0;
    shown += own;
  }
  $("none").hidden = shown > 0;
}

// -- the views --

function overview(spec, operations) {
  return [
    h("h1", {}, spec.info.title),
    ...prose(spec.info.description),
    ...spec.tags.map((tag) => h("section", { class: "card" },
      h("h2", {}, tag.name), prose(tag.description),
      h("ul", { class: "plain" }, operations.filter((one) => one.tags.includes(tag.name)).map((one) =>
        h("li", {}, h("a", { href: `#${one.operationId}` }, badge(one.method), h("code", {}, one.path)),
          " ", inline(one.summary ?? "")))))),
  ];
}

function parameters(operation, schemas) {
  if (!operation.parameters?.length) return null;
  return h("section", {}, h("h3", {}, "Parameters"), h("dl", { class: "fields" }, operation.parameters.flatMap((one) => [
    h("dt", {}, h("code", {}, one.name), " ", h("span", { class: "type" }, `${schemas.type(one.schema)} in ${one.in}`),
      one.required && h("span", { class: "mark" }, "required"), one.deprecated && h("span", { class: "mark" }, "deprecated")),
    h("dd", {}, prose(one.description), schemas.unfold(one.schema)),
  ])));
}

function content(media, schemas) {
  const schema = Object.values(media)[0].schema;
  return [
    h("p", { class: "quiet" }, Object.keys(media).join(", "), " — ", h("span", { class: "type" }, schemas.type(schema))),
    schemas.table(schema),
  ];
}

function responses(spec, operation, schemas) {
  const resolve = (one) => (one.$ref ? spec.components.responses[one.$ref.split("/").at(-1)] : one);
  return h("section", {}, h("h3", {}, "Responses"), Object.entries(operation.responses).map(([status, one]) => {
    const response = resolve(one);
    const good = status.startsWith("2");
    return h("details", { class: "response", open: good },
      h("summary", {}, h("strong", { class: good ? "ok" : "failed" }, status), " ", inline(response.description.split("\n")[0])),
      response.content ? content(response.content, schemas) : null);
  }));
}

function security(operation) {
  if (!operation.security.length) return "Public";
  const roles = operation.security.flatMap((one) => Object.values(one).flat());
  return roles.length ? `Needs a token with the role ${roles.join(" or ")}` : "Needs a token";
}

function operationView(spec, operation, schemas, base) {
  const about = h("div", { class: "about" },
    h("p", { class: "crumb" }, operation.tags[0]),
    h("h1", {}, inline(operation.summary ?? operation.operationId)),
    h("p", { class: "route" }, badge(operation.method), h("code", {}, operation.path)),
    h("p", {}, h("span", { class: "mark" }, security(operation)), operation.deprecated && h("span", { class: "mark" }, "deprecated")),
    prose(operation.description),
    parameters(operation, schemas),
    operation.requestBody && h("section", {}, h("h3", {}, "Request body"), prose(operation.requestBody.description),
      content(operation.requestBody.content, schemas)),
    responses(spec, operation, schemas));
  return [h("div", { class: "operation" }, about, tryIt(operation, schemas, base, token))];
}

// -- navigation and start --

async function start() {
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${source.pathname} returned ${response.status}`);
  const spec = await response.json();
  const operations = operationsOf(spec);
  const schemas = new Schemas(spec);
  const server = new URL(spec.servers?.[0]?.url ?? ".", source).href.replace(/\/$/, "");
  document.title = spec.info.title;
  $("title").textContent = spec.info.title;
  $("version").textContent = spec.info.version;
  list(spec, operations);

  function show(event) {
    const id = decodeURIComponent(location.hash.slice(1));
    if (id === "content") return;
    const found = operations.find((one) => one.operationId === id);
    $("content").replaceChildren(...(found ? operationView(spec, found, schemas, server) : overview(spec, operations)));
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === location.hash && found) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (event) {
      $("content").focus({ preventScroll: true });
      scrollTo(0, 0);
    }
  }
  addEventListener("hashchange", show);
  $("search").addEventListener("input", search);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      $("search").focus();
    }
  });
  show();
}

start().catch((error) => $("content").replaceChildren(h("p", { class: "failed" }, `The document cannot be shown: ${error.message}`)));
