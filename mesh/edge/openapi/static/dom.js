// Elements made without innerHTML, and the simple markup of comments in .proto files.

// Makes an element. Attributes whose value is a function are listeners; false, null and undefined are left out.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Text of a comment: paragraphs, lists led by "- ", `code` and [links](https://…).
export function prose(text) {
  const blocks = (text || "").split(/\n\s*\n/).filter((block) => block.trim());
  return blocks.flatMap((block) => {
    const parts = [];
    for (const line of block.split("\n")) {
      const item = /^\s*[-*] (.*)/.exec(line);
      const last = parts.at(-1);
      if (item) last?.list ? last.list.push(item[1]) : parts.push({ list: [item[1]] });
      else if (last?.list) last.list.push(`${last.list.pop()} ${line.trim()}`);
      else if (last) last.text += ` ${line.trim()}`;
      else parts.push({ text: line.trim() });
    }
    return parts.map((part) =>
      part.list ? h("ul", {}, part.list.map((one) => h("li", {}, inline(one)))) : h("p", {}, inline(part.text)));
  });
}

export function inline(text) {
  const out = [];
  let at = 0;
  for (const found of text.matchAll(/`([^`]+)`|\[([^\]]+)\]\((https?:[^)\s]+)\)/g)) {
    out.push(text.slice(at, found.index));
    out.push(found[1] ? h("code", {}, found[1]) : h("a", { href: found[3], rel: "noreferrer" }, found[2]));
    at = found.index + found[0].length;
  }
  out.push(text.slice(at));
  return out;
}

export function badge(method) {
  return h("span", { class: `verb ${method.toLowerCase()}` }, method === "DELETE" ? "DEL" : method);
}
