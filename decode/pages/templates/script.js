"use strict";

const short = value => value === null ? "unknown" : Number(value.toPrecision(4)).toLocaleString("en");

function saved(name, rows) {
  const quoted = cell => /[",\n]/.test(cell) ? `"${String(cell).replaceAll('"', '""')}"` : cell;
  const text = rows.map(row => row.map(cell => quoted(cell ?? "")).join(",")).join("\n") + "\n";
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = `${name}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

// Traces over axes: the values of all traces at the place of the pointer.
class Chart {
  constructor(data) { this.data = data; }

  value(axis, place) {
    const {log, values, places} = this.data[axis];
    const [low, high] = log ? values.map(Math.log10) : values;
    const value = low + (high - low) * (place - places[0]) / (places[1] - places[0]);
    return log ? 10 ** value : value;
  }

  place(axis, value) {
    const {log, values, places} = this.data[axis];
    const [low, high, at] = log ? [...values, value].map(Math.log10) : [...values, value];
    return places[0] + (places[1] - places[0]) * (at - low) / (high - low);
  }

  // index of the row that is nearest to x; of steps, of the one that x lies in
  row(trace, x) {
    if (trace.steps) return trace.x.findLastIndex(edge => edge <= x);
    const scale = this.data.x.log ? Math.log : value => value;
    let nearest = 0;
    trace.x.forEach((at, i) => {
      if (Math.abs(scale(at) - scale(x)) < Math.abs(scale(trace.x[nearest]) - scale(x))) nearest = i;
    });
    return nearest;
  }

  told(place) {
    const x = this.value("x", place.x);
    const {traces, x: across, y: up} = this.data;
    const [low, high] = across.values;
    if (!(x >= low && x <= high)) return null;
    let at = x;
    const lines = traces.map(trace => {
      const i = this.row(trace, x);
      if (i < 0 || i >= trace.y.length) return null;
      if (!trace.steps) at = trace.x[i];
      const error = trace.error.length ? ` ± ${short(trace.error[i])}` : "";
      return `${traces.length > 1 ? trace.name : up.label}: ${short(trace.y[i])}${error}`;
    });
    const cursor = `M${this.place("x", at)},${up.places[1]}V${up.places[0]}`;
    return {text: [`${across.label}: ${short(at)}`, ...lines.filter(Boolean)].join("\n"), cursor};
  }

  rows() {
    const {traces, x, y} = this.data;
    const all = traces.flatMap(trace => trace.y.map((value, i) => trace.steps
      ? [trace.name, trace.x[i], trace.x[i + 1], value, ""]
      : [trace.name, trace.x[i], "", value, trace.error[i]]));
    return [["trace", x.label, "end of bin", y.label, "standard deviation"], ...all];
  }
}

// A quantity over the field: its value at the place of the pointer.
class FieldMap {
  constructor(data, svg) { this.data = data; this.paper = svg.viewBox.baseVal; }

  corner(row, column) {
    const {pixel_nm: pixel, origin_nm: [x, y]} = this.data;
    return [x + column * pixel, y + row * pixel];
  }

  told(place) {
    const {values, unit, pixel_nm: pixel} = this.data;
    const row = Math.floor(place.y / this.paper.height * values.length);
    const column = Math.floor(place.x / this.paper.width * values[0].length);
    const value = values[row]?.[column];
    if (value === undefined) return null;
    const [x, y] = this.corner(row, column).map(corner => short(corner + pixel / 2));
    return {text: `x: ${x} nm, y: ${y} nm\n${short(value)} ${unit}`, cursor: ""};
  }

  rows() {
    const all = this.data.values.flatMap((row, i) => row.map((value, j) => [...this.corner(i, j), value]));
    return [["x of corner (nm)", "y of corner (nm)", this.data.unit], ...all];
  }
}

// Named quantities, which all stand in the picture: there is nothing to hover.
class Bars {
  constructor(data) { this.data = data; }
  told() { return null; }
  rows() { return [["name", this.data.label, "standard deviation"], ...this.data.bars]; }
}

const kinds = {traces: Chart, values: FieldMap, bars: Bars};

for (const figure of document.querySelectorAll("figure.plot")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const svg = figure.querySelector("svg");
  const kind = Object.keys(kinds).find(name => name in data);
  const plot = new kinds[kind](data, svg);
  const output = figure.querySelector("output");
  const cursor = figure.querySelector(".cursor");
  const show = (told, left = 0, top = 0) => {
    output.textContent = told?.text ?? "";
    cursor?.setAttribute("d", told?.cursor ?? "");
    const room = output.parentElement.clientWidth - output.offsetWidth;
    output.style.left = `${Math.max(0, Math.min(left + 14, room))}px`;
    output.style.top = `${Math.max(0, top - output.offsetHeight - 8)}px`;
  };
  svg.addEventListener("pointermove", event => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const box = svg.getBoundingClientRect();
    show(plot.told(place), event.clientX - box.left, event.clientY - box.top);
  });
  svg.addEventListener("pointerleave", () => show(null));
  figure.querySelector("button.csv").addEventListener("click", () => saved(data.title, plot.rows()));
}

// The table of several movies: sorted by a click on a column, which can be hidden, as movies can.
const summary = document.querySelector(".summary");
if (summary) {
  const table = summary.querySelector("table");
  const body = table.tBodies[0];
  const order = ["bad", "look", "unknown", "good"];
  const key = (row, i) => {
    const text = row.cells[i].textContent;
    if (i === 0) return order.indexOf(text);
    const number = parseFloat(text.replaceAll(",", ""));
    return Number.isNaN(number) ? text : number;
  };
  // empty cells come last, whichever way is up
  const compared = (a, b, sign) => {
    if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
    return sign * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(b));
  };
  [...table.tHead.rows[0].cells].forEach((head, i) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => compared(key(a, i), key(b, i), up ? 1 : -1));
    body.append(...rows);
  }));
  for (const box of summary.querySelectorAll(".columns input")) box.addEventListener("change", () => {
    for (const row of table.rows) row.cells[box.value].hidden = !box.checked;
  });
  summary.querySelector("input[type=search]").addEventListener("input", event => {
    for (const row of body.rows) {
      const link = row.cells[1].querySelector("a");
      row.hidden = !link.textContent.toLowerCase().includes(event.target.value.toLowerCase());
      document.querySelector(link.getAttribute("href")).hidden = row.hidden;
    }
  });
  summary.querySelector("button.csv").addEventListener("click", () => {
    saved("summary", [...table.rows].filter(row => !row.hidden).map(row =>
      [...row.cells].filter(cell => !cell.hidden).map(cell => cell.textContent.trim())));
  });
}

// a link into a chapter opens it; paper shows all chapters
const opened = () => {
  const target = location.hash && document.querySelector(location.hash);
  if (!target) return;
  const chapter = target.closest("details.chapter");
  if (chapter) chapter.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", opened);
opened();
addEventListener("beforeprint", () => {
  for (const chapter of document.querySelectorAll("details.chapter")) chapter.open = true;
});
