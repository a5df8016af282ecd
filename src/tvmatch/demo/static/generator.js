"use strict";
// The exported network in onnxruntime-web: x_s = step(x, t, s, class, w), times from 1 (noise) down to 0 (a picture).

/** The bytes of a file; `onBytes(n)` as they come. */
async function download(url, onBytes) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: the server answers ${answer.status}`);
  const reader = answer.body.getReader();
  const parts = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    onBytes(value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** A gzip file unpacked; what a server has unpacked already stays as it is. */
async function unpacked(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** An onnxruntime session of model.onnx, on one thread: more would ask the server for special headers. */
async function openGenerator(said, onProgress) {
  const all = said.model_bytes + said.runtime_bytes;
  let seen = 0;
  const onBytes = (count) => onProgress(Math.min(1, (seen += count) / all));
  const [engine, model] = await Promise.all([
    download("runtime/ort-wasm.bin", onBytes).then(unpacked),
    download("model.onnx", onBytes),
  ]);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.proxy = false;
  ort.env.wasm.wasmBinary = engine;
  ort.env.wasm.wasmPaths = { mjs: new URL("runtime/ort-wasm.js", document.baseURI).href };
  return ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

/** Pictures of one class: noise (Float32Array of count pictures) to values in [-1, 1], in `calls` network calls. */
async function generate(session, noise, count, dataShape, label, w, calls) {
  const shape = [count, ...dataShape];
  const filled = (value) => new ort.Tensor("float32", new Float32Array(count).fill(value), [count]);
  const labels = new ort.Tensor("int64", new BigInt64Array(count).fill(BigInt(label)), [count]);
  let x = new ort.Tensor("float32", noise, shape);
  for (let k = 0; k < calls; k++) {
    const inputs = { x, t: filled(1 - k / calls), s: filled(1 - (k + 1) / calls), class: labels, w: filled(w) };
    x = (await session.run(inputs)).x_s;
  }
  return x.data;
}
