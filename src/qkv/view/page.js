// What is chosen, and everything on the page that follows from it.

const state = { attention: 0, head: 0, row: 0, column: 0, pointed: null, show: "weights", as: "picture", dimension: null };
const find = (id) => document.getElementById(id);
const current = () => attentions[state.attention];

function make(tag, properties = {}, ...children) {
  const { dataset, style, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset);
  Object.entries(style ?? {}).forEach(([name, value]) => element.style.setProperty(name, value));
  element.append(...children.filter((child) => child !== null));
  return element;
}

const number = (value, digits = 3) => (Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : value > 0 ? "∞" : "−∞");
const signed = (value, digits = 3) => (value < 0 ? "" : "+") + number(value, digits);
const percent = (share) => (share > 0 && share < 0.001 ? "<0.1%" : `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)}%`);
const small = (value) => (value === 0 ? "0" : value.toExponential(1).replace("e-", "e−"));
const token = (text, name) => make("b", { className: `token ${name ?? ""}` }, text);

// --- the head of the page ---

function answersFor(attention) {
  const axis = page.target.length ? "target" : "source";
  return attention.queryAxis === axis && page.answers.length === attention.queries ? page.answers : null;
}

function rowLabels(attention) {
  const answers = page.target.length ? answersFor(attention) : null;
  return attention.queryTokens.map((text, row) => (answers ? `${text} → ${answers[row].chosen[0]}` : text));
}

function showExchange() {
  find("title").textContent = page.title;
  find("title").className = page.title.length > 24 ? "long" : "";
  find("note").textContent = page.note;
  if (page.source.length) {
    find("read").hidden = false;
    find("read").querySelector("ol").append(...page.source.map((text) => make("li", {}, text)));
  }
  if (page.answers.length) {
    find("said").hidden = false;
    find("said").querySelector("ol").append(...page.answers.map(answerItem));
    find("said").querySelector("ol").classList.toggle("many", page.answers.length > 16);
    find("read").querySelector("ol").classList.toggle("many", page.source.length > 40);
  }
}

function answerItem({ chosen: [text, share], best }, row) {
  const sure = best.length && best[0][0] !== text ? " unsure" : "";
  const others = best.filter(([other]) => other !== text).slice(0, 2);
  const button = make("button", { type: "button", className: `answer${sure}`, title: best.map(([other, part]) => `${other} ${percent(part)}`).join("   ") },
    make("span", { className: "answer-text" }, text),
    make("span", { className: "answer-bar", style: { "--share": `${share * 100}%` } }),
    make("span", { className: "answer-share" }, percent(share)),
    ...others.map(([other, part]) => make("span", { className: "answer-other" }, make("span", {}, other), make("span", {}, percent(part)))));
  button.addEventListener("click", () => chooseAnswer(row));
  return make("li", {}, button);
}

function chooseAnswer(row) {
  if (!answersFor(current())) {
    const fits = attentions.filter((attention) => answersFor(attention));
    const crossing = fits.filter((attention) => attention.keyAxis !== attention.queryAxis);
    const attention = (crossing.length ? crossing : fits).at(-1);
    if (attention) Object.assign(state, { attention: attentions.indexOf(attention), head: 0 });
  }
  choose({ row, column: strongest(current(), state.head, row) });
}

// --- the grid of heads ---

function showHeads() {
  for (const group of new Set(attentions.map((attention) => attention.group))) {
    const members = attentions.filter((attention) => attention.group === group);
    const widest = Math.max(...members.map((attention) => attention.heads));
    const grid = make("div", { className: "grid", style: { "--heads": widest } }, make("span", { className: "corner" }));
    for (let head = 0; head < widest; head += 1) grid.append(make("span", { className: "count" }, String(head)));
    for (const attention of members) {
      grid.append(make("span", { className: "count layer" }, String(attention.layer)));
      for (let head = 0; head < widest; head += 1) grid.append(head < attention.heads ? thumbnail(attention, head) : make("span"));
    }
    find("heads").append(make("section", { className: "group" }, make("h3", {}, group), grid));
  }
}

function thumbnail(attention, head) {
  const at = attentions.indexOf(attention);
  const canvas = make("canvas", {});
  const button = make("button", { type: "button", className: "thumbnail", tabIndex: -1, dataset: { attention: at, head } }, canvas);
  button.setAttribute("aria-label", `${attention.group}, layer ${attention.layer}, head ${head}`);
  drawThumbnail(canvas, attention, head);
  button.addEventListener("click", () => chooseHead(at, head));
  return button;
}

function chooseHead(attention, head) {
  const sameAxes = attentions[attention].queries === current().queries && attentions[attention].queryAxis === current().queryAxis;
  const row = sameAxes ? state.row : 0;
  choose({ attention, head, row, column: strongest(attentions[attention], head, row) });
}

function moveAmongHeads(event) {
  const button = event.target.closest(".thumbnail");
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  if (!button || !step) return;
  event.preventDefault();
  const boxes = [...document.querySelectorAll(".thumbnail")];
  const here = button.getBoundingClientRect();
  const middle = (box) => [box.top + box.height / 2, box.left + box.width / 2];
  const [top, left] = middle(here);
  const ahead = boxes.map((box) => [box, ...middle(box.getBoundingClientRect())]).filter(([, y, x]) => (step[0] ? (y - top) * step[0] > 4 : Math.abs(y - top) < 4 && (x - left) * step[1] > 4));
  ahead.sort((a, b) => Math.hypot(a[1] - top, a[2] - left) - Math.hypot(b[1] - top, b[2] - left));
  if (!ahead.length) return;
  const next = ahead[0][0];
  chooseHead(Number(next.dataset.attention), Number(next.dataset.head));
  next.focus();
}

// --- one head ---

function strongest(attention, head, row) {
  const weights = attention.matrix(head).weights.subarray(row * attention.keys, (row + 1) * attention.keys);
  return weights.indexOf(Math.max(...weights));
}

const shows = {
  weights: "Weights: the share of each key in what a query takes. Colour by square root. A dot: not visible.",
  scores: "Scores: query · key, scaled, everything added, before the softmax. Blue above 0, brown below.",
  flow: "Flow: the length of weight × value × W_O, what really moves. A large weight on a small value moves little.",
};

let place = null;

function showHead() {
  const attention = current();
  find("head-title").replaceChildren(`${attention.group} `, make("span", { className: "muted" }, `layer ${attention.layer} · head ${state.head}`));
  find("head-story").replaceChildren(...story(attention));
  find("picture").hidden = state.as !== "picture";
  find("table").hidden = state.as !== "table";
  if (state.as === "picture") {
    const room = find("picture").clientWidth;
    place = drawMatrix(find("matrix"), attention, state.head, state.show, rowLabels(attention), state, state.pointed, room, Math.max(300, window.innerHeight - 330));
  } else {
    showTable(attention);
  }
  drawLegend(find("legend"), state.show, extentOf(attention.matrix(state.head)[state.show].filter((value) => !Number.isNaN(value))));
  find("legend-text").textContent = shows[state.show];
  const { weights } = attention.matrix(state.head);
  const aloud = `${attention.queryTokens[state.row]} looks at ${attention.keyTokens[state.column]}, weight ${number(weights[state.row * attention.keys + state.column])}`;
  find("matrix").setAttribute("aria-label", `${attention.place}, head ${state.head}. ${aloud}. Arrow keys move.`);
  find("said-aloud").textContent = aloud;
}

function story(attention) {
  const row = (state.pointed ?? state).row;
  const { weights } = attention.matrix(state.head);
  const shares = Array.from(weights.subarray(row * attention.keys, (row + 1) * attention.keys), (weight, column) => [weight, column]);
  const first = shares.sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([weight]) => weight >= 0.05);
  const answers = page.target.length ? answersFor(attention) : null;
  const who = answers ? ["To answer ", token(answers[row].chosen[0]), " after ", token(attention.queryTokens[row], "q")] : [token(attention.queryTokens[row], "q")];
  if (!first.length) return [...who, answers ? ", this head looks nowhere in particular." : " looks nowhere in particular."];
  const parts = first.flatMap(([weight, column], i) => [i ? (i === first.length - 1 ? " and " : ", ") : "", token(attention.keyTokens[column], "k"), ` ${percent(weight)}`]);
  return [...who, answers ? ", this head looks at " : " looks at ", ...parts, "."];
}

function showTable(attention) {
  const values = attention.matrix(state.head)[state.show];
  const extent = extentOf(values.filter((value) => !Number.isNaN(value)));
  const labels = rowLabels(attention);
  const head = make("tr", {}, make("td"), ...attention.keyTokens.map((text) => make("th", { scope: "col" }, text)));
  const rows = labels.map((label, row) => make("tr", {}, make("th", { scope: "row" }, label), ...attention.keyTokens.map((_, column) => {
    const value = values[row * attention.keys + column];
    const hidden = !attention.isVisible(state.head, row, column);
    const cell = make("td", { dataset: { row, column } }, hidden ? "·" : number(value, 3));
    if (!hidden) { const parts = shade(state.show, value, extent); cell.style.background = css(parts); cell.style.color = readable(parts); }
    if (row === state.row && column === state.column) cell.className = "chosen";
    return cell;
  })));
  find("table").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function cellAt(event) {
  const box = find("matrix").getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left - place.left) / place.size);
  const row = Math.floor((event.clientY - box.top - place.top) / place.size);
  const inside = row >= 0 && column >= 0 && row < current().queries && column < current().keys;
  return inside ? { row, column } : null;
}

function point(pointed) {
  if (pointed?.row === state.pointed?.row && pointed?.column === state.pointed?.column) return;
  state.pointed = pointed;
  showHead();
  showCell();
}

function moveInMatrix(event) {
  const { queries, keys } = current();
  const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -keys], End: [0, keys], PageUp: [-queries, 0], PageDown: [queries, 0] };
  const move = moves[event.key];
  if (!move) return;
  event.preventDefault();
  const clamp = (value, length) => Math.min(Math.max(value, 0), length - 1);
  choose({ row: clamp(state.row + move[0], queries), column: clamp(state.column + move[1], keys) });
}

// --- choosing ---

function choose(changes) {
  Object.assign(state, changes, { pointed: null });
  history.replaceState(null, "", `#${current().place}/${state.head}/${state.row}/${state.column}`);
  showAll();
}

function showAll() {
  showHead();
  showCell();
  for (const button of document.querySelectorAll(".thumbnail")) {
    const chosen = Number(button.dataset.attention) === state.attention && Number(button.dataset.head) === state.head;
    button.setAttribute("aria-pressed", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
  }
  const onAnswers = Boolean(answersFor(current()));
  document.querySelectorAll(".answer").forEach((button, row) => button.setAttribute("aria-pressed", String(onAnswers && row === state.row)));
}

function radios(box, name, options) {
  for (const [value, text] of options) {
    const input = make("input", { type: "radio", name, value, checked: state[name] === value });
    input.addEventListener("change", () => { state[name] = value; showHead(); });
    find(box).append(make("label", {}, input, make("span", {}, text)));
  }
}

function certify() {
  let worst = { difference: -1 };
  let heads = 0;
  for (const attention of attentions) {
    for (let head = 0; head < attention.heads; head += 1, heads += 1) {
      const { difference } = attention.matrix(head);
      if (!(difference <= worst.difference)) worst = { difference, place: attention.place, head };
    }
  }
  const good = worst.difference < 1e-4;
  const text = `${heads === 1 ? "The one head was" : `All ${heads} heads were`} recomputed in this page from queries, keys and values. Largest difference from the context the model itself used: ${small(worst.difference)} (${worst.place}, head ${worst.head}).`;
  find("certificate").replaceChildren(make("b", { className: good ? "good" : "bad" }, good ? "✓ Certified " : "✗ Not certified "), text);
  document.documentElement.dataset.certified = worst.difference;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  find("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function fromAddress() {
  const [where, head, row, column] = decodeURIComponent(location.hash.slice(1)).split("/");
  const attention = attentions.findIndex((one) => one.place === where);
  if (attention < 0) return false;
  const within = (text, length) => Math.min(Math.max(Number(text) || 0, 0), length - 1);
  const { heads, queries, keys } = attentions[attention];
  Object.assign(state, { attention, head: within(head, heads), row: within(row, queries), column: within(column, keys) });
  return true;
}

function start() {
  const preference = matchMedia("(prefers-color-scheme: dark)");
  setTheme(preference.matches ? "dark" : "light");
  const repaint = () => {
    document.querySelectorAll(".thumbnail").forEach((button) => drawThumbnail(button.firstChild, attentions[button.dataset.attention], Number(button.dataset.head)));
    showAll();
  };
  preference.addEventListener("change", () => { setTheme(preference.matches ? "dark" : "light"); repaint(); });
  find("theme").addEventListener("click", () => { setTheme(isDark() ? "light" : "dark"); repaint(); });
  showExchange();
  if (!attentions.length) {
    document.querySelector("main").className = "empty";
    find("head-title").textContent = "This model has no attention to look at.";
    return;
  }
  showHeads();
  radios("show", "show", [["weights", "Weights"], ["scores", "Scores"], ["flow", "Flow"]]);
  radios("as", "as", [["picture", "Picture"], ["table", "Table"]]);
  if (!fromAddress()) {
    const { attention, head } = mostTelling();
    const row = Math.min(1, attentions[attention].queries - 1);
    Object.assign(state, { attention, head, row, column: strongest(attentions[attention], head, row) });
  }
  find("heads").addEventListener("keydown", moveAmongHeads);
  const canvas = find("matrix");
  canvas.addEventListener("pointermove", (event) => point(cellAt(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => { const cell = cellAt(event); if (cell) choose(cell); });
  canvas.addEventListener("keydown", moveInMatrix);
  find("table").addEventListener("click", (event) => { const { row, column } = event.target.dataset; if (row) choose({ row: Number(row), column: Number(column) }); });
  addEventListener("resize", showAll);
  addEventListener("hashchange", () => { if (fromAddress()) showAll(); });
  showAll();
  certify();
}

start();
