// GPT-2 in plain JavaScript: the steps, names and axes of allformers/models/gpt2/gpt2.py, for one text at a time.
//
// A tensor is {axes, shape, values}: the names of its axes, their sizes, and its numbers, the last axis fastest. Sums
// are kept in JavaScript's own doubles and stored as float32. Every inner loop runs over neighbouring numbers, which
// is what makes plain loops fast enough to read along with.
"use strict";
var allformers = (function () {
  const LOWEST = -3.4028234663852886e38; // of float32: the score of a key that a query may not attend to

  const tensor = (pattern, shape, values) =>
    ({ axes: typeof pattern === "string" ? pattern.split(" ") : pattern, shape, values });

  // The number that 16 bits stand for in half precision: 1 of sign, 5 of exponent, 10 of fraction.
  function fromHalf(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }

  // The weights as weights.js brings them, {config, tensors}, with each tensor's base64 made into a Float32Array.
  function decode(weights) {
    const tensors = {};
    for (const [name, { shape, data }] of Object.entries(weights.tensors)) {
      const bytes = atob(data), values = new Float32Array(bytes.length / 2);
      for (let i = 0; i < values.length; i++) {
        values[i] = fromHalf(bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8)); // the low byte comes first
      }
      tensors[name] = { shape, values };
    }
    return { config: weights.config, tensors };
  }

  // Sum of products of two runs of numbers. Four sums side by side, since the processor can then overlap them.
  function dot(a, startA, b, startB, length) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, i = 0;
    for (; i + 3 < length; i += 4) {
      s0 += a[startA + i] * b[startB + i];
      s1 += a[startA + i + 1] * b[startB + i + 1];
      s2 += a[startA + i + 2] * b[startB + i + 2];
      s3 += a[startA + i + 3] * b[startB + i + 3];
    }
    for (; i < length; i++) s0 += a[startA + i] * b[startB + i];
    return s0 + s1 + s2 + s3;
  }

  // einsum(x, weight, "... inputs, outputs inputs -> ... outputs") + bias; a bias of null adds nothing
  function linear(x, weight, bias) {
    const [outputs, inputs] = weight.shape, rows = x.length / inputs, y = new Float32Array(rows * outputs);
    for (let row = 0; row < rows; row++) {
      for (let o = 0; o < outputs; o++) {
        y[row * outputs + o] = dot(x, row * inputs, weight.values, o * inputs, inputs) + (bias ? bias.values[o] : 0);
      }
    }
    return y;
  }

  // "... embed -> ... embed": each position to mean 0 and variance 1, then a learned scale and shift
  function layerNorm(x, weight, bias, eps) {
    const embed = weight.values.length, y = new Float32Array(x.length);
    for (let start = 0; start < x.length; start += embed) {
      let mean = 0, variance = 0;
      for (let e = 0; e < embed; e++) mean += x[start + e] / embed;
      for (let e = 0; e < embed; e++) variance += (x[start + e] - mean) ** 2 / embed;
      const scale = 1 / Math.sqrt(variance + eps); // eps, so as never to divide by zero
      for (let e = 0; e < embed; e++) y[start + e] = (x[start + e] - mean) * scale * weight.values[e] + bias.values[e];
    }
    return y;
  }

  // "... -> ...": the tanh approximation of GELU, as GPT-2 has it
  function gelu(x) {
    return x.map((v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3))));
  }

  // "... keys -> ... keys": positive and adding up to 1 along the last axis, whose size is `length`
  function softmax(x, length) {
    const y = new Float32Array(x.length), powers = new Float64Array(length);
    for (let start = 0; start < x.length; start += length) {
      let top = -Infinity, sum = 0;
      for (let i = 0; i < length; i++) top = Math.max(top, x[start + i]);
      for (let i = 0; i < length; i++) sum += powers[i] = Math.exp(x[start + i] - top); // less the top: no overflow
      for (let i = 0; i < length; i++) y[start + i] = powers[i] / sum;
    }
    return y;
  }

  // "... -> ...": two tensors of one shape, added
  const add = (a, b) => a.map((v, i) => v + b[i]);

  // rearrange(fused, "batch seq (qkv heads head_dim) -> qkv batch heads seq head_dim"): queries, keys, values
  function splitHeads(fused, seq, heads, headDim) {
    return [0, 1, 2].map((qkv) => {
      const out = new Float32Array(heads * seq * headDim);
      for (let h = 0; h < heads; h++) {
        for (let s = 0; s < seq; s++) {
          const start = ((s * 3 + qkv) * heads + h) * headDim;
          out.set(fused.subarray(start, start + headDim), (h * seq + s) * headDim);
        }
      }
      return out;
    });
  }

  // rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
  function mergeHeads(mixed, seq, heads, headDim) {
    const out = new Float32Array(mixed.length);
    for (let h = 0; h < heads; h++) {
      for (let s = 0; s < seq; s++) {
        const start = (h * seq + s) * headDim;
        out.set(mixed.subarray(start, start + headDim), (s * heads + h) * headDim);
      }
    }
    return out;
  }

  // einsum(queries, keys, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k"), masked
  function score(queries, keys, seq, heads, headDim) {
    const scores = new Float32Array(heads * seq * seq);
    for (let h = 0; h < heads; h++) {
      for (let q = 0; q < seq; q++) {
        for (let k = 0; k < seq; k++) {
          const mask = k <= q; // true where the query may attend: not to a later position
          scores[(h * seq + q) * seq + k] =
            mask ? dot(queries, (h * seq + q) * headDim, keys, (h * seq + k) * headDim, headDim) : LOWEST;
        }
      }
    }
    return scores;
  }

  // einsum(weights, values, "batch heads seq seq_k, batch heads seq_k head_dim -> batch heads seq head_dim")
  function mix(weights, values, seq, heads, headDim) {
    const mixed = new Float32Array(heads * seq * headDim), sums = new Float64Array(headDim);
    for (let h = 0; h < heads; h++) {
      for (let q = 0; q < seq; q++) {
        sums.fill(0);
        for (let k = 0; k < seq; k++) {
          const weight = weights[(h * seq + q) * seq + k], start = (h * seq + k) * headDim;
          for (let d = 0; d < headDim; d++) sums[d] += weight * values[start + d];
        }
        mixed.set(sums, (h * seq + q) * headDim);
      }
    }
    return mixed;
  }

  // "batch seq -> batch seq vocab": scores, for every position, each token as the next one. `activations` holds
  // everything on the way there, by the names that allformers.inspection.capture gives, in the order of computing.
  function forward(model, tokenIds) {
    const { config, tensors } = model, seq = tokenIds.length;
    const embed = config.embedding_dim, heads = config.num_heads, headDim = embed / heads, eps = config.norm_eps;
    if (seq < 1 || seq > config.context_length) throw new RangeError(`1 to ${config.context_length} tokens, not ${seq}`);
    const activations = {};
    const record = (name, pattern, shape, values) => {
      activations[name] = tensor(pattern, shape, values);
      return values;
    };
    const stream = (name, values) => record(name, "batch seq embed", [1, seq, embed], values);
    const perHead = (name, seqAxis, values) =>
      record(name, `batch heads ${seqAxis} head_dim`, [1, heads, seq, headDim], values);
    const square = (name, values) => record(name, "batch heads seq seq_k", [1, heads, seq, seq], values);
    const linearOf = (name, x) => linear(x, tensors[name + ".weight"], tensors[name + ".bias"]);
    const normOf = (name, x) => layerNorm(x, tensors[name + ".weight"], tensors[name + ".bias"], eps);

    record("token_ids", "batch seq", [1, seq], Float32Array.from(tokenIds));

    // "batch seq -> batch seq embed": token embedding plus position embedding
    const tokens = tensors["token_embedding.weight"].values, positions = tensors["position_embedding.weight"].values;
    let x = new Float32Array(seq * embed);
    for (let s = 0; s < seq; s++) {
      for (let e = 0; e < embed; e++) x[s * embed + e] = tokens[tokenIds[s] * embed + e] + positions[s * embed + e];
    }
    stream("embed", x);

    for (let layer = 0; layer < config.num_layers; layer++) {
      const block = `blocks.${layer}`, attention = `${block}.attention`, mlp = `${block}.mlp`;
      stream(`${block}.x`, x);

      // Attention, "batch seq embed -> batch seq embed": positions gather from earlier ones. Queries are kept scaled,
      // since capture takes a variable once it has its last value.
      const normed = stream(`${attention}.x`, normOf(`${block}.attention_norm`, x));
      const fused = linearOf(`${attention}.query_key_value`, normed);
      const [unscaled, keys, values] = splitHeads(fused, seq, heads, headDim);
      perHead(`${attention}.keys`, "seq_k", keys);
      perHead(`${attention}.values`, "seq_k", values);
      const scale = 1 / Math.sqrt(headDim); // undoes the growth of a dot product with its length
      const queries = perHead(`${attention}.queries`, "seq", unscaled.map((v) => v * scale));
      const scores = square(`${attention}.scores`, score(queries, keys, seq, heads, headDim));
      const weights = square(`${attention}.weights`, softmax(scores, seq));
      const mixed = perHead(`${attention}.mixed`, "seq", mix(weights, values, seq, heads, headDim));
      const merged = mergeHeads(mixed, seq, heads, headDim);
      record(`${attention}.merged`, ["batch", "seq", "(heads head_dim)"], [1, seq, embed], merged);
      const gathered = stream(attention, linearOf(`${attention}.output`, merged));
      const xMid = stream(`${block}.x_mid`, add(x, gathered));

      // MLP, "batch seq embed -> batch seq embed": each position by itself; up, GELU, down.
      const normedAgain = stream(`${mlp}.x`, normOf(`${block}.mlp_norm`, xMid));
      const activated = gelu(linearOf(`${mlp}.up`, normedAgain));
      record(`${mlp}.activated`, "batch seq mlp", [1, seq, config.mlp_dim], activated);
      const transformed = stream(mlp, linearOf(`${mlp}.down`, activated));
      x = stream(block, add(xMid, transformed));
    }
    stream("residual_stream", x);

    // "batch seq embed -> batch seq vocab": final norm, then the dot product with every token's embedding (tied)
    const logits = linear(normOf("final_norm", x), tensors["token_embedding.weight"], null);
    for (const name of ["logits", "unembed"]) record(name, "batch seq vocab", [1, seq, config.vocab_size], logits);
    return { logits: activations.logits, activations };
  }

  // "vocab -> vocab": the ids from the likeliest token to the least likely; equal ones stay in their order
  const ranked = (logits) => Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);

  // "vocab -> vocab": all but the topK likeliest ruled out, by a logit of minus infinity; exactly that many stay
  function keepTopK(logits, topK) {
    const kept = new Float32Array(logits.length).fill(-Infinity);
    for (const id of ranked(logits).slice(0, topK)) kept[id] = logits[id];
    return kept;
  }

  // "vocab -> vocab": the fewest likeliest tokens whose probabilities reach topP, with the one that crosses it
  function keepTopP(logits, topP) {
    if (topP >= 1) return logits;
    const probabilities = softmax(logits, logits.length), kept = new Float32Array(logits.length).fill(-Infinity);
    let sum = 0;
    ranked(logits).forEach((id, rank) => {
      sum += probabilities[id];
      const before = rank === 0 ? 0 : Math.fround(Math.fround(sum) - probabilities[id]); // the likeliest always stays
      if (before < Math.fround(topP)) kept[id] = logits[id]; // float32 as in Python, so that equal sums stay equal
    });
    return kept;
  }

  // "vocab -> vocab": the probabilities to draw from, after temperature, then topK, then topP; null leaves one out
  function distribution(logits, { temperature = 1, topK = null, topP = null } = {}) {
    if (temperature === 0) { // greedy: the first of the likeliest, and nothing else matters
      const certain = new Float32Array(logits.length);
      certain[ranked(logits)[0]] = 1;
      return certain;
    }
    let left = Float32Array.from(logits, (v) => v / temperature);
    if (topK !== null) left = keepTopK(left, topK);
    if (topP !== null) left = keepTopP(left, topP);
    return softmax(left, left.length);
  }

  // Numbers from 0 to 1 that depend on the seed alone (mulberry32).
  function random(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let bits = Math.imul(state ^ (state >>> 15), state | 1);
      bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
      return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  // "vocab -> ": a token id, each as often as its probability says; `uniform` is a number from 0 to 1
  function draw(probabilities, uniform) {
    let last = 0, left = uniform * probabilities.reduce((sum, p) => sum + p, 0); // rounding: the sum is not quite 1
    for (let id = 0; id < probabilities.length; id++) {
      if (probabilities[id] === 0) continue;
      if ((left -= probabilities[id]) < 0) return id;
      last = id;
    }
    return last;
  }

  return { LOWEST, decode, forward, distribution, keepTopK, keepTopP, softmax, random, draw };
})();
if (typeof module !== "undefined") module.exports = allformers;
