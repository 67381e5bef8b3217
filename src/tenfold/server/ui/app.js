// The dashboard: a chat with any served model, and a live view of the server.
// Everything that came from outside is written with textContent, never as HTML.

import { $, age, bytes, cells, fill, make, setText, toneOf } from "/ui/dom.js";
import { showMemory } from "/ui/memory.js";
import { showShares } from "/ui/shares.js";

const POLL_MS = 1000;
const SAMPLES = 120;
const KEY = "tenfold-api-key";

// --- talking to the server --------------------------------------------------------------------

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (response.ok) return response;
  let message = `The server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the status has to do */ }
  throw new ServerError(message, response.status);
}

// Yields the payload of every event of a stream; throws on an error event.
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const line = block.split("\n").find((each) => each.startsWith("data: "));
        if (!line) continue; // a keep-alive comment
        const data = line.slice(6);
        if (data === "[DONE]") return;
        const payload = JSON.parse(data);
        if (payload.error) throw new ServerError(payload.error.message, 0);
        yield payload;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// --- chat -------------------------------------------------------------------------------------

const chat = { messages: [], running: null, models: new Map() };

function currentModel() {
  return chat.models.get($("model").value);
}

function showModels(models) {
  const select = $("model");
  const usable = models.filter((model) => model.kind !== "embed" && model.state === "ready");
  chat.models = new Map(usable.map((model) => [model.name, model]));
  const names = usable.map((model) => model.name).join("\n");
  if (select.dataset.names !== names) {
    const chosen = select.value;
    const options = usable.map((model) => {
      const label = model.has_chat_template ? model.name : `${model.name} (completion)`;
      const option = make("option", "", label);
      option.value = model.name;
      return option;
    });
    if (!usable.length) options.push(make("option", "", "No model yet"));
    select.replaceChildren(...options);
    if (chat.models.has(chosen)) select.value = chosen;
    select.dataset.names = names;
  }
  select.disabled = !usable.length;
  showMode();
}

function showMode() {
  const model = currentModel();
  const completion = Boolean(model) && !model.has_chat_template;
  $("mode").hidden = !completion;
  if (completion) {
    setText($("mode"), `${model.name} is a base model without a chat template: it does not answer, `
      + "it continues your text. Each text stands alone.");
  }
  setText($("prompt-label"), completion ? "Text to continue" : "Message");
  $("prompt").placeholder = completion ? "Text to continue" : "Message";
  showSend();
}

function showSend() {
  const send = $("send");
  const running = chat.running !== null;
  setText(send, running ? "Stop" : "Send");
  send.classList.toggle("stop", running);
  send.disabled = !running && (!currentModel() || !$("prompt").value.trim());
  $("clear").disabled = running || !$("log").querySelector(".turn");
}

function addTurn(role, who) {
  $("empty").hidden = true;
  const turn = make("article", `turn ${role}`);
  turn.append(make("p", "who", who));
  const text = make("div", "text");
  turn.append(text);
  $("log").append(turn);
  return { turn, text };
}

// Text with fenced code as blocks. Only text nodes are made.
function showText(element, text) {
  const parts = text.split("```");
  const nodes = parts.map((part, index) => {
    if (index % 2 === 0) return document.createTextNode(part);
    const code = part.includes("\n") ? part.slice(part.indexOf("\n") + 1) : part;
    return make("pre", "", code);
  });
  element.replaceChildren(...nodes);
}

function atBottom(log) {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function body(model, prompt) {
  const common = {
    model: model.name,
    stream: true,
    stream_options: { include_usage: true },
    temperature: number("temperature", 0.7),
    max_tokens: Math.max(1, Math.round(number("max-tokens", 512))),
  };
  if (!model.has_chat_template) return ["/v1/completions", { ...common, prompt }];
  return ["/v1/chat/completions", { ...common, messages: chat.messages }];
}

function number(id, fallback) {
  const value = $(id).valueAsNumber;
  return Number.isFinite(value) ? value : fallback;
}

async function send(prompt) {
  const model = currentModel();
  const completion = !model.has_chat_template;
  if (!completion) chat.messages.push({ role: "user", content: prompt });
  if (!completion) addTurn("user", "You").text.textContent = prompt;
  const answer = new Answer(model.name, completion ? prompt : "");
  chat.running = new AbortController();
  showSend();
  try {
    const [path, payload] = body(model, prompt);
    const response = await request(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(payload),
      signal: chat.running.signal,
    });
    for await (const chunk of events(response)) answer.take(chunk);
    answer.end();
  } catch (error) {
    if (error.name === "AbortError") answer.end("stopped");
    else answer.fail(error);
  } finally {
    chat.running = null;
    if (!completion && answer.said) {
      chat.messages.push({ role: "assistant", content: answer.said });
    } else if (!completion) {
      chat.messages.pop(); // a question without an answer is not part of the conversation
    }
    showSend();
    $("prompt").focus({ preventScroll: true });
  }
}

// One answer as it grows.
class Answer {
  constructor(model, given) {
    const { turn, text } = addTurn("assistant busy", model);
    this.turn = turn;
    this.text = text;
    this.said = "";
    this.thought = "";
    this.began = performance.now();
    this.first = null;
    this.usage = null;
    this.finish = "";
    this.drawing = false;
    this.out = text;
    if (given) {
      this.out = make("span");
      text.append(make("span", "given", given), this.out);
    }
    this.draw();
  }

  take(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (!choice) return;
    const more = choice.text ?? choice.delta?.content ?? "";
    const thought = choice.delta?.reasoning_content ?? "";
    if ((more || thought) && this.first === null) this.first = performance.now();
    this.said += more;
    this.thought += thought;
    if (choice.finish_reason) this.finish = choice.finish_reason;
    this.draw();
  }

  // At most once a frame, however fast tokens come.
  draw() {
    if (this.drawing) return;
    this.drawing = true;
    requestAnimationFrame(() => {
      this.drawing = false;
      this.show();
    });
  }

  show() {
    const log = $("log");
    const follow = atBottom(log);
    showText(this.out, this.said);
    if (this.thought) this.showThought();
    if (follow) log.scrollTop = log.scrollHeight;
  }

  showThought() {
    if (!this.thoughtText) {
      const details = make("details");
      this.thoughtText = make("div", "thought");
      details.append(make("summary", "", "Thinking"), this.thoughtText);
      this.turn.insertBefore(details, this.text);
    }
    this.thoughtText.textContent = this.thought;
  }

  end(why = "") {
    this.turn.classList.remove("busy");
    this.show();
    const facts = [];
    if (this.usage) {
      const made = this.usage.completion_tokens;
      const seconds = (performance.now() - this.first) / 1000;
      facts.push(`${made} tokens`);
      if (this.first && made > 1 && seconds > 0) facts.push(`${((made - 1) / seconds).toFixed(1)} tokens/s`);
      if (this.first) facts.push(`first after ${((this.first - this.began) / 1000).toFixed(2)} s`);
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      if (cached) facts.push(`${cached} of ${this.usage.prompt_tokens} prompt tokens cached`);
    }
    if (this.finish === "length") facts.push("cut at the longest answer");
    if (why) facts.push(why);
    if (facts.length) this.turn.append(make("p", "note facts", facts.join(" · ")));
    $("log").scrollTop = $("log").scrollHeight;
  }

  fail(error) {
    this.end();
    const message = make("p", "error", error.message || "The connection was lost");
    message.setAttribute("role", "alert");
    this.turn.append(message);
    if (error.status === 401) askForKey();
    $("log").scrollTop = $("log").scrollHeight;
  }
}

function fitPrompt() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function wireChat() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (chat.running) {
      chat.running.abort();
      return;
    }
    const prompt = $("prompt").value;
    if (!prompt.trim() || !currentModel()) return;
    $("prompt").value = "";
    fitPrompt();
    send(prompt);
  });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || chat.running) return;
    event.preventDefault();
    $("composer").requestSubmit();
  });
  $("prompt").addEventListener("input", () => {
    fitPrompt();
    showSend();
  });
  $("model").addEventListener("change", () => {
    clearChat();
    showMode();
  });
  $("clear").addEventListener("click", clearChat);
}

function clearChat() {
  if (chat.running) return;
  chat.messages = [];
  for (const turn of $("log").querySelectorAll(".turn")) turn.remove();
  $("empty").hidden = false;
  showSend();
}

// --- live view --------------------------------------------------------------------------------

const live = { last: null, speeds: [] };

async function poll() {
  if (document.visibilityState === "visible") {
    try {
      const status = await (await request("/v1/status")).json();
      showStatus(status);
    } catch (error) {
      if (error.status === 401) askForKey();
      else showState("offline", "Not reachable");
    }
  }
  setTimeout(poll, POLL_MS);
}

function showState(state, text) {
  $("state").dataset.state = state;
  setText($("state-text"), text);
}

function askForKey() {
  if ($("state").dataset.state !== "locked") {
    $("key").open = true;
    $("key-input").focus();
  }
  showState("locked", "Needs an API key");
}

function showStatus(status) {
  if (status.draining) showState("draining", "Draining");
  else showState(status.ready ? "ready" : "starting", status.ready ? "Ready" : "Starting");
  setText($("version"), `Tenfold ${status.version}`);
  showModels(status.models);
  showSpeed(status);
  showDevices(status);
  showMemory(status);
  showShares(status);
  showQueue(status.queue);
  showClients(status.clients);
}

function showSpeed(status) {
  const before = live.last;
  live.last = status;
  if (!before || status.now <= before.now) return;
  // A model that was unloaded takes its count with it: no speed is below zero.
  const made = Math.max(0, status.generated_tokens - before.generated_tokens);
  live.speeds.push(made / (status.now - before.now));
  if (live.speeds.length > SAMPLES) live.speeds.shift();
  const now = live.speeds.at(-1);
  const top = Math.max(...live.speeds);
  setText($("speed"), now >= 100 ? now.toFixed(0) : now.toFixed(1));
  setText($("speed-top"), `highest ${top.toFixed(0)}`);
  drawSpark(live.speeds, Math.max(top, 1));
}

function drawSpark(speeds, top) {
  const step = 300 / (SAMPLES - 1);
  const start = 300 - (speeds.length - 1) * step;
  const points = speeds.map((speed, index) => {
    const x = (start + index * step).toFixed(1);
    return `${x},${(53 - (speed / top) * 49).toFixed(1)}`;
  });
  const [area, line] = $("spark").children;
  line.setAttribute("d", `M${points.join("L")}`);
  area.setAttribute("d", `M${start.toFixed(1)},56L${points.join("L")}L300,56Z`);
}

function part(className, share, title) {
  const span = make("span", className);
  span.style.width = `${Math.min(100, share * 100)}%`;
  span.title = title;
  return span;
}

function showDevices(status) {
  const devices = status.devices.map((device) => {
    const box = make("div", "device");
    const used = device.mapped_pages * device.page_bytes;
    const whole = device.capacity_pages * device.page_bytes;
    const head = make("p", "note spread");
    head.append(make("span", "", device.name));
    head.append(make("span", "", `${bytes(used)} of ${bytes(whole)} mapped`));
    const stack = make("div", "stack");
    const list = make("ul", "models");
    status.models.forEach((model, index) => {
      const none = { running: 0, waiting: 0, weight_pages: 0, kv_pages: 0, cached_pages: 0 };
      const load = device.models.find((each) => each.name === model.name);
      if (!load && model.device !== device.name) return;
      const here = { ...model, residency: "resident", ...(load || none) };
      const tone = toneOf(index);
      const pages = here.weight_pages + here.kv_pages;
      const share = device.capacity_pages ? pages / device.capacity_pages : 0;
      stack.append(part(tone, share, `${model.name}: ${pages} pages`));
      list.append(modelRow(here, device, tone));
    });
    if (device.scratch_pages) {
      const share = device.scratch_pages / device.capacity_pages;
      stack.append(part("scratch", share, `scratch: ${device.scratch_pages} pages`));
    }
    stack.setAttribute("role", "img");
    stack.setAttribute("aria-label", `${device.mapped_pages} of ${device.capacity_pages} pages mapped`);
    box.append(head, stack, list);
    return box;
  });
  if (devices.length) $("devices").replaceChildren(...devices);
}

const ASLEEP = {
  cold: ["asleep", "Its weights are on disk; a request wakes it"],
  host: ["asleep", "Its weights are in the host's memory; a request wakes it"],
  waking: ["waking", "Its weights are on their way"],
};

function modelRow(model, device, tone) {
  const row = make("li", tone);
  const name = make("p", "name");
  const label = make("b", "", model.name);
  label.title = model.name;
  name.append(make("span", "swatch"), label);
  if (model.state !== "ready") name.append(make("span", `tag ${model.state}`, model.state));
  if (model.kind === "embed") name.append(make("span", "tag", "embeddings"));
  if (model.state === "ready" && ASLEEP[model.residency]) {
    const tag = make("span", `tag ${model.residency}`, ASLEEP[model.residency][0]);
    tag.title = ASLEEP[model.residency][1] + (model.held ? "; held until it is told to wake" : "");
    name.append(tag);
  }
  if (model.pinned) name.append(make("span", "tag", "pinned"));
  if (model.held) name.append(make("span", "tag", "held"));
  name.append(make("span", "note load", `${model.running} running · ${model.waiting} waiting`));
  const bar = make("div", "bar2");
  const whole = Math.max(1, ...live.last.models.map((each) => each.weight_pages + each.kv_pages));
  bar.append(part("weights", model.weight_pages / whole, "weights"));
  bar.append(part("kv", (model.kv_pages - model.cached_pages) / whole, "KV"));
  bar.append(part("cached", model.cached_pages / whole, "cached prefixes"));
  const size = (pages) => bytes(pages * device.page_bytes);
  let facts = `weights ${model.weight_pages} pages (${size(model.weight_pages)}), `
    + `KV ${model.kv_pages} (${size(model.kv_pages)})`;
  if (model.cached_pages) facts += `, ${model.cached_pages} cached`;
  if (model.sleeps_in !== null && model.residency === "resident" && !model.running) {
    facts += `; sleeps in ${age(model.sleeps_in)}`;
  }
  row.append(name, bar, make("p", "note", model.error || facts));
  return row;
}

function showQueue(queue) {
  const waiting = queue.filter((each) => each.state === "waiting").length;
  setText($("queue-count"), queue.length ? `${queue.length - waiting} running, ${waiting} waiting` : "");
  const rows = queue.map((each) => cells([
    [each.client, "", each.model],
    [`${each.prompt_tokens} + ${each.generated}`, "number"],
    [`${each.state} ${age(each.age)}`, `number ${each.state}`],
  ]));
  fill($("queue"), rows, 3, "Nobody is waiting.");
}

function showClients(clients) {
  const rows = clients.map((each) => cells([
    [each.name],
    [String(each.live), "number"],
    [each.requests.toLocaleString("en"), "number"],
    [each.prompt_tokens.toLocaleString("en"), "number"],
    [each.completion_tokens.toLocaleString("en"), "number"],
  ]));
  fill($("clients"), rows, 5, "Nobody has asked anything yet.");
}

// --- frame ------------------------------------------------------------------------------------

function wireFrame() {
  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => {
      document.body.dataset.view = button.dataset.show;
      for (const each of document.querySelectorAll("[data-show]")) {
        each.setAttribute("aria-pressed", String(each === button));
      }
    });
  }
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = $("key-input").value.trim();
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
    $("key").open = false;
    showState("unknown", "Connecting");
  });
  $("key-input").value = sessionStorage.getItem(KEY) || "";
  // Panels close on Escape and on a click elsewhere, as people expect of them.
  const panels = document.querySelectorAll("details.key, details.options");
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const panel of panels) {
      if (panel.open && panel.contains(document.activeElement)) panel.querySelector("summary").focus();
      panel.open = false;
    }
  });
  document.addEventListener("click", (event) => {
    for (const panel of panels) if (!panel.contains(event.target)) panel.open = false;
  });
}

wireFrame();
wireChat();
showSend();
poll();
