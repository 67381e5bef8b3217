// Who is served how much: a stacked chart of the last two minutes, and where every client stands.

import { $, age, fill, make, setText } from "/ui/dom.js";

const SAMPLES = 120;
const TONES = 6;
const MOST_ROWS = 50;
const WIDTH = 300;
const HEIGHT = 120;
const MERGED = new Set(["other", "(other clients)"]);

const seen = { history: [], tones: new Map() };

export function showShares(status) {
  const shares = new Map();
  for (const each of status.clients) if (each.share) shares.set(each.name, each.share);
  seen.history.push(shares);
  if (seen.history.length > SAMPLES) seen.history.shift();
  assignTones();
  drawShares();
  showEvenness(status.devices);
  showStanding(status.clients);
}

// The clients that got most in the time shown have a tone each, and keep it while they do.
function assignTones() {
  const sums = new Map();
  for (const shares of seen.history) {
    for (const [name, share] of shares) {
      if (!MERGED.has(name)) sums.set(name, (sums.get(name) || 0) + share);
    }
  }
  const ranked = [...sums].sort((a, b) => b[1] - a[1]).slice(0, TONES).map(([name]) => name);
  for (const name of seen.tones.keys()) if (!ranked.includes(name)) seen.tones.delete(name);
  const taken = new Set(seen.tones.values());
  const free = [...Array(TONES).keys()].filter((tone) => !taken.has(tone));
  for (const name of ranked) if (!seen.tones.has(name)) seen.tones.set(name, free.shift());
}

function drawShares() {
  const names = Array(TONES).fill(null);
  for (const [name, tone] of seen.tones) names[tone] = name;
  const layers = $("shares").querySelectorAll(".layer");
  let below = seen.history.map(() => 0);
  layers.forEach((layer, index) => {
    const above = seen.history.map((shares, at) => {
      if (index === TONES) return [...shares.values()].reduce((sum, share) => sum + share, 0);
      return below[at] + (shares.get(names[index]) || 0);
    });
    const thick = above.some((value, at) => value - below[at] > 1e-6);
    layer.setAttribute("d", thick ? `M${[...edge(above), ...edge(below).reverse()].join("L")}Z` : "");
    below = above;
  });
  const now = [...seen.history.at(-1)].map(([name, share]) => `${name} ${percent(share)}`);
  const words = now.length ? `; now ${now.slice(0, TONES).join(", ")}` : "";
  $("shares").setAttribute("aria-label", `Share of service over the last two minutes${words}`);
}

function edge(values) {
  const step = WIDTH / (SAMPLES - 1);
  const start = WIDTH - (values.length - 1) * step;
  return values.map((value, at) => {
    const y = HEIGHT * (1 - Math.min(1, value));
    return `${(start + at * step).toFixed(1)} ${y.toFixed(1)}`;
  });
}

function showEvenness(devices) {
  const known = devices.filter((each) => each.jain !== null);
  const words = known.map((each) => {
    const where = devices.length > 1 ? ` on ${each.name}` : "";
    return `Jain's index ${each.jain.toFixed(3)}${where}`;
  });
  setText($("jain"), words.join(" · "));
}

function percent(value) {
  return `${Math.round(value * 100)} %`;
}

function signed(value) {
  const rounded = Math.round(value * 100);
  return minus(`${rounded > 0 ? "+" : ""}${rounded} %`);
}

function counted(value) {
  const notation = Math.abs(value) < 1e5 ? "standard" : "compact";
  return minus(value.toLocaleString("en", { maximumFractionDigits: 0, notation }));
}

function minus(text) {
  return text.replace("-", "\u2212");
}

function showStanding(clients) {
  const known = clients.filter((each) => each.service || each.waiting || each.running);
  known.sort((a, b) => b.service - a.service || (a.name < b.name ? -1 : 1));
  fill($("standing"), known.slice(0, MOST_ROWS).map(standingRow), 4, "Nobody was served yet.");
}

function standingRow(each) {
  const tone = seen.tones.get(each.name);
  const row = make("tr", tone === undefined ? "tone-other" : `tone-${tone}`);
  const name = make("td");
  name.title = each.name;
  name.append(make("span", "swatch"), document.createTextNode(each.name));
  const hits = each.hit_rate === null ? "nothing" : percent(each.hit_rate);
  name.append(make("small", "", `${hits} cached`));
  const share = each.share === null ? "–" : percent(each.share);
  const credit = each.credit === null ? "" : `credit ${counted(each.credit)}`;
  row.append(
    name,
    cell(share, each.fair ? `due ${percent(each.fair)}` : ""),
    cell(signed(each.drift), credit, Math.abs(each.drift) > 1 ? "beyond" : ""),
    cell(String(each.waiting), each.waiting ? age(each.oldest_wait) : "", each.waiting ? "waiting" : ""),
  );
  return row;
}

function cell(text, below = "", className = "") {
  const made = make("td", `number ${className}`.trim(), text);
  if (below) made.append(make("small", "", below));
  made.title = below ? `${text}, ${below}` : text;
  return made;
}
