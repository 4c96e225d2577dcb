// Calls conformance.v1.Echo by the Connect protocol and prints what came back as one line of JSON.
// Usage: node client.js MODULES URL DESCRIPTORS TRANSPORT FORMAT
// DESCRIPTORS is a serialized FileDescriptorSet, TRANSPORT one of web, http1, http2, FORMAT one of json, binary.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const [modules, baseUrl, descriptors, transport, format] = process.argv.slice(2);
const load = (name) => require(require.resolve(name, { paths: [path.join(modules, 'node_modules')] }));
const { createFileRegistry, fromBinary } = load('@bufbuild/protobuf');
const { FileDescriptorSetSchema } = load('@bufbuild/protobuf/wkt');
const { createClient, encodeBinaryHeader, decodeBinaryHeader } = load('@connectrpc/connect');
const node = load('@connectrpc/connect-node');
const web = load('@connectrpc/connect-web');

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, fs.readFileSync(descriptors)));
const Echo = registry.getService('conformance.v1.Echo');
const BadRequest = registry.getMessage('google.rpc.BadRequest');
const options = {
  baseUrl,
  useBinaryFormat: format === 'binary',
  useHttpGet: true,
};
const client = createClient(Echo, transport === 'web'
  ? web.createConnectTransport(options)
  : node.createConnectTransport({
    ...options,
    httpVersion: transport === 'http2' ? '2' : '1.1',
    sendCompression: node.compressionGzip,
    compressMinBytes: 100,
  }));

const failed = (error) => ({ code: error.code, text: error.rawMessage, metadata: error.metadata?.get('x-echo-a-trailer') });
async function* requests(texts) { for (const text of texts) yield { text }; }
const collect = async (stream) => {
  const texts = [];
  try {
    for await (const one of stream) texts.push(`${one.text}${one.index}`);
  } catch (error) {
    texts.push(error.code);
  }
  return texts;
};

(async () => {
  const out = {};
  const call = {
    headers: { 'x-echo-a': '1', 'x-echo-b-bin': encodeBinaryHeader(new Uint8Array([0, 255])) },
    timeoutMs: 10000,
    onHeader: (headers) => { out.header = [headers.get('x-echo-a'), [...decodeBinaryHeader(headers.get('x-echo-b-bin'))]]; },
    onTrailer: (trailers) => { out.trailer = [trailers.get('x-echo-a-trailer'), trailers.get('x-echo-b-trailer-bin')]; },
  };
  const unary = await client.unary({ text: 'ñandú', payload: new Uint8Array(5000).fill(7) }, call);
  out.unary = [unary.text, unary.payload.length, unary.remaining !== undefined];
  let tagged = false; // only a response to GET has an entity tag
  const safe = await client.idempotent({ text: 'a+b&c=d ñ' }, { onHeader: (headers) => { tagged = headers.has('etag'); } });
  out.get = [safe.text, tagged];
  out.error = await client.unary({ fail: { code: 3, message: 'no', details: true } }, { headers: { 'x-echo-a': '2' } })
    .catch((error) => ({ ...failed(error), details: error.findDetails(BadRequest).map((one) => one.fieldViolations[0].field) }));
  out.deadline = await client.unary({ sleepMs: 60000 }, { timeoutMs: 100 }).catch((error) => error.code);
  out.fraction = (await client.unary({ text: 'f' }, { timeoutMs: 5000.5 })).text;
  out.server = await collect(client.serverStream({ text: 's', count: 3 }, call));
  out.failing = await collect(client.serverStream({ text: 's', count: 2, fail: { code: 9, message: 'end' } }));
  if (transport !== 'web') {
    out.client = (await client.clientStream(requests(['a', 'b', 'c']))).text;
    out.half = await collect(client.bidi(requests(['x', 'y'])));
  }
  if (transport === 'http2') {
    const turns = [];
    let release;
    const asked = async function* asked() {
      for (const text of ['p', 'q', 'r']) {
        const next = new Promise((resolve) => { release = resolve; });
        yield { text };
        await next;
      }
    };
    for await (const one of client.bidi(asked())) {
      turns.push(one.text);
      release();
    }
    out.full = turns;
  }
  console.log(JSON.stringify(out));
  process.exit(0);
})();
