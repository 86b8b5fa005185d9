// The page: the selected models continue a prompt side by side.

import { Problem } from "./loading.js";
import { explained, Storyteller } from "./storyteller.js";

const element = (id) => document.getElementById(id);
const form = element("ask");
const prompt = element("prompt");
const columns = [];
let site;
let generating = null;
let asked = null;

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function complain(message) {
  element("problem").textContent = message ?? "";
  element("problem").hidden = !message;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;

// Let the browser handle events, such as clicks, before the work continues.
const breath = () =>
  new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });

/** The column of a model: its facts, progress, story, and the probability of each word. */
class Column {
  constructor(entry) {
    this.entry = entry;
    this.storyteller = null;
    this.progress = make("progress", { max: 1, hidden: true });
    this.progress.setAttribute("aria-label", `Loading ${entry.name}`);
    this.figures = make("p", { className: "figures" });
    this.story = make("div", { className: "story", tabIndex: 0 });
    this.story.setAttribute("role", "group");
    this.story.setAttribute("aria-label", `Story by ${entry.name}; use the arrow keys to go from word to word`);
    this.sure = make("div", { className: "sure" });
    this.sure.setAttribute("aria-live", "polite");
    const heading = make("h2", { textContent: entry.name });
    const facts = make("p", { className: "facts", textContent: entry.facts });
    this.column = make("article", {}, heading, facts, this.progress, this.figures, this.story, this.sure);
    this.story.addEventListener("pointerover", (event) => this.point(event.target));
    this.story.addEventListener("click", (event) => this.point(event.target));
    this.story.addEventListener("keydown", (event) => this.walk(event));
  }

  async load() {
    if (this.storyteller) return;
    this.progress.hidden = false;
    try {
      this.storyteller = await Storyteller.load(this.entry, site.wasm, (what, loaded, total, text) => {
        this.progress.value = loaded / total;
        this.figures.textContent = `Loading ${what}: ${text}`;
      });
      this.figures.textContent = "";
    } finally {
      this.progress.hidden = true;
    }
  }

  async generate({ text, temperature, length, seed }, signal) {
    this.words = [];
    this.sure.replaceChildren();
    this.story.replaceChildren(make("span", { className: "given", textContent: text }));
    this.figures.textContent = "";
    const begun = performance.now();
    await this.load();
    const { ids, cut } = this.storyteller.read(text, length);
    const left = cut ? `The prompt does not fit the context; only its last ${ids.length} tokens are used. ` : "";
    const ready = performance.now();
    let [tokens, first, working] = [0, null, 0];
    const say = (end) => {
      this.figures.textContent = `${left}${tokens} tokens, ${((1000 * tokens) / working).toFixed(0)} a second${end}`;
    };
    const steps = this.storyteller.generate(ids, { temperature, length, seed, signal });
    for (let from = ready; ; from = performance.now()) {
      const { value, done } = await steps.next();
      working += performance.now() - from;
      if (done) {
        say(`; ${value}`);
        break;
      }
      first ??= performance.now() - ready;
      tokens += value.tokens;
      this.add(value);
      say("");
      await breath();
    }
    Object.assign(this.column.dataset, {
      loadMs: Math.round(ready - begun), firstMs: Math.round(first ?? 0), workingMs: Math.round(working), tokens,
    });
  }

  add(token) {
    const word = this.words.at(-1);
    if (word?.span.textContent.trim() && !/^\s/.test(token.text)) {
      word.steps.push(token);
      word.span.textContent += token.text;
      return;
    }
    const text = token.text.trimStart() || token.text;
    const span = make("span", { className: "word", textContent: text });
    this.words.push({ span, steps: [token] });
    this.story.append(token.text.slice(0, token.text.length - text.length), span);
  }

  point(target) {
    const word = this.words?.find(({ span }) => span === target);
    if (!word) return;
    this.story.querySelector(".current")?.classList.remove("current");
    word.span.classList.add("current");
    const share = word.steps.reduce((product, { probability }) => product * probability, 1);
    const { text: first, alternatives } = word.steps[0];
    const said = word.span.textContent.trim() || "a new line";
    const pieces = word.steps.length > 1 ? `, in ${word.steps.length} pieces` : "";
    this.sure.replaceChildren(
      make("p", { textContent: `“${said}”: probability ${percent(share)}${pieces}. Most likely here:` }),
      make("ol", {}, ...alternatives.map((other) => bar(other, other.text === first))),
    );
  }

  walk(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !this.words?.length) return;
    event.preventDefault();
    const at = this.words.findIndex(({ span }) => span.classList.contains("current"));
    const next = Math.min(Math.max(at < 0 ? 0 : at + step, 0), this.words.length - 1);
    this.point(this.words[next].span);
  }
}

function bar({ text, probability }, chosen) {
  const filled = make("span");
  filled.style.width = percent(probability);
  const drawn = make("span", { className: "bar" }, filled);
  const name = make("span", { textContent: text.trim() || "new line" });
  return make("li", { className: chosen ? "chosen" : "" }, name, drawn, make("span", { textContent: percent(probability) }));
}

const chosen = () => columns.filter(({ box }) => box.checked);

function settings(seed) {
  return {
    text: prompt.value.trimEnd(),
    temperature: Number(element("temperature").value),
    length: Number(element("length").value),
    seed,
  };
}

/** Generate with all selected models at once; afterwards the page is ready again, even after an error. */
async function generate(request) {
  complain(null);
  if (!request.text) {
    complain("Write a prompt, or choose one of the examples.");
    prompt.focus();
    return;
  }
  if (!chosen().length) {
    complain("Select at least one model.");
    return;
  }
  asked = request;
  generating = new AbortController();
  refresh();
  element("stories").replaceChildren(...chosen().map(({ column }) => column));
  element("status").textContent = "Generating …";
  const results = await Promise.allSettled(chosen().map((column) => column.generate(request, generating.signal)));
  const failed = results.map((result, at) => result.status === "rejected" && [result.reason, chosen()[at]]);
  const problems = failed.filter(Boolean).map(([reason, column]) => explained(reason, column.entry.name).message);
  complain(problems.join(" "));
  element("status").textContent = problems.length ? "" : generating.signal.aborted ? "Stopped." : "Done.";
  generating = null;
  refresh();
}

function refresh() {
  element("generate").disabled = Boolean(generating);
  element("stop").disabled = !generating;
  element("again").disabled = Boolean(generating) || !asked;
  for (const { box } of columns) box.disabled = Boolean(generating);
}

function showValues() {
  element("temperature-value").textContent = Number(element("temperature").value).toFixed(1);
  element("length-value").textContent = `at most ${element("length").value}`;
}

function arrange() {
  for (const entry of site.models) {
    const column = new Column(entry);
    column.box = make("input", { type: "checkbox", checked: !columns.length });
    element("models").append(make("label", {}, column.box, ` ${entry.name}`));
    columns.push(column);
    element("sources").append(make("li", { textContent: `${entry.name}: ${entry.source}` }));
  }
  element("models").hidden = columns.length < 2;
  element("length").max = Math.max(...site.models.map(({ context }) => context));
  element("length").value = element("length").max;
  for (const text of site.beginnings) {
    const choose = () => {
      prompt.value = text;
      prompt.focus();
    };
    element("beginnings").append(make("button", { type: "button", textContent: text, onclick: choose }));
  }
  prompt.value = site.beginnings[0];
  element("licences").append("Libraries: ", ...site.libraries.flatMap(({ name, url, licence }, at) => [
    at ? ", " : "", make("a", { href: url, textContent: name }), ` (${licence})`,
  ]), ".");
}

async function start() {
  form.addEventListener("input", showValues);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    generate(settings(1));
  });
  element("again").addEventListener("click", () => generate({ ...asked, seed: asked.seed + 1 }));
  element("stop").addEventListener("click", () => generating?.abort());
  const response = await fetch("page.json");
  if (!response.ok) throw new Problem("page.json is missing on this server; build the page again.");
  site = await response.json();
  arrange();
  showValues();
  refresh();
  form.inert = false;
}

start().catch((error) => complain(error.message));
