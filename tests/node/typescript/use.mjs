// Calls the edge of the tests through the client and prints what came back as one line of JSON.
// Usage: node use.mjs CLIENT LIBRARY STREAMS
const [file, library, streams] = process.argv.slice(2);
const { Mesh, MeshError, toBase64 } = await import(file);
const told = async (promise) => {
  try {
    return await promise;
  } catch (error) {
    if (!(error instanceof MeshError)) throw error;
    const { code, status, message, violations, retryAfter, traceId } = error;
    return { code, status, message, violations, retryAfter, trace: traceId?.length };
  }
};
const all = async (stream, most = Infinity) => {
  const found = [];
  try {
    for await (const one of stream) if (found.push(one) >= most) break;
  } catch (error) {
    found.push(error.code);
  }
  return found;
};
const books = new Mesh({ baseUrl: `http://${library}/`, token: "ada" });
const mesh = new Mesh({ baseUrl: `http://${streams}` });
const out = {};
out.echo = await books.library.createBook({
  title: "ü/?&", isbn: "9007199254740993", genre: "PROSE", price: NaN, cover: toBase64(new Uint8Array([0, 255])),
  labels: { a: "b" }, published: "2026-01-31T12:00:00Z", pages: 0, room: "r", author: { name: "n" },
});
out.nan = Number.isNaN(out.echo.price);
out.empty = await books.library.createBook();
out.path = await books.library.getBook({ name: "shelves/a b/books/ü?", tags: ["x", "y"], author: { born: 5 }, inPrint: true });
out.body = await books.library.updateBook({ book: { name: "books/1", title: "t" }, reason: "r" });
out.list = await books.library.tagBook({ name: "books/n", tags: ["a", "b"] });
out.dots = await told(books.library.tagBook({ name: "books/.." }));
out.wrong = await told(books.library.behave({ title: "violations" }));
out.busy = await told(books.library.behave({ title: "busy" }));
const stuck = { name: "stuck", file: { data: "x" } };
out.late = await told(mesh.streams.putLarge(stuck, { timeout: 50 }));
out.stopped = await told(mesh.streams.putLarge(stuck, { signal: AbortSignal.timeout(50) }));
out.nowhere = await told(new Mesh({ baseUrl: "http://127.0.0.1:1" }).library.createBook());
let refreshed = 0;
const expired = new Mesh({ baseUrl: `http://${library}`, token: "forged", refresh: async () => (refreshed++, "admin") });
out.refreshed = (await Promise.all([1, 2, 3].map(() => told(expired.library.listSecrets())))).map((one) => one.code ?? "ok");
out.refreshes = [refreshed, expired.token];
out.forged = await told(new Mesh({ baseUrl: `http://${library}`, token: "forged" }).library.listSecrets());
out.count = await all(mesh.streams.count({ room: "u\u2028\n", count: 3 }));
out.some = (await all(mesh.streams.count({ count: -1 }), 2)).length;
out.first = await all(mesh.streams.count({ count: 1, fail: "first" }));
out.last = await all(mesh.streams.count({ count: 1, fail: "last" }));
out.gather = await mesh.streams.gather((async function* () { yield { room: "a/b", text: "x" }; yield { room: "a/b", text: "y" }; })());
const data = new Uint8Array(200000).fill(7);
out.put = await mesh.streams.put({ name: "f", file: { contentType: "image/png", data: data.slice(0, 50000) } });
out.large = (await mesh.streams.putLarge({ name: "f", file: { data: new Blob([data]) } })).size;
const raw = await mesh.streams.raw({ contentType: "text/plain", data: "ñ" });
out.raw = [raw.contentType, await raw.data.text()];
let size = 0;
for await (const piece of mesh.streams.getLarge({ count: 3, size: 10 })) size += piece.length;
out.pieces = size;
out.chat = await all(mesh.streams.chat([{ room: "r", text: "a" }, { room: "r", text: "b" }]));
out.refused = await all(mesh.streams.chat([{ room: "r", text: "fail" }]));
console.log(JSON.stringify(out));
