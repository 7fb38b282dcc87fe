// Heat maps on canvases, with their rows and columns named where there is room.

// viridis at nine places, from dark to bright; light and dark pages both show it
const SCALE = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"]
  .map(hex => [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16)));
const NAMED_COLUMNS = 12, ROW_HEIGHT = 13; // columns, and pixels of a row, whose names have room

function shade(level) {
  const place = level / 250 * (SCALE.length - 1), low = Math.min(Math.floor(place), SCALE.length - 2);
  return SCALE[low].map((part, i) => Math.round(part + (place - low) * (SCALE[low + 1][i] - part)));
}

function paint(canvas, levels, width) {
  canvas.width = width;
  canvas.height = levels.length / width;
  const image = new ImageData(width, canvas.height);
  levels.forEach((level, i) => image.data.set(level === 255 ? [0, 0, 0, 0] : [...shade(level), 255], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function drawMap(box) {
  const map = data.maps[Number(box.dataset.map)];
  const levels = Uint8Array.from(atob(map.data), letter => letter.charCodeAt(0)), width = levels.length / map.rows.length;
  const canvas = document.createElement("canvas"), bar = document.createElement("canvas");
  paint(canvas, levels, width);
  const height = Math.max(60, Math.min(420, map.rows.length * Math.max(2, Math.min(18, 420 / map.rows.length))));
  canvas.style.height = `${height}px`;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${map.rows.length} rows of ${width}: ${map.caption}`);
  const value = level => map.is_log ? map.low * (map.high / map.low) ** (level / 250) : map.low + (map.high - map.low) * level / 250;
  const column = i => map.columns.length ? map.columns[i] : String(Math.round(map.first + map.per * i));
  canvas.addEventListener("pointermove", event => {
    const area = canvas.getBoundingClientRect();
    const x = Math.min(width - 1, Math.floor((event.clientX - area.left) / area.width * width));
    const y = Math.min(map.rows.length - 1, Math.floor((event.clientY - area.top) / area.height * map.rows.length));
    const level = levels[y * width + x];
    tell(event, `${map.rows[y]}, ${column(x)}: ${level === 255 ? "none" : +value(level).toPrecision(3)}`);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  const texts = (className, names) => {
    const made = Object.assign(document.createElement("div"), {className});
    made.append(...names.map(textContent => Object.assign(document.createElement("span"), {textContent})));
    return made;
  };
  const isNamed = map.columns.length && map.columns.length <= NAMED_COLUMNS;
  const ends = isNamed ? texts("columns", map.columns) : texts("ends", [column(0), map.x, column(width - 1)]);
  const rows = texts("rows", height / map.rows.length >= ROW_HEIGHT ? map.rows : []), scale = document.createElement("div");
  box.classList.toggle("named", Boolean(rows.children.length));
  scale.className = "scale";
  paint(bar, Uint8Array.from({length: 251}, (_, i) => i), 251);
  scale.append(shown(map.low), bar, `${shown(map.high)}${map.is_log ? ", logarithmic" : ""}`);
  box.replaceChildren(rows, canvas, ends, scale);
}
