// Canvases: the ramps of colour, a matrix, a thumbnail, and strips of numbers.

const ramps = {
  light: { one: ["#f6f5f0", "#d7e3e6", "#9fc6d2", "#559bbb", "#22658f", "#0c2d4f"], minus: ["#f6f5f0", "#f1d2b4", "#dd9a62", "#b5602a", "#74330f"] },
  dark: { one: ["#20242a", "#1f3b4f", "#22618a", "#3d93c0", "#8fcbe6", "#f2faff"], minus: ["#20242a", "#52341f", "#8f542a", "#d08a50", "#ffdcb8"] },
};

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function mix(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [from, to] = [rgb(stops[low]), rgb(stops[low + 1])];
  return from.map((part, i) => Math.round(part + (to[i] - part) * (at - low)));
}

const isDark = () => document.documentElement.dataset.theme === "dark";
const ramp = () => (isDark() ? ramps.dark : ramps.light);
const colours = new Map();

// A colour of the style sheet; asking the browser is slow, so each is asked for once in a theme.
function colour(name) {
  const key = `${name} ${document.documentElement.dataset.theme}`;
  if (!colours.has(key)) colours.set(key, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return colours.get(key);
}

const css = (parts) => `rgb(${parts.join(",")})`;
const readable = (parts) => (parts[0] * 0.299 + parts[1] * 0.587 + parts[2] * 0.114 > 140 ? "#16191d" : "#fdfdfb");

// Weights are shown by their square root, so that small ones can be told from none.
function shade(show, value, extent) {
  if (Number.isNaN(value)) return null;
  if (show === "weights") return mix(ramp().one, Math.sqrt(value));
  if (show === "flow") return mix(ramp().one, extent > 0 ? Math.sqrt(value / extent) : 0);
  return mix(value < 0 ? ramp().minus : ramp().one, extent > 0 ? Math.abs(value) / extent : 0);
}

function extentOf(values) {
  let extent = 0;
  for (const value of values) if (Math.abs(value) > extent) extent = Math.abs(value);
  return extent;
}

function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

function drawThumbnail(canvas, attention, head) {
  const { weights } = attention.matrix(head);
  canvas.width = attention.keys;
  canvas.height = attention.queries;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(attention.keys, attention.queries);
  for (let at = 0; at < weights.length; at += 1) image.data.set([...mix(ramp().one, Math.sqrt(weights[at])), 255], at * 4);
  pen.putImageData(image, 0, 0);
}

const labelFont = "13px ui-sans-serif, system-ui, sans-serif";
const numberFont = (size) => `${size}px ui-monospace, "SF Mono", Menlo, Consolas, monospace`;

function widest(pen, strings) {
  pen.font = labelFont;
  return Math.ceil(Math.max(8, ...strings.map((string) => pen.measureText(string).width)));
}

function layOut(pen, attention, rowLabels, room, roomBelow) {
  const left = Math.min(widest(pen, rowLabels) + 16, 180);
  const keyWidth = Math.min(widest(pen, attention.keyTokens), 130);
  const space = Math.min((room - left - 12) / attention.keys, roomBelow / attention.queries);
  const size = Math.max(3, Math.min(64, Math.floor(space)));
  const turned = keyWidth + 6 > size;
  const top = turned ? keyWidth + 14 : 26;
  return { left, top, size, turned, width: left + size * attention.keys + 12, height: top + size * attention.queries + 4 };
}

// Draws the matrix and returns where its cells are.
function drawMatrix(canvas, attention, head, show, rowLabels, chosen, pointed, room, roomBelow) {
  const place = layOut(canvas.getContext("2d"), attention, rowLabels, room, roomBelow);
  const { left, top, size } = place;
  const pen = prepare(canvas, place.width, place.height);
  const values = attention.matrix(head)[show];
  const extent = extentOf(values);
  const gap = size >= 12 ? 1 : 0;
  for (let row = 0; row < attention.queries; row += 1) {
    for (let column = 0; column < attention.keys; column += 1) {
      const value = values[row * attention.keys + column];
      const hidden = !attention.isVisible(head, row, column);
      const [x, y] = [left + column * size, top + row * size];
      if (hidden) { drawHidden(pen, x, y, size - gap); continue; }
      const parts = shade(show, value, extent);
      pen.fillStyle = css(parts);
      pen.fillRect(x, y, size - gap, size - gap);
      if (size >= 34) drawNumber(pen, value, show, x + (size - gap) / 2, y + size / 2, readable(parts), size);
    }
  }
  const at = pointed ?? chosen;
  drawLabels(pen, attention, rowLabels, place, at);
  outline(pen, place, chosen, colour("ink"), 2);
  if (pointed) outline(pen, place, pointed, colour("muted"), 1.5);
  return place;
}

function drawHidden(pen, x, y, size) {
  pen.fillStyle = colour("quiet");
  const radius = size >= 12 ? 1.5 : 0.5;
  pen.beginPath();
  pen.arc(x + size / 2, y + size / 2, radius, 0, Math.PI * 2);
  pen.fill();
}

function drawNumber(pen, value, show, x, y, ink, size) {
  pen.fillStyle = ink;
  pen.font = numberFont(size >= 46 ? 12 : 10);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  const text = show === "weights" ? value.toFixed(2).replace(/^0/, "") : value.toFixed(size >= 46 ? 2 : 1);
  pen.fillText(text, x, y);
}

function drawLabels(pen, attention, rowLabels, place, at) {
  const { left, top, size, turned } = place;
  const every = Math.max(1, Math.ceil(13 / size));
  // Where there is no room for every label, the chosen one pushes its neighbours away.
  const skipped = (i, chosen) => i !== chosen && (i % every !== 0 || Math.abs(i - chosen) < every);
  pen.textBaseline = "middle";
  rowLabels.forEach((label, row) => {
    if (skipped(row, at.row)) return;
    pen.font = row === at.row ? `600 ${labelFont}` : labelFont;
    pen.fillStyle = row === at.row ? colour("query") : colour("muted");
    pen.textAlign = "right";
    pen.fillText(label, left - 8, top + row * size + size / 2, left - 10);
  });
  attention.keyTokens.forEach((label, column) => {
    if (skipped(column, at.column)) return;
    pen.font = column === at.column ? `600 ${labelFont}` : labelFont;
    pen.fillStyle = column === at.column ? colour("key") : colour("muted");
    pen.save();
    pen.translate(left + column * size + size / 2, top - 8);
    if (turned) pen.rotate(-Math.PI / 2);
    pen.textAlign = turned ? "left" : "center";
    pen.textBaseline = turned ? "middle" : "alphabetic";
    pen.fillText(label, 0, 0, 130);
    pen.restore();
  });
}

function outline(pen, { left, top, size }, { row, column }, style, width) {
  const gap = size >= 12 ? 1 : 0;
  pen.strokeStyle = style;
  pen.lineWidth = width;
  pen.strokeRect(left + column * size - 1, top + row * size - 1, size - gap + 2, size - gap + 2);
}

function drawLegend(canvas, show, extent) {
  const pen = prepare(canvas, 180, 26);
  const low = show === "scores" ? -extent : 0;
  const high = show === "weights" ? 1 : extent;
  for (let x = 0; x < 180; x += 1) {
    pen.fillStyle = css(shade(show, low + ((high - low) * x) / 179, extent));
    pen.fillRect(x, 0, 1.5, 9);
  }
  pen.fillStyle = colour("muted");
  pen.font = numberFont(10);
  pen.textBaseline = "top";
  const middle = (low + high) / 2;
  for (const [text, x, align] of [[low, 0, "left"], [middle, 90, "center"], [high, 180, "right"]]) {
    pen.textAlign = align;
    pen.fillText(text === 0 ? "0" : text.toFixed(show === "weights" ? 1 : 2).replace("-", "−"), x, 13);
  }
}

// A row of bars up and down from a middle line, one for each dimension; `behind` is drawn pale under them.
function drawStrip(canvas, values, extent, name, height, marked, behind) {
  const width = canvas.parentElement.clientWidth || 400;
  const pen = prepare(canvas, width, height);
  const step = width / values.length;
  const middle = height / 2;
  const bars = (numbers, style, opacity) => {
    pen.fillStyle = style;
    pen.globalAlpha = opacity;
    numbers.forEach((value, i) => {
      const long = extent > 0 ? (Math.abs(value) / extent) * (middle - 1) : 0;
      pen.fillRect(i * step + (step > 3 ? 0.5 : 0), value < 0 ? middle : middle - long, Math.max(step - (step > 3 ? 1 : 0), 0.75), Math.max(long, 0.4));
    });
    pen.globalAlpha = 1;
  };
  if (marked !== null) {
    pen.fillStyle = colour("mark");
    pen.fillRect(marked * step, 0, Math.max(step, 2), height);
  }
  if (behind) bars(behind, colour("muted"), 0.3);
  bars(Array.from(values), colour(name), 1);
  pen.fillStyle = colour("line");
  pen.fillRect(0, middle - 0.5, width, 1);
}
