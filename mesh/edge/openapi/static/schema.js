// JSON Schemas of the document: their names, their fields as a table, an example value of each.
import { h, prose } from "./dom.js";

const EXAMPLES = { "date-time": "2026-01-31T12:00:00Z", int64: "0", uint64: "0" };

export class Schemas {
  constructor(document) {
    this.schemas = document.components?.schemas ?? {};
  }

  resolve(schema) {
    const name = this.reference(schema);
    return name === null ? schema : this.schemas[name] ?? {};
  }

  // Name of the schema that a reference leads to, or null.
  reference(schema) {
    const inner = schema.$ref ? schema : schema.anyOf?.find((one) => one.$ref);
    return inner ? decodeURIComponent(inner.$ref.split("/").at(-1)) : null;
  }

  // Name of a schema for people: `User`, `array of string`, `string (date-time)`.
  type(schema) {
    const name = this.reference(schema);
    if (name !== null) return name.split(".").at(-1);
    if (schema.oneOf) return schema.oneOf.map((one) => this.type(one)).join(" | ");
    if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    const type = [schema.type ?? "any"].flat().join(" | ");
    if (type === "array") return `array of ${this.type(schema.items ?? {})}`;
    if (schema.contentSchema) return `stream of ${this.type(schema.contentSchema)}`;
    const values = schema.additionalProperties;
    if (type === "object" && values && typeof values === "object") return `map of ${this.type(values)}`;
    const form = schema.format ?? schema.contentEncoding;
    return form ? `${type} (${form})` : type;
  }

  // Example value for a request, without read-only fields and without a message within itself.
  example(schema, inside = []) {
    const name = this.reference(schema);
    if (name !== null) {
      if (inside.includes(name)) return undefined;
      return this.example(this.schemas[name] ?? {}, [...inside, name]);
    }
    if (schema.examples) return schema.examples[0];
    if (schema.const !== undefined) return schema.const;
    if (schema.enum) return schema.enum.find((one) => !/UNSPECIFIED$/.test(one)) ?? schema.enum[0];
    if (schema.oneOf) return this.example(schema.oneOf[0], inside);
    const type = [schema.type].flat()[0];
    if (type === "object") {
      const out = {};
      for (const [key, one] of Object.entries(schema.properties ?? {})) {
        if (one.readOnly || one.deprecated || refusedBy(schema, Object.keys(out)).has(key)) continue;
        const value = this.example(one, inside);
        if (value !== undefined) out[key] = value;
      }
      return out;
    }
    if (type === "array") {
      const value = this.example(schema.items ?? {}, inside);
      return value === undefined ? [] : [value];
    }
    if (type === "string") return EXAMPLES[schema.format] ?? "";
    if (type === "integer" || type === "number") return 0;
    if (type === "boolean") return false;
    return type === "null" ? null : {};
  }

  // Fields of a schema as a table that unfolds.
  table(schema) {
    const shown = this.resolve(this.inner(schema));
    const rows = Object.entries(shown.properties ?? {});
    const said = prose(shown.description);
    if (!rows.length) return h("div", {}, said, shown.enum ? null : h("p", { class: "quiet" }, this.type(shown)));
    return h("div", {}, said, h("dl", { class: "fields" }, rows.flatMap(([name, one]) => [
      h("dt", {}, h("code", {}, name), " ", h("span", { class: "type" }, this.type(one)),
        (shown.required ?? []).includes(name) && h("span", { class: "mark" }, "required"),
        one.readOnly && h("span", { class: "mark" }, "read only"),
        one.writeOnly && h("span", { class: "mark" }, "write only"),
        one.deprecated && h("span", { class: "mark" }, "deprecated")),
      h("dd", {}, prose(one.description), this.unfold(one)),
    ])));
  }

  // Array of X, map of X, stream of X → X.
  inner(schema) {
    if (this.reference(schema) !== null) return schema;
    const next = schema.items ?? schema.contentSchema ??
      (typeof schema.additionalProperties === "object" ? schema.additionalProperties : null);
    return next ? this.inner(next) : schema;
  }

  // Fold that makes its content when it is opened, because a message may contain its own type.
  unfold(schema) {
    const inner = this.inner(schema);
    const found = this.resolve(inner);
    if (!found.properties && !(found.enum && this.reference(inner) !== null)) return null;
    const fold = h("details", { class: "fold" }, h("summary", {}, this.type(inner)));
    fold.addEventListener("toggle", () => {
      if (fold.childElementCount > 1) return;
      fold.append(found.properties ? this.table(inner) : h("div", {}, prose(found.description), h("p", {},
        found.enum.flatMap((one) => [h("code", {}, one), " "]))));
    });
    return fold;
  }
}

// Members of oneofs that must not be set beside these.
function refusedBy(schema, names) {
  return new Set(names.flatMap((name) => Object.keys(schema.dependentSchemas?.[name]?.properties ?? {})));
}
