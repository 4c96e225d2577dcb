// Calls conformance.v1.Echo with two clients that browsers use and prints what came back as one line of JSON.
// Usage: node client.js MODULES URL DESCRIPTORS   (DESCRIPTORS: a serialized FileDescriptorSet)
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const [modules, url, descriptors] = process.argv.slice(2);
const load = (name) => require(require.resolve(name, { paths: [path.join(modules, 'node_modules')] }));
global.XMLHttpRequest = load('xhr2');
const { create, createFileRegistry, fromBinary, toBinary } = load('@bufbuild/protobuf');
const { FileDescriptorSetSchema } = load('@bufbuild/protobuf/wkt');
const { createClient } = load('@connectrpc/connect');
const { createGrpcWebTransport } = load('@connectrpc/connect-web');
const grpcweb = load('grpc-web');

const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, fs.readFileSync(descriptors)));
const Echo = registry.getService('conformance.v1.Echo');
const Request = registry.getMessage('conformance.v1.EchoRequest');
const Response = registry.getMessage('conformance.v1.EchoResponse');

// connect-web: fetch, binary.
const connect = async () => {
  const client = createClient(Echo, createGrpcWebTransport({ baseUrl: url }));
  const out = {};
  const options = {
    headers: { 'x-echo-a': '1' },
    timeoutMs: 10000,
    onHeader: (headers) => { out.header = headers.get('x-echo-a'); },
    onTrailer: (trailers) => { out.trailer = trailers.get('x-echo-a-trailer'); },
  };
  out.text = (await client.unary({ text: 'ñandú' }, options)).text;
  out.error = await client.unary({ fail: { code: 5, message: 'no ñandú' } }).catch((error) => [error.code, error.rawMessage]);
  out.stream = [];
  try {
    for await (const answer of client.serverStream({ text: 's', count: 3, fail: { code: 9, message: 'end' } })) {
      out.stream.push(`${answer.text}${answer.index}`);
    }
  } catch (error) {
    out.stream.push(error.code);
  }
  out.deadline = await client.unary({ sleepMs: 60000 }, { timeoutMs: 100 }).catch((error) => error.code);
  return out;
};

// Google's grpc-web: XMLHttpRequest, base64 (it streams in no other form).
const google = async () => {
  const client = new grpcweb.GrpcWebClientBase({ format: 'text' });
  const method = (name, kind) => new grpcweb.MethodDescriptor(
    `/conformance.v1.Echo/${name}`, kind, Object, Object,
    (request) => toBinary(Request, create(Request, request)), (data) => fromBinary(Response, data),
  );
  const unary = method('Unary', grpcweb.MethodType.UNARY);
  const stream = method('ServerStream', grpcweb.MethodType.SERVER_STREAMING);
  const call = (request, metadata = {}) => new Promise((resolve) => {
    const seen = {};
    const under = client.rpcCall(`${url}/conformance.v1.Echo/Unary`, request, metadata, unary, (error, answer) => {
      seen.code = error ? error.code : 0;
      seen.message = error ? error.message : '';
      seen.text = answer ? answer.text : null;
      setTimeout(() => resolve(seen), 0);
    });
    under.on('metadata', (headers) => { seen.header = headers['x-echo-a']; });
  });
  const out = { unary: await call({ text: 'ñandú' }, { 'x-echo-a': '1' }) };
  out.error = await call({ fail: { code: 5, message: 'gone' } });
  out.stream = await new Promise((resolve) => {
    const answers = [];
    const under = client.serverStreaming(`${url}/conformance.v1.Echo/ServerStream`, { text: 's', count: 3 }, {}, stream);
    under.on('data', (answer) => answers.push(`${answer.text}${answer.index}`));
    under.on('error', (error) => resolve([...answers, error.code]));
    under.on('end', () => resolve(answers));
  });
  return out;
};

(async () => {
  console.log(JSON.stringify({ connect: await connect(), google: await google() }));
})();
