// The page: a beginning goes in, the chosen models tell on side by side.

import { Problem } from "./loading.js";
import { explained, Storyteller } from "./storyteller.js";

const element = (id) => document.getElementById(id);
const form = element("ask");
const prompt = element("prompt");
const tellers = [];
let site;
let telling = null;
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

// Work goes on after the browser has answered whoever clicked meanwhile.
const breath = () =>
  new Promise((resolve) => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => {
      channel.port1.close();
      resolve();
    };
    channel.port2.postMessage(null);
  });

/** One model's column: its facts, its progress, its story, and how sure it was of each word. */
class Teller {
  constructor(entry) {
    this.entry = entry;
    this.storyteller = null;
    this.progress = make("progress", { max: 1, hidden: true });
    this.progress.setAttribute("aria-label", `Loading ${entry.name}`);
    this.figures = make("p", { className: "figures" });
    this.story = make("div", { className: "story", tabIndex: 0 });
    this.story.setAttribute("role", "group");
    this.story.setAttribute("aria-label", `Story by ${entry.name}; arrow keys go from word to word`);
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

  async tell({ text, temperature, length, seed }, signal) {
    this.words = [];
    this.sure.replaceChildren();
    this.story.replaceChildren(make("span", { className: "given", textContent: text }));
    this.figures.textContent = "";
    const begun = performance.now();
    await this.load();
    const { ids, cut } = this.storyteller.read(text, length);
    const left = cut ? `The beginning is longer than this model reads; only its last ${ids.length} tokens count. ` : "";
    const ready = performance.now();
    let [tokens, first, working] = [0, null, 0];
    const say = (end) => {
      this.figures.textContent = `${left}${tokens} tokens, ${((1000 * tokens) / working).toFixed(0)} a second${end}`;
    };
    const steps = this.storyteller.tell(ids, { temperature, length, seed, signal });
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
      make("p", { textContent: `“${said}”: the model gave it ${percent(share)}${pieces}. Likeliest here:` }),
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

const chosen = () => tellers.filter(({ box }) => box.checked);

function settings(seed) {
  return {
    text: prompt.value.trimEnd(),
    temperature: Number(element("temperature").value),
    length: Number(element("length").value),
    seed,
  };
}

/** Tell with every chosen model at once; whatever becomes of it, the page is ready again after. */
async function tell(request) {
  complain(null);
  if (!request.text) {
    complain("Write how the story begins, or choose one of the beginnings.");
    prompt.focus();
    return;
  }
  if (!chosen().length) {
    complain("Choose who tells the story.");
    return;
  }
  asked = request;
  telling = new AbortController();
  refresh();
  element("stories").replaceChildren(...chosen().map(({ column }) => column));
  element("status").textContent = "Telling …";
  const results = await Promise.allSettled(chosen().map((teller) => teller.tell(request, telling.signal)));
  const failed = results.map((result, at) => result.status === "rejected" && [result.reason, chosen()[at]]);
  const problems = failed.filter(Boolean).map(([reason, teller]) => explained(reason, teller.entry.name).message);
  complain(problems.join(" "));
  element("status").textContent = problems.length ? "" : telling.signal.aborted ? "Stopped." : "Told.";
  telling = null;
  refresh();
}

function refresh() {
  element("tell").disabled = Boolean(telling);
  element("stop").disabled = !telling;
  element("again").disabled = Boolean(telling) || !asked;
  for (const { box } of tellers) box.disabled = Boolean(telling);
}

function showValues() {
  element("temperature-value").textContent = Number(element("temperature").value).toFixed(1);
  element("length-value").textContent = `at most ${element("length").value}`;
}

function arrange() {
  for (const entry of site.models) {
    const teller = new Teller(entry);
    teller.box = make("input", { type: "checkbox", checked: !tellers.length });
    element("models").append(make("label", {}, teller.box, ` ${entry.name}`));
    tellers.push(teller);
    element("sources").append(make("li", { textContent: `${entry.name}: ${entry.source}` }));
  }
  element("models").hidden = tellers.length < 2;
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
    tell(settings(1));
  });
  element("again").addEventListener("click", () => tell({ ...asked, seed: asked.seed + 1 }));
  element("stop").addEventListener("click", () => telling?.abort());
  const response = await fetch("page.json");
  if (!response.ok) throw new Problem("page.json is not on this server; the page has to be built again.");
  site = await response.json();
  arrange();
  showValues();
  refresh();
  form.inert = false;
}

start().catch((error) => complain(error.message));
