// One chart as SVG: axes, curves with bands, points, steps, and the name of what is under the pointer.

function element(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function ticks(low, high, isLog, most) {
  if (isLog && high / low >= 10) {
    const step = Math.ceil((Math.log10(high) - Math.log10(low)) / most), found = [];
    for (let power = Math.ceil(Math.log10(low) - 1e-9); 10 ** power <= high * 1.0001; power += step) found.push(10 ** power);
    if (found.length > 1) return found;
  }
  const raw = (high - low) / most, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(size => size * unit >= raw) * unit, found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(+(n * step).toPrecision(12));
  return found;
}

function tickText(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size && size < 1e-3 ? value.toExponential(0) : String(+value.toPrecision(4));
}

function smooth(values, share) {
  let mean = null, weight = 0;
  return values.map(value => {
    if (value === null) return null;
    mean = share * (mean ?? 0) + (1 - share) * value;
    weight = share * weight + 1 - share;
    return mean / weight;
  });
}

// lines: [{series, x, y, low, high, isPoints, isSteps}]; x and y are arrays. Values of steps hold until the next x.
function drawChart(box, title, lines, {isLog = false, isLogX = false, xName = "", fromStart = false}) {
  const width = Math.max(260, box.clientWidth), height = 230, left = 54, right = 10, top = 8, bottom = 34;
  const usable = value => value !== null && (!isLog || value > 0);
  const xs = lines.flatMap(line => line.x), xMax = Math.max(...xs), xMin = isLogX ? Math.min(...xs) : 0;
  const worth = lines.flatMap(line => line.y.filter((y, i) => usable(y) && (fromStart || line.x[i] >= START_SHARE * xMax)));
  const heading = Object.assign(document.createElement("h3"), {textContent: title});
  if (!worth.length) {
    box.replaceChildren(heading, Object.assign(document.createElement("p"), {
      className: "muted", textContent: lines.length ? "No value that can be drawn." : "No run is shown."}));
    return;
  }
  let low = worth.reduce((a, b) => Math.min(a, b)), high = worth.reduce((a, b) => Math.max(a, b));
  if (isLog) [low, high] = [low / 1.05, high * 1.05];
  else {
    const margin = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
    [low, high] = [low >= 0 && low < margin ? 0 : low - margin, high + margin];
  }
  const along = (value, from, to, log) => log ? Math.log(value / from) / Math.log(to / from) : (value - from) / (to - from || 1);
  const px = x => left + (width - left - right) * along(x, xMin, xMax, isLogX);
  const py = y => height - bottom - (height - top - bottom) * along(y, low, high, isLog);
  const clip = `clip${Math.random().toString(36).slice(2)}`;
  const svg = element("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title},
    element("clipPath", {id: clip}, element("rect", {x: left, y: top - 2, width: width - left - right + 4, height: height - top - bottom + 4})));
  for (const y of ticks(low, high, isLog, 5)) svg.append(
    element("path", {class: "grid", d: `M${left} ${py(y)}H${width - right}`}),
    element("text", {class: "y", x: left - 6, y: py(y) + 4}, tickText(y)));
  const xTicks = isLogX ? [...new Set(xs)].sort((a, b) => a - b) : ticks(xMin, xMax, false, width / 90);
  let free = -Infinity; // where the last label ends
  for (const x of xTicks) if (px(x) - 20 > free) {
    svg.append(element("text", {class: "x", x: Math.min(px(x), width - 16), y: height - bottom + 15}, tickText(x)));
    free = px(x) + 20;
  }
  svg.append(element("text", {class: "x", x: (left + width - right) / 2, y: height - 4}, xName));
  const marks = element("g", {"clip-path": `url(#${clip})`});
  svg.append(marks);
  for (const line of lines) drawLine(marks, line, px, py, usable);
  svg.addEventListener("pointermove", event => point(event, svg, lines, px, py, usable, xName));
  svg.addEventListener("pointerleave", () => { tip.hidden = true; light(null); });
  box.replaceChildren(heading, svg);
}

function drawLine(marks, {series, x, y, low, high, isPoints, isSteps}, px, py, usable) {
  const group = element("g", {"data-line": series.run, style: `color:${color(series.run)}`});
  if (isPoints) y.forEach((value, i) => {
    if (usable(value)) group.append(element("circle", {cx: px(x[i]), cy: py(value), r: 3.4, fill: "currentColor", stroke: "var(--card)"}));
  });
  else {
    const place = (i, values) => `${px(x[i]).toFixed(1)} ${py(values[i]).toFixed(1)}`;
    const path = y.map((value, i) => !usable(value) ? "" : !i || !usable(y[i - 1]) ? `M${place(i, y)}`
      : `${isSteps ? `H${px(x[i]).toFixed(1)}` : ""}L${place(i, y)}`).join("");
    if (low) {
      const inside = y.map((_, i) => i).filter(i => usable(low[i]) && usable(high[i]));
      const round = [...inside.map(i => place(i, high)), ...inside.reverse().map(i => place(i, low))];
      group.append(element("path", {class: "band", d: `M${round.join("L")}Z`, style: "fill:currentColor"}));
    }
    group.append(element("path", {d: path, stroke: "currentColor", "stroke-dasharray": dash(series.run)}));
  }
  marks.append(group);
}

// Names the point that is nearest to the pointer.
function point(event, svg, lines, px, py, usable, xName) {
  const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
  const at = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  let best = null, nearest = 60 ** 2;
  for (const line of lines) line.y.forEach((y, i) => {
    if (!usable(y)) return;
    const distance = (px(line.x[i]) - at[0]) ** 2 + (py(y) - at[1]) ** 2;
    if (distance < nearest) [nearest, best] = [distance, {line, i}];
  });
  light(best && best.line.series.run);
  if (!best) { tip.hidden = true; return; }
  tell(event, `${nameOf(best.line.series)}: ${shown(best.line.y[best.i])} at ${shown(best.line.x[best.i])} ${xName}`);
}
