// Making and filling elements. Text is only ever written with textContent, never as HTML.

export const $ = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A row of a table, from [text, class, small text below].
export function cells(values) {
  const row = make("tr");
  for (const [text, className, below] of values) {
    const cell = make("td", className || "", text);
    cell.title = text;
    if (below) cell.append(make("small", "", below));
    row.append(cell);
  }
  return row;
}

export function fill(table, rows, columns, nothing) {
  if (!rows.length) {
    const row = make("tr");
    const cell = make("td", "none", nothing);
    cell.colSpan = columns;
    row.append(cell);
    rows = [row];
  }
  table.replaceChildren(...rows);
}

export function bytes(count) {
  if (count >= 2 ** 30) return `${(count / 2 ** 30).toFixed(1)} GiB`;
  return `${(count / 2 ** 20).toFixed(0)} MiB`;
}

// The colour of the model at this place in the list of models.
export function toneOf(index) {
  return `tone-${index % 8}`;
}

export function age(seconds) {
  return seconds < 100 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)} min`;
}
