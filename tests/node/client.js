// Calls every kind of method of conformance.v1.Echo and prints what came back as one line of JSON.
// Usage: node client.js MODULES ADDRESS PROTO_ROOT...
'use strict';
const path = require('node:path');
const [modules, address, ...roots] = process.argv.slice(2);
const load = (name) => require(path.join(modules, 'node_modules', name));
const grpc = load('@grpc/grpc-js');
const loader = load('@grpc/proto-loader');

const options = { keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true, includeDirs: roots };
const { conformance } = grpc.loadPackageDefinition(loader.loadSync('conformance/v1/conformance.proto', options));
const client = new conformance.v1.Echo(address, grpc.credentials.createInsecure());
const gzip = { 'grpc.default_compression_algorithm': grpc.compressionAlgorithms.gzip };
const packing = new conformance.v1.Echo(address, grpc.credentials.createInsecure(), gzip);

const collect = (stream) => new Promise((resolve, reject) => {
  const texts = [];
  stream.on('data', (response) => texts.push(`${response.text}${response.index}`));
  stream.on('end', () => resolve(texts));
  stream.on('error', reject);
});

const unary = (stub, request, metadata = new grpc.Metadata()) => new Promise((resolve) => {
  const seen = {};
  const call = stub.Unary(request, metadata, { deadline: Date.now() + 10000 }, (error, response) => {
    Object.assign(seen, { code: error ? error.code : 0, details: error ? error.details : '' });
    seen.text = response ? response.text : null;
    seen.size = response ? response.payload.length : 0;
  });
  call.on('metadata', (headers) => { seen.header = headers.get('x-echo-a'); });
  call.on('status', (status) => {
    seen.trailer = status.metadata.get('x-echo-b-trailer-bin').map((value) => value.toString('hex'));
    setImmediate(() => resolve(seen));
  });
});

(async () => {
  const metadata = new grpc.Metadata();
  metadata.add('x-echo-a', '1');
  metadata.add('x-echo-a', '2');
  metadata.add('x-echo-b-bin', Buffer.from([0, 255]));
  const out = {
    unary: await unary(client, { text: 'node' }, metadata),
    gzip: await unary(packing, { text: 'packed', payload: Buffer.alloc(100000, 'x') }),
    error: await unary(client, { fail: { code: 5, message: 'no ñandú' } }),
    server: await collect(client.ServerStream({ text: 's', count: 3 })),
  };
  out.client = await new Promise((resolve, reject) => {
    const call = client.ClientStream((error, response) => (error ? reject(error) : resolve(response.text)));
    for (const text of ['a', 'b', 'c']) call.write({ text });
    call.end();
  });
  const bidi = client.Bidi();
  const answers = collect(bidi);
  bidi.write({ text: 'x' });
  bidi.once('data', () => { bidi.write({ text: 'y' }); bidi.end(); });
  out.bidi = await answers;
  console.log(JSON.stringify(out));
  client.close();
  packing.close();
})();
