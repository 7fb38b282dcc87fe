// Draws the curves and heat maps of a report from the JSON in the page, sorts its tables, and shows and hides runs.

const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = 6, DASHES = ["", "7 4", "2 3", "9 3 2 3", "1 5"];
const BAND_RUNS = 4; // with more curves their bands would cover one another
const LEGEND_RUNS = 12; // with more, the table is the legend
const START_SHARE = 0.05; // of the longest run, whose high values at the start may lie outside a chart
const hidden = new Set();
const byId = id => document.getElementById(id);
const all = (selector, where = document) => [...where.querySelectorAll(selector)];
const tip = byId("tip");
let lit = null;

const color = run => `var(--run${run % COLORS})`;
const dash = run => DASHES[Math.floor(run / COLORS) % DASHES.length];
const shown = value => value === null ? "none" : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3)
  ? value.toExponential(2) : String(+value.toPrecision(5));
const nameOf = series => data.runs[series.run] + (series.label ? `, ${series.label}` : "");

function tell(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 6))}px`;
  tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 12 : event.clientY + 18}px`;
}

// Brings one run to the front in every chart, or none.
function light(run) {
  if (run === lit) return;
  lit = run;
  for (const group of all("[data-line]")) group.classList.toggle("faint", run !== null && Number(group.dataset.line) !== run);
  for (const row of all("#results-table tbody tr")) row.classList.toggle("lit", Number(row.dataset.run) === run);
}

function minutesAt(axis, step) {
  const i = axis.steps.findIndex(there => there >= step);
  return axis.minutes[i < 0 ? axis.minutes.length - 1 : i];
}

function drawCurves() {
  if (!byId("main")) return;
  const axis = byId("axis").value, share = Number(byId("smoothing").value), isLog = byId("log").checked;
  const showing = data.runs.length - hidden.size;
  byId("curves").classList.toggle("many", showing > 8);
  for (const chart of data.charts) { // all before the first is drawn: a box is as wide as its neighbours let it
    if (!chart.box.parentNode) byId(chart.main ? "main" : "others").append(chart.box);
  }
  for (const {box, ...chart} of data.charts) {
    if (!chart.main && !byId("more").open) continue;
    const lines = chart.series.filter(series => !hidden.has(series.run)).map(series => {
      const own = data.axes[series.run], isPoints = Boolean(series.steps);
      const x = !isPoints ? own[axis] : axis === "steps" ? series.steps : series.steps.map(step => minutesAt(own, step));
      const hasBand = !share && series.low && showing <= BAND_RUNS;
      return {series, x, isPoints, y: isPoints || !share ? series.values : smooth(series.values, share),
        low: hasBand ? series.low : null, high: series.high};
    }).filter(line => line.x.length && line.x[0] !== undefined);
    drawChart(box, chart.title, lines, {isLog, xName: axis === "steps" ? "updates" : "minutes"});
  }
}

function drawPositions() {
  const box = byId("positions");
  if (!box) return;
  const lines = data.positions.filter(series => !hidden.has(series.run)).map(series => ({
    series, isSteps: true, x: [...series.starts.map(start => Math.max(start, 1)), series.stop],
    y: [...series.values, series.values.at(-1)]}));
  const units = [...new Set(data.positions.map(series => `bits per ${series.unit}`))].join(", ");
  drawChart(box, `${units} from a position on, until the next`, lines, {isLogX: true, fromStart: true, xName: "tokens before"});
}

const sample = run => element("path", {d: "M0 4H28", stroke: color(run), "stroke-width": 3, "stroke-dasharray": dash(run)});

function drawLegends() {
  const legend = byId("legend");
  if (legend && data.runs.length > 1 && data.runs.length <= LEGEND_RUNS) data.runs.forEach((name, run) => {
    const item = Object.assign(document.createElement("li"), {textContent: name});
    item.dataset.run = run;
    item.prepend(element("svg", {class: "swatch", viewBox: "0 0 28 8"}, sample(run)));
    item.addEventListener("pointerenter", () => light(run));
    item.addEventListener("pointerleave", () => light(null));
    legend.append(item);
  });
  for (const row of all("#results-table tbody tr")) {
    const run = Number(row.dataset.run);
    row.querySelector(".swatch").replaceChildren(sample(run));
    row.addEventListener("pointerenter", () => light(run));
    row.addEventListener("pointerleave", () => light(null));
    row.querySelector("input").addEventListener("change", event => { show(run, event.target.checked); redraw(); });
  }
}

function show(run, isShown) {
  if (isShown) hidden.delete(run); else hidden.add(run);
  const box = document.querySelector(`#results-table tr[data-run="${run}"] input`);
  if (box) box.checked = isShown;
}

function redraw() {
  for (const part of all("[data-run]")) if (!part.closest("#results-table")) part.hidden = hidden.has(Number(part.dataset.run));
  if (byId("shown")) byId("shown").textContent = `${data.runs.length - hidden.size} of ${data.runs.length} shown`;
  drawCurves();
  drawPositions();
}

function sortBy(header) {
  const table = header.closest("table"), column = [...header.parentNode.children].indexOf(header);
  const isUp = header.getAttribute("aria-sort") !== "ascending";
  const key = row => {
    const cell = row.children[column];
    return cell.dataset.key !== undefined ? Number(cell.dataset.key) : cell.textContent;
  };
  const isMissing = value => value === "" || value === "–" || Number.isNaN(value);
  const order = (a, b) => {
    const [left, right] = [key(a), key(b)];
    if (isMissing(left) || isMissing(right)) return isMissing(left) - isMissing(right);
    const both = typeof left === "number" && typeof right === "number";
    return (isUp ? 1 : -1) * (both ? left - right : String(left).localeCompare(String(right), undefined, {numeric: true}));
  };
  for (const other of all("th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", isUp ? "ascending" : "descending");
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
}

function start() {
  for (const chart of data.charts) chart.box = Object.assign(document.createElement("div"), {className: "chart"});
  if (byId("more")) {
    byId("more").hidden = data.charts.every(chart => chart.main);
    byId("more").addEventListener("toggle", drawCurves);
    for (const id of ["axis", "smoothing", "log"]) byId(id).addEventListener("input", drawCurves);
  }
  if (byId("filter")) {
    byId("filter").addEventListener("input", event => {
      const part = event.target.value.toLowerCase();
      data.runs.forEach((name, run) => show(run, name.toLowerCase().includes(part)));
      for (const row of all("#results-table tbody tr")) row.hidden = !data.runs[Number(row.dataset.run)].toLowerCase().includes(part);
      redraw();
    });
    for (const [id, isShown] of [["all", true], ["none", false]]) byId(id).addEventListener("click", () => {
      data.runs.forEach((_, run) => show(run, isShown));
      for (const row of all("#results-table tbody tr")) row.hidden = false;
      byId("filter").value = "";
      redraw();
    });
  }
  if (byId("fields")) byId("fields").addEventListener("input", event => {
    for (const row of all("#fields-table tbody tr")) row.hidden = !row.textContent.toLowerCase().includes(event.target.value.toLowerCase());
  });
  for (const header of all(".sortable th[aria-sort]")) header.querySelector("button").addEventListener("click", () => sortBy(header));
  const themes = ["auto", "light", "dark"];
  byId("theme").addEventListener("click", event => {
    const next = themes[(themes.indexOf(event.target.textContent.split(" ").at(-1)) + 1) % themes.length];
    event.target.textContent = `Theme: ${next}`;
    if (next === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = next;
  });
  drawLegends();
  all("[data-map]").forEach(drawMap);
  redraw();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawCurves(); drawPositions(); } });
}

start();
