// A model in the browser: loading it, and generating a story token by token.

import { fetchFiles, Problem } from "./loading.js";

// Prompt tokens per forward pass: the logits of 512 tokens would take 103 MB.
const PIECE = 64;
const ALTERNATIVES = 5;
// No token of GPT-Neo's vocabulary is longer; earlier text of a long prompt need not be tokenized.
const MOST_CHARACTERS = 128;

// Files of the models that are being loaded, by URL; several may be loaded at once.
const downloaded = new Map();
let runtime;

/** Load transformers.js with ONNX Runtime once; after a failure the next call tries again. */
function loadRuntime(wasm, onProgress) {
  runtime ??= startRuntime(wasm, onProgress).catch((error) => {
    runtime = undefined;
    throw error;
  });
  return runtime;
}

async function startRuntime(wasm, onProgress) {
  if (typeof WebAssembly !== "object") {
    throw new Problem("This browser does not support WebAssembly, which runs the model. Try another browser.");
  }
  const [binary] = (await fetchFiles([wasm], onProgress)).values();
  let library;
  try {
    library = await import("@huggingface/transformers");
  } catch (error) {
    throw new Problem(`transformers.js could not be loaded: ${error.message}`);
  }
  const { env } = library;
  env.allowLocalModels = true;
  env.allowRemoteModels = false;
  env.useBrowserCache = false;
  env.useWasmCache = false;
  // By default the library fetches its own build of the runtime from a CDN.
  env.backends.onnx.wasm.wasmPaths = { wasm: wasm.url };
  env.backends.onnx.wasm.wasmBinary = binary;
  env.backends.onnx.wasm.numThreads = 1;
  env.localModelPath = "./";
  // Files that are not in page.json, such as optional settings, do not exist.
  env.fetch = async (url) => {
    const found = downloaded.get(new URL(url, document.baseURI).href);
    return found ? new Response(found) : new Response(null, { status: 404 });
  };
  return library;
}

/** A model that generates stories. */
export class Storyteller {
  constructor(library, tokenizer, model, { context, end }) {
    Object.assign(this, { library, tokenizer, model, context, end });
  }

  /** Fetch, verify and load a model of page.json. */
  static async load(entry, wasm, onProgress) {
    const { name, folder, dtype, files } = entry;
    const library = await loadRuntime(wasm, (...step) => onProgress("the runtime", ...step));
    const content = await fetchFiles(files, (...step) => onProgress(name, ...step));
    for (const [url, bytes] of content) downloaded.set(url, bytes);
    try {
      const tokenizer = await library.AutoTokenizer.from_pretrained(folder);
      const model = await library.AutoModelForCausalLM.from_pretrained(folder, { dtype, device: "wasm" });
      return new Storyteller(library, tokenizer, model, entry);
    } catch (error) {
      throw explained(error, name);
    } finally {
      for (const url of content.keys()) downloaded.delete(url);
    }
  }

  /** Return the last tokens of a prompt that fit the context, and whether some were left out. */
  read(prompt, length) {
    const known = prompt.slice(-MOST_CHARACTERS * this.context);
    const encode = (text) => this.tokenizer.encode(text, { add_special_tokens: false });
    const ids = encode(known);
    const kept = this.context - Math.min(length, Math.floor(this.context / 2));
    return { ids: ids.slice(-kept), cut: prompt.length > known.length || ids.length > kept };
  }

  /**
   * Continue the tokens of a prompt until the story ends, the context is full, `length` is reached
   * or `signal` aborts.
   *
   * Yields {text, tokens, probability, alternatives} for each token, or for the few that make one
   * character: the probability the model gave before temperature, and the likeliest tokens with
   * theirs. Returns why it ended, in words.
   */
  async *generate(ids, { temperature, length, seed, signal }) {
    const random = new this.library.random.Random(seed);
    const most = Math.min(this.context, ids.length + length);
    let [past, logits] = [null, null];
    for (let start = 0; start < ids.length; start += PIECE) {
      [logits, past] = await this.step(ids.slice(start, start + PIECE), start, past);
    }
    let [before, pending] = [ids.slice(-1), []];
    for (let position = ids.length; position < most && !signal.aborted; position += 1) {
      const probabilities = softmax(logits, 1);
      const token = temperature ? draw(softmax(logits, temperature), random) : likeliest(logits, 1)[0];
      const ended = token === this.end;
      if (!ended) pending.push(token);
      const text = pending.length ? this.decodeAfter(before, pending) : "";
      // A character may span several tokens: wait for the rest of it.
      if (pending.length && (!text.endsWith("\ufffd") || ended || position + 1 === most)) {
        const [tokens, probability] = [pending.length, probabilities[token]];
        yield { text, tokens, probability, alternatives: this.alternatives(probabilities) };
        [before, pending] = [pending, []];
      }
      if (ended) return "the end";
      if (position + 1 < most) [logits, past] = await this.step([token], position, past);
    }
    if (signal.aborted) return "stopped";
    return most < this.context ? "the length is reached" : "the context is full";
  }

  decode(ids) {
    const options = { skip_special_tokens: true, clean_up_tokenization_spaces: false };
    return this.tokenizer.decode(ids, options);
  }

  /** Decode tokens that follow others: on their own, SentencePiece and word-level tokens lose their space. */
  decodeAfter(before, ids) {
    return this.decode([...before, ...ids]).slice(this.decode(before).length);
  }

  /** Run the model on tokens after `seen` earlier ones; return the last logits and the cache. */
  async step(ids, seen, past) {
    const { Tensor } = this.library;
    const long = (values, width) => new Tensor("int64", BigInt64Array.from(values), [1, width]);
    const width = seen + ids.length;
    const outputs = await this.model({
      input_ids: long(ids.map(BigInt), ids.length),
      attention_mask: long(Array(width).fill(1n), width),
      past_key_values: past,
    });
    const { logits, ...present } = outputs;
    const renamed = ([name, tensor]) => [name.replace("present", "past_key_values"), tensor];
    const seenByNow = Object.fromEntries(Object.entries(present).map(renamed));
    return [logits.data.slice(-logits.dims.at(-1)), seenByNow];
  }

  /** Return the most likely tokens as {text, probability}. */
  alternatives(probabilities) {
    return likeliest(probabilities, ALTERNATIVES).map((token) => ({
      text: token === this.end ? "the end" : this.decode([token]),
      probability: probabilities[token],
    }));
  }
}

/** Return an error of the library as a message for the user. */
export function explained(error, name) {
  if (error instanceof Problem) return error;
  const reason = String(error?.message ?? error);
  if (error instanceof RangeError || /memory|alloc/i.test(reason)) {
    return new Problem(`There is not enough memory for ${name}. Close other pages and try again.`);
  }
  return new Problem(`${name} cannot generate: ${reason}`);
}

// Loops instead of callbacks, since each runs over the vocabulary at every token.

function softmax(logits, temperature) {
  const weights = new Float32Array(logits.length);
  const highest = logits[likeliest(logits, 1)[0]];
  let sum = 0;
  for (let token = 0; token < logits.length; token += 1) {
    sum += weights[token] = Math.exp((logits[token] - highest) / temperature);
  }
  for (let token = 0; token < logits.length; token += 1) weights[token] /= sum;
  return weights;
}

/** Return the tokens of the highest values in descending order; ties by index. */
function likeliest(values, count) {
  const best = [];
  for (let token = 0; token < values.length; token += 1) {
    if (best.length === count && !(values[token] > values[best.at(-1)])) continue;
    let place = best.length;
    while (place > 0 && values[token] > values[best[place - 1]]) place -= 1;
    best.splice(place, 0, token);
    best.length = Math.min(best.length, count);
  }
  return best;
}

function draw(probabilities, random) {
  let left = random.random();
  for (let token = 0; token < probabilities.length; token += 1) {
    left -= probabilities[token];
    if (left < 0) return token;
  }
  // Rounding kept the sum below the draw.
  return likeliest(probabilities, 1)[0];
}
