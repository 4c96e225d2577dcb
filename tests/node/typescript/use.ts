// What a page may write against the client of the tests' contract, and what it may not.
import { Mesh, MeshError, fromBase64, rules, genreValues, type EdgeV1Book as Book, type EdgeV1BookInput as BookInput, type Code } from "./client.js";

const mesh = new Mesh({ baseUrl: "http://127.0.0.1", refresh: async () => undefined });

export async function right(): Promise<string> {
  const book: Book = await mesh.library.createBook({ title: "a", isbn: "9007199254740993", genre: "POETRY", author: { name: "b" } });
  const pages: number | undefined = book.pages;
  const shelf: string | number | undefined = book.room ?? book.number;
  const bytes: Uint8Array = fromBase64(book.cover);
  const input: BookInput = { ...book, title: undefined };
  await mesh.library.tagBook({ name: "n", tags: ["t"] });
  for await (const item of mesh.streams.count({ count: 3 })) console.log(item.number, item.mood === "GOOD");
  const total = await mesh.streams.gather([{ room: "r", text: "a" }]);
  const options: readonly string[] = genreValues;
  try {
    await mesh.library.getBook({ isbn: "1" }, { timeout: 1000, signal: new AbortController().signal });
  } catch (error) {
    if (error instanceof MeshError && error.code === "NOT_FOUND") console.log(error.violations[0]?.field, error.traceId);
  }
  const code: Code = "ABORTED";
  return `${book.title.length}${book.tags.length}${pages}${shelf}${bytes.length}${input.title}${total.items}${options}${code}${Object.keys(rules)}`;
}

export async function wrong(): Promise<void> {
  // @ts-expect-error no such field
  await mesh.library.createBook({ titel: "a" });
  // @ts-expect-error a 64-bit integer is text
  await mesh.library.createBook({ isbn: 1 });
  // @ts-expect-error no such value of the enum
  await mesh.library.createBook({ genre: "DRAMA" });
  // @ts-expect-error only one of the oneof
  await mesh.library.createBook({ room: "a", number: 1 });
  // @ts-expect-error the path needs the name
  await mesh.library.tagBook({ tags: [] });
  // @ts-expect-error no such method
  await mesh.library.burnBook({});
  // @ts-expect-error a message need not be there
  console.log((await mesh.library.createBook()).author.name);
  // @ts-expect-error a stream is no promise
  console.log((await mesh.streams.count({ count: 1 })).number);
  // @ts-expect-error no such code
  const code: Code = "NOPE";
  console.log(code);
}
