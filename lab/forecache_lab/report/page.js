"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const narrow = () => window.innerWidth < 700;

// --- light and dark -------------------------------------------------------------------------------------------------
const root = document.documentElement;
const preference = window.matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
root.dataset.theme = preference.matches ? "dark" : "light";

// --- plots ----------------------------------------------------------------------------------------------------------
const settings = {responsive: true, displayModeBar: false};  // a double click resets a zoom

// names of methods are long: on a narrow screen they are cut, the hover has them in full
const cut = (name) => (name.length > 20 ? name.slice(0, 19) + "…" : name);

function themed(layout) {
  const axis = {gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line")};
  const made = {...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {color: colour("ink"), size: narrow() ? 10 : 12, family: getComputedStyle(document.body).fontFamily},
    hoverlabel: {bgcolor: colour("panel"), bordercolor: colour("line"), font: {color: colour("ink")}}};
  for (const name of ["xaxis", "yaxis", "yaxis2"]) if (layout[name]) made[name] = {...layout[name], ...axis};
  const lanes = layout.yaxis && layout.yaxis.categoryarray;
  if (lanes && narrow()) Object.assign(made.yaxis, {tickvals: lanes, ticktext: lanes.map(cut)});
  // the legend stands below the axis title, whatever the height
  if (layout.height) made.legend = {...layout.legend, y: -64 / layout.height - 0.04};
  return made;
}

// plotly keeps what it is given and writes to it, so it gets a copy
function draw(element) {
  const figure = structuredClone(data.figures[element.dataset.figure]);
  return Plotly.newPlot(element, figure.data, themed(figure.layout), settings);
}

all(".plot").forEach(draw);
all("select.column").forEach((select) => select.addEventListener("change", () => {
  const element = $("drift-" + select.dataset.table);
  element.dataset.figure = `drift-${select.dataset.table}-${select.value}`;
  draw(element);
}));
all("select.item").forEach((select) => select.addEventListener("change", () => {
  const element = $("timeline-" + select.dataset.table);
  element.dataset.figure = `timeline-${select.dataset.table}-${select.value}`;
  draw(element);
}));

// --- tables ---------------------------------------------------------------------------------------------------------
all("thead button").forEach((button) => button.addEventListener("click", () => {
  const head = button.closest("th"), column = head.cellIndex, body = head.closest("table").tBodies[0];
  const rising = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => value(a) === undefined
    ? a.cells[column].textContent.localeCompare(b.cells[column].textContent, undefined, {numeric: true})
    : amount(value(a)) - amount(value(b)));
  body.append(...(rising ? rows : rows.reverse()));
}));

function amount(text) {
  const value = parseFloat(text);
  return Number.isFinite(value) ? value : Number.MAX_VALUE;
}

// --- meshes ---------------------------------------------------------------------------------------------------------
const EYE = {x: 1.25, y: -1.25, z: 0.75};
const cards = all("#cards li");
let camera = {eye: {...EYE}, up: {x: 0, y: 0, z: 1}, center: {x: 0, y: 0, z: 0}};
let current = null;

function numbers(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

// y is up in the files, z in the plot
function unpacked(shape) {
  const p = numbers(shape.p, Uint16Array), f = numbers(shape.f, shape.wide ? Uint32Array : Uint16Array);
  const at = (k) => Float32Array.from({length: p.length / 3},
    (_, v) => shape.low[k] + (shape.high[k] - shape.low[k]) * p[3 * v + k] / 65535);
  const side = (k) => Uint32Array.from({length: f.length / 3}, (_, t) => f[3 * t + k]);
  const mesh = {x: at(0), y: at(2).map((z) => -z), z: at(1), i: side(0), j: side(1), k: side(2)};
  if (shape.d) mesh.intensity = Float32Array.from(numbers(shape.d, Uint16Array), (d) => d * shape.far / 65535);
  return mesh;
}

function box(shapes) {
  const low = [0, 1, 2].map((k) => Math.min(...shapes.map((s) => s.low[k])));
  const high = [0, 1, 2].map((k) => Math.max(...shapes.map((s) => s.high[k])));
  const half = Math.max(...high.map((h, k) => h - low[k])) * 0.52;
  const range = (k, sign) => { const c = sign * (low[k] + high[k]) / 2; return [c - half, c + half]; };
  return {x: range(0, 1), y: range(2, -1), z: range(1, 1)};
}

function scene(element, shape, ranges) {
  const mesh = unpacked(shape);
  const trace = {type: "mesh3d", ...mesh, flatshading: false, hoverinfo: shape.d ? "text" : "skip",
    lighting: {ambient: 0.5, diffuse: 0.7, specular: 0.08, roughness: 0.9, facenormalsepsilon: 0, vertexnormalsepsilon: 0}, lightposition: {x: 800, y: -1500, z: 2000}};
  if (shape.d) {
    Object.assign(trace, {colorscale: "Viridis", cmin: 0, cmax: data.far,
      text: Array.from(mesh.intensity, (d) => "distance " + d.toPrecision(2)),
      colorbar: {thickness: 10, len: 0.8, x: 0.99, xanchor: "right", tickfont: {size: 10}, nticks: 5}});
  } else trace.color = "#b0bac8";
  const axis = (range) => ({range, visible: false, autorange: false});
  const layout = themed({margin: {l: 0, r: 0, t: 0, b: 0}, uirevision: "mesh",
    scene: {xaxis: axis(ranges.x), yaxis: axis(ranges.y), zaxis: axis(ranges.z), aspectmode: "cube", camera}});
  return Plotly.react(element, [trace], layout, {...settings, scrollZoom: false});
}

function facts(shape) {
  return `${shape.components} component${shape.components === 1 ? "" : "s"}, ${shape.watertight ? "" : "not "}watertight`;
}

async function show(card) {
  current = card;
  const shown = data.cards[card.dataset.card];
  const left = data.shapes[shown.left], right = data.shapes[shown.right], ranges = box([left, right]);
  all(".card").forEach((button) => button.removeAttribute("aria-current"));
  card.querySelector(".card").setAttribute("aria-current", "true");
  $("shown").textContent = `${shown.item} · ${shown.heading}`;
  $("caption-right").textContent = shown.method;
  $("facts-left").textContent = facts(left);
  $("facts-right").textContent = facts(right);
  if (!$("nogl").hidden) return;
  await Promise.all([scene($("left"), left, ranges), scene($("right"), right, ranges)]);
}

function look(next, except) {
  camera = next;
  for (const id of ["left", "right"]) if (id !== except && $(id).layout) Plotly.relayout($(id), {"scene.camera": next});
}

function turn(around, over, nearer) {
  const {x, y, z} = camera.eye, c = camera.center || {x: 0, y: 0, z: 0};
  const d = [x - c.x, y - c.y, z - c.z], radius = Math.hypot(...d) * nearer;
  const angle = Math.atan2(d[1], d[0]) + around;
  const height = Math.max(-1.5, Math.min(1.5, Math.asin(d[2] / Math.hypot(...d)) + over));
  const flat = radius * Math.cos(height);
  look({...camera, up: {x: 0, y: 0, z: 1}, eye: {
    x: c.x + flat * Math.cos(angle), y: c.y + flat * Math.sin(angle), z: c.z + radius * Math.sin(height)}});
}

const KEYS = {ArrowLeft: [-0.15, 0, 1], ArrowRight: [0.15, 0, 1], ArrowUp: [0, 0.15, 1], ArrowDown: [0, -0.15, 1],
  "+": [0, 0, 0.9], "=": [0, 0, 0.9], "-": [0, 0, 1.1]};
const reset = () => look({eye: {...EYE}, up: {x: 0, y: 0, z: 1}, center: {x: 0, y: 0, z: 0}});
const visible = () => all("#cards li").filter((card) => !card.hidden);

function beside(step) {
  const shown = visible(), at = shown.indexOf(current);
  if (shown.length) show(shown[(at + step + shown.length) % shown.length]);
}

function arrange() {
  const order = all(".sort").find((button) => button.getAttribute("aria-pressed") === "true").dataset.sort;
  const sign = order === "worst" ? -1 : 1;
  const drift = (card) => amount(card.dataset.drift);
  const byItem = (a, b) => a.dataset.item.localeCompare(b.dataset.item, undefined, {numeric: true});
  const sorted = [...cards].sort((a, b) => (order === "item" && byItem(a, b)) || sign * (drift(a) - drift(b)));
  $("cards").append(...sorted);
  const method = $("method").value;
  for (const card of cards) card.hidden = method !== "" && card.dataset.method !== method;
  $("count").textContent = `${visible().length} of ${cards.length} pairs`;
}

function hasWebGL() {
  const canvas = document.createElement("canvas");
  return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl"));
}

if (cards.length) {
  $("nogl").hidden = hasWebGL();
  $("pair").hidden = !$("nogl").hidden;
  all(".sort").forEach((button) => button.addEventListener("click", () => {
    all(".sort").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    arrange();
  }));
  $("method").addEventListener("change", () => { arrange(); if (!visible().includes(current)) beside(1); });
  cards.forEach((card) => card.querySelector(".card").addEventListener("click", () => {
    show(card);
    $("viewer").scrollIntoView({block: "nearest"});
  }));
  $("previous").addEventListener("click", () => beside(-1));
  $("next").addEventListener("click", () => beside(1));
  $("reset").addEventListener("click", reset);
  $("pair").addEventListener("keydown", (event) => {
    if (event.key === "0") reset();
    else if (KEYS[event.key]) turn(...KEYS[event.key]);
    else return;
    event.preventDefault();
  });
  arrange();
  const first = cards.find((card) => !/^(control|Euler)/.test(card.dataset.method)) || cards[0];
  show(first).then(() => {
    if (!$("nogl").hidden) return;
    for (const id of ["left", "right"]) {
      const moved = (change) => {
        const next = change["scene.camera"];
        if (next && JSON.stringify(next) !== JSON.stringify(camera)) look(next, id);
      };
      $(id).on("plotly_relayouting", moved);
      $(id).on("plotly_relayout", moved);
    }
  });
}

// --- the page's colours, once more when they or the width change ------------------------------------------------------
function redraw() {
  all(".plot").forEach(draw);
  if (current) show(current);
}
function theme(name) {
  root.dataset.theme = name;
  redraw();
}
$("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
preference.addEventListener("change", () => theme(preference.matches ? "dark" : "light"));
let wasNarrow = narrow();
window.addEventListener("resize", () => {
  if (narrow() !== wasNarrow) { wasNarrow = narrow(); redraw(); }
});
