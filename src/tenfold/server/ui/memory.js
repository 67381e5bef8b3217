// Memory by model over the last minutes, with what woke, slept and moved, and why.

import { $, age, bytes, fill, make, setText, toneOf } from "/ui/dom.js";

const SECONDS = 300;
const WIDTH = 300;
const HEIGHT = 120;
const MOST_MARKS = 80;
const MOST_ROWS = 30;
const SVG = "http://www.w3.org/2000/svg";
const MARKS = { awake: "▲", sleep: "▼", migrate: "◆" };

const seen = { history: [], tones: new Map(), devices: 0 };

export function showMemory(status) {
  seen.tones = new Map(status.models.map((model, index) => [model.name, toneOf(index)]));
  seen.devices = status.devices.length;
  seen.history.push(sample(status));
  while (seen.history[0].now < status.now - SECONDS) seen.history.shift();
  drawPages(status);
  drawMarks(status);
  drawLegend(status.models);
  fill($("decisions"), status.decisions.slice(0, MOST_ROWS).map(decisionRow), 2, "No memory has moved yet.");
}

// Bytes of weights, and of keys and values, of every model over all devices.
function sample(status) {
  const models = new Map();
  let capacity = 0;
  for (const device of status.devices) {
    capacity += device.capacity_pages * device.page_bytes;
    for (const model of device.models) {
      const held = models.get(model.name) || [0, 0];
      held[0] += model.weight_pages * device.page_bytes;
      held[1] += model.kv_pages * device.page_bytes;
      models.set(model.name, held);
    }
  }
  const total = [...models.values()].reduce((sum, [weights, kv]) => sum + weights + kv, 0);
  return { now: status.now, models, capacity, total };
}

function drawPages(status) {
  const { capacity, total } = seen.history.at(-1);
  const peak = Math.max(...seen.history.map((each) => each.total));
  // Where little of the memory is used, the chart would be a line at its foot.
  const top = Math.max(1, Math.min(capacity, Math.max(peak * 1.25, capacity / 16)));
  const xs = seen.history.map((each) => place(status.now - each.now));
  let below = xs.map(() => 0);
  const layers = [];
  for (const [name, tone] of seen.tones) {
    ["weights", "kv"].forEach((what, index) => {
      const above = seen.history.map((each, at) => below[at] + (each.models.get(name)?.[index] || 0));
      if (above.some((value, at) => value > below[at])) {
        const path = document.createElementNS(SVG, "path");
        path.setAttribute("class", `layer ${what} ${tone}`);
        path.setAttribute("d", `M${[...steps(xs, above, top), ...steps(xs, below, top).reverse()].join("L")}Z`);
        layers.push(path);
      }
      below = above;
    });
  }
  $("memory-layers").replaceChildren(...layers);
  const height = top < capacity ? `height ${bytes(top)}, of ${bytes(capacity)}` : `height ${bytes(capacity)}`;
  setText($("memory-top"), height);
  setText($("memory-now"), `${bytes(total)} now`);
  $("memory-chart").setAttribute("aria-label", `Memory by model over the last five minutes; now ${bytes(total)}`);
}

// Memory moves at once: what was seen holds until something else is.
function steps(xs, values, top) {
  const y = (value) => (HEIGHT * (1 - value / top)).toFixed(1);
  return values.flatMap((value, at) => {
    const point = `${xs[at].toFixed(1)} ${y(value)}`;
    return at ? [`${xs[at].toFixed(1)} ${y(values[at - 1])}`, point] : [point];
  });
}

// Where in the chart a moment lies that was so many seconds ago.
function place(ago) {
  return WIDTH * (1 - ago / SECONDS);
}

function drawMarks(status) {
  const marked = status.decisions.filter((each) => MARKS[each.kind] && each.age < SECONDS);
  const marks = marked.slice(0, MOST_MARKS).map((each) => {
    const mark = make("span", seen.tones.get(each.model) || "tone-other", MARKS[each.kind]);
    mark.style.left = `${place(each.age) / WIDTH * 100}%`;
    mark.title = `${each.kind} ${each.model}: ${each.why}`;
    return mark;
  });
  $("memory-marks").replaceChildren(...marks);
  const lines = marked.slice(0, MOST_MARKS).map((each) => `M${place(each.age).toFixed(1)} 0V${HEIGHT}`);
  $("memory-lines").setAttribute("d", lines.join(""));
}

function drawLegend(models) {
  const entries = models.map((model) => {
    const entry = make("li", seen.tones.get(model.name));
    entry.append(make("span", "swatch"), document.createTextNode(model.name));
    return entry;
  });
  $("memory-legend").replaceChildren(...entries);
}

function decisionRow(each) {
  const row = make("tr", seen.tones.get(each.model) || "tone-other");
  const what = make("td", "reason");
  what.append(make("span", "swatch"), document.createTextNode(`${each.kind} ${each.model}`));
  const facts = [each.why];
  if (each.pages) facts.push(`${each.pages} pages`);
  if (each.seconds) facts.push(`${(each.seconds * 1000).toFixed(0)} ms`);
  if (seen.devices > 1 || each.device === "fleet") facts.push(each.device);
  what.append(make("small", "", facts.join(" · ")));
  row.append(what, make("td", "number", age(each.age)));
  return row;
}
