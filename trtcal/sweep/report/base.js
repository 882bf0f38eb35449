"use strict";
// The sweep, and what every part of the page uses: elements, words for numbers, names that cannot deceive.

const DATA = JSON.parse(document.getElementById("data").textContent);
const NOT_MEASURED = "–";

// --- elements: text only ever becomes text, never markup

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, part] of Object.entries(value)) node.style.setProperty(key, part);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, attributes = {}, ...children) => build(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

/** Fill a section: heading, one sentence on how to read it, content. */
function section(id, title, lead, ...content) {
  const heading = el("h2", { id: `${id}-title` }, title);
  document.getElementById(id).replaceChildren(heading, ...(lead ? [el("p", { class: "lead" }, lead)] : []), ...content);
}

function select(label, options, value, change) {
  const field = el("select", { onchange: () => change(field.value) });
  for (const [key, text] of options) field.append(el("option", { value: key }, text));
  field.value = value;
  return el("label", { class: "field" }, el("span", {}, label), field);
}

// --- names come from files and may hold anything

const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
const visible = (text) =>
  String(text).replace(INVISIBLE, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);

/** The middle of a long text gives way: names differ at their ends. */
function short(text, most) {
  const characters = Array.from(visible(text));
  if (characters.length <= most) return characters.join("");
  const head = Math.floor((most - 1) / 3);
  return `${characters.slice(0, head).join("")}…${characters.slice(head + 1 - most).join("")}`;
}

const nameOf = (text, most = 60) =>
  el("bdi", { class: "name", title: short(text, 2000) }, short(text, most) || "(no name)");

// --- numbers for people

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

function percent(value, sign = false) {
  if (!known(value)) return NOT_MEASURED;
  const size = Math.abs(value * 100);
  if (size === 0) return "0%";
  if (size < 0.01) return "<0.01%";
  const text =
    size >= 1000 ? Math.round(size).toLocaleString("en") : size.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
  return `${value < 0 ? "−" : sign ? "+" : ""}${text}%`;
}

function number(value, digits = 4) {
  if (!known(value)) return NOT_MEASURED;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) return value.toExponential(2).replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

function count(value) {
  if (value < 1e4) return number(value, 3);
  const power = Math.min(Math.floor(Math.log10(value) / 3), 4);
  return `${Number((value / 1000 ** power).toPrecision(3))}${"kMGT"[power - 1]}`;
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const plural = (many, word) => `${many.toLocaleString("en")} ${word}${many === 1 ? "" : "s"}`;

// --- what the sweep is made of

const unique = (values) => [...new Set(values)];
const SIZES = unique(DATA.arrangements.map((a) => a.batch_size)).sort((a, b) => a - b);
const ORDERS = unique(DATA.arrangements.map((a) => a.order));
const GROWTHS = unique(DATA.arrangements.map((a) => a.growth));
const METHODS = unique(DATA.trials.map((t) => t.method));
const growthWords = (growth) => {
  const { label, description } = DATA.growth_rules[growth];
  return description ? `${label}: ${description}` : label;
};
const MEASURED = DATA.measured_by; // the method whose thresholds the arrangements have
const STUDIED = METHODS.find((method) => DATA.methods[method].depends_on_batches) ?? MEASURED;
const CONTROLS = METHODS.filter((method) => !DATA.methods[method].clips);
const APPROXIMATE = 0.01;

const isApproximate = (tensor, growth) =>
  !DATA.exact && !DATA.growth_rules[growth].fine && Boolean(DATA.off) && DATA.off[tensor] > APPROXIMATE;

const arrangementName = (a, withGrowth = GROWTHS.length > 1) =>
  `batches of ${a.batch_size}, ${a.order}${a.seed === null ? "" : ` (seed ${a.seed})`}${withGrowth ? `, ${a.growth}` : ""}`;

const pick = ({ batch_size, order, seed, growth }) => ({ batch_size, order, seed, growth });

/** Arrangements that match what is given of {batch_size, order, growth}. */
const matching = (wanted) =>
  DATA.arrangements.filter((a) => Object.entries(wanted).every(([key, value]) => a[key] === value));

/** The arrangement among these that moves a tensor's threshold furthest. */
function furthest(tensor, among) {
  let worst = null;
  for (const a of among) if (!worst || Math.abs(a.change[tensor] ?? 0) > Math.abs(worst.change[tensor] ?? 0)) worst = a;
  return worst;
}

const MAIN_GROWTH = GROWTHS.find((growth) => DATA.growth_rules[growth].tensorrt) ?? GROWTHS[0];

/** {index, name, change, at}: tensors and the arrangement that moves each furthest, worst first. */
const TENSORS = DATA.tensors
  .map((name, index) => {
    const at = furthest(index, matching({ growth: MAIN_GROWTH }));
    return { index, name, at, change: at?.change[index] ?? 0 };
  })
  .sort((a, b) => Math.abs(b.change) - Math.abs(a.change));

// --- a tip that follows pointer and keyboard to whatever has data-tip

const tip = document.getElementById("tip");
function showTip(event) {
  const target = event.target.closest?.("[data-tip]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.getAttribute("data-tip");
  const box = target.getBoundingClientRect();
  const left = Math.min(Math.max(box.x + box.width / 2 - tip.offsetWidth / 2, 8), innerWidth - tip.offsetWidth - 8);
  const above = box.y - tip.offsetHeight - 8;
  tip.style.setProperty("left", `${left}px`);
  tip.style.setProperty("top", `${above < 8 ? box.bottom + 8 : above}px`);
}
for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, showTip);
document.addEventListener("scroll", () => (tip.hidden = true), { passive: true, capture: true });
document.addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));

// --- charts are drawn for the width they have

const drawings = [];
/** Draw now, and again when the window changes; `draw` gets a width in pixels and returns nodes. */
function drawn(host, draw) {
  const again = () => host.replaceChildren(...[draw(Math.max(host.clientWidth || 960, 280))].flat());
  drawings.push(again);
  return again;
}
let waiting = 0;
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === lastWidth) return;
  lastWidth = innerWidth;
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => drawings.forEach((again) => again()));
});
