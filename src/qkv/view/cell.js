// One cell of a matrix: how one query met one key, and what it took, number by number.

function showCell() {
  const attention = current();
  const { row, column } = state.pointed ?? state;
  const { scores, weights, greatest, sum } = attention.row(state.head, row);
  const query = attention.vector("query", state.head, row);
  const key = attention.vector("key", state.head, column);
  const value = attention.vector("value", state.head, column);
  const given = Array.from(value, (part) => part * weights[column]);
  const context = attention.context_(state.head, row, weights);
  const used = attention.vector("context", state.head, row);
  find("cell-title").replaceChildren(token(attention.queryTokens[row], "q"), " asks, ", token(attention.keyTokens[column], "k"), " answers");
  const steps = make("ol", { className: "steps" },
    matchStep(attention, query, key, scores[column]),
    scoreStep(attention, scores[column]),
    softmaxStep(attention, scores[column], weights, column, greatest, sum),
    takeStep(value, given, weights[column]),
    contextStep(attention, given, context, used, row, column, weights));
  find("cell").replaceChildren(steps, everyNumber(query, key, value, given, context, used, Boolean(scores[column].given)));
  for (const draw of drawings.splice(0)) draw();
}

const drawings = [];

// One vector as bars; beside it its length, or the one number that the pointer marks in all strips at once.
function strip(name, text, values, extent, height, behind) {
  const canvas = make("canvas", { className: "strip" });
  canvas.setAttribute("aria-hidden", "true");
  const reading = make("span", { className: "reading" });
  const length = name === "ink" ? "" : `length ${number(Math.hypot(...values), 2)}`;
  const draw = () => {
    const marked = state.dimension !== null && state.dimension < values.length ? state.dimension : null;
    drawStrip(canvas, values, extent, name, height, marked, behind);
    reading.textContent = marked === null ? length : `${marked}: ${signed(values[marked])}`;
  };
  canvas.redraw = draw;
  canvas.addEventListener("pointermove", (event) => markDimension(Math.min(values.length - 1, Math.floor((event.offsetX / canvas.clientWidth) * values.length))));
  canvas.addEventListener("pointerleave", () => markDimension(null));
  drawings.push(draw);
  return make("div", { className: "strip-row" }, make("span", { className: `strip-name ${name}` }, text), make("div", { className: "strip-box" }, canvas), reading);
}

function markDimension(dimension) {
  state.dimension = dimension;
  for (const canvas of document.querySelectorAll("canvas.strip")) canvas.redraw();
}

const step = (title, ...children) => make("li", {}, make("h3", {}, title), ...children);
const line = (...children) => make("p", { className: "line" }, ...children);
const result = (text) => make("b", { className: "result" }, text);

function matchStep(attention, query, key, score) {
  const extent = extentOf([...query, ...key]);
  if (score.given) {
    return step("Match", strip("query", "query", query, extent, 34), strip("key", "key", key, extent, 34),
      line("This score is not a dot product; a small network compares the two."));
  }
  const product = Array.from(query, (part, i) => part * key[i]);
  return step("Match",
    strip("query", "query", query, extent, 34),
    strip("key", "key", key, extent, 34),
    strip("ink", "product", product, extentOf(product), 34),
    line("sum of the ", String(query.length), " products, query · key = ", result(number(score.product))));
}

function scoreStep(attention, score) {
  if (!score.visible) return step("Score", line("hidden by the mask: this query may not look here"));
  if (score.given) return step("Score", line("score ", result(number(score.total))));
  const parts = [`${number(score.product)} × ${number(attention.scale, 4)}`];
  if (attention.softcap) parts.push(`, capped at ±${attention.softcap}: ${number(score.capped)}`);
  if (attention.added) parts.push(` ${signed(score.added)} for the position`);
  const mask = attention.visible ? make("span", { className: "muted" }, "  visible to this query") : null;
  return step("Score", line(...parts, " = ", result(number(score.total)), ...(mask ? [mask] : [])));
}

function softmaxStep(attention, score, weights, column, greatest, sum) {
  const canvas = make("canvas", { className: "shares" });
  canvas.setAttribute("aria-hidden", "true");
  drawings.push(() => drawShares(canvas, attention.keyTokens, weights, column));
  const sink = attention.sinks ? " (a sink takes a share)" : "";
  const says = score.visible
    ? line(`e^(${number(score.total, 2)} ${greatest < 0 ? "+" : "−"} ${number(Math.abs(greatest), 2)}) ÷ ${number(sum)} = `, result(number(weights[column])), sink)
    : line("weight ", result("0"));
  return step("Weight among all keys", make("div", { className: "strip-box" }, canvas), says);
}

function drawShares(canvas, tokens, weights, chosen) {
  const width = canvas.parentElement.clientWidth || 400;
  const pen = prepare(canvas, width, 66);
  const stepWidth = Math.min(width / tokens.length, 64);
  const greatest = Math.max(...weights);
  weights.forEach((weight, i) => {
    const long = Math.max(greatest > 0 ? (weight / greatest) * 46 : 0, 0.75);
    pen.fillStyle = colour(i === chosen ? "key" : "quiet");
    pen.fillRect(i * stepWidth + stepWidth * 0.12, 48 - long, Math.max(stepWidth * 0.76, 1), long);
    if (stepWidth < 12 && i !== chosen) return;
    pen.fillStyle = colour(i === chosen ? "key" : "muted");
    pen.font = i === chosen ? `600 ${labelFont}` : labelFont;
    pen.textAlign = "center";
    pen.textBaseline = "top";
    pen.fillText(tokens[i], i * stepWidth + stepWidth / 2, 51, Math.max(stepWidth - 2, 24));
  });
}

function takeStep(value, given, weight) {
  const extent = extentOf(value);
  return step("Take",
    strip("value", "value", value, extent, 34),
    strip("value", "× weight", given, extent, 34),
    line(`each of the ${value.length} numbers of the value × ${number(weight)}`));
}

function contextStep(attention, given, context, used, row, column, weights) {
  let difference = 0;
  used.forEach((part, i) => { difference = Math.max(difference, Math.abs(part - context[i])); });
  const norms = Array.from(weights, (weight, i) => weight * attention.norm(state.head, i));
  const rank = norms.filter((norm) => norm > norms[column]).length + 1;
  return step("Add up",
    strip("context", "context", context, extentOf(context), 34, given),
    line(`the sum over all ${attention.keys} keys; grey: this key's part. It gives `, result(number(norms[column])), attention.norms ? " (length of weight × value × W_O)" : " (length of weight × value)", `, number ${rank} of ${attention.keys}.`),
    line(make("span", { className: "muted" }, `differs from the model's own context by at most ${small(difference)}`)));
}

function everyNumber(query, key, value, given, context, used, scored) {
  const details = make("details", { open: everyNumber.open ?? false }, make("summary", {}, "Every number"));
  details.addEventListener("toggle", () => { everyNumber.open = details.open; if (details.open && details.childElementCount === 1) details.append(numbers()); });
  const numbers = () => {
    const length = Math.max(query.length, key.length, value.length);
    const names = [["", ""], ["query", "q"], ["key", "k"], ...(scored ? [] : [["product", ""]]), ["value", "v"], ["× weight", "v"], ["context", "c"], ["model's", "c"]];
    const rows = Array.from({ length }, (_, i) => {
      const columns = [query[i], key[i], ...(scored ? [] : [query[i] * key[i]]), value[i], given[i], context[i], used[i]];
      return make("tr", {}, make("th", { scope: "row" }, String(i)), ...columns.map((part) => make("td", {}, part === undefined || Number.isNaN(part) ? "" : number(part, 4))));
    });
    const box = make("div", { className: "table-box", tabIndex: 0 }, make("table", {}, make("thead", {}, make("tr", {}, ...names.map(([text, name]) => make("th", { scope: "col", className: name }, text)))), make("tbody", {}, ...rows)));
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Every number of this cell");
    return box;
  };
  if (details.open) details.append(numbers());
  return details;
}
