// Tensors against batch size: how far the measured threshold is from the batch-invariant one.

const WORST_ORDER = "";

/** Strength 0..1 of a colour: a square root, so that 1% shows beside 100%. */
const strength = (change) => Math.min(Math.sqrt(Math.abs(change)), 1);

function paint(cell, change) {
  if (!known(change)) return;
  cell.classList.add(change < 0 ? "lower" : "higher");
  cell.style.setProperty("--strength", `${Math.round(strength(change) * 100)}%`);
}

function drawHeatmap() {
  const view = { order: WORST_ORDER, growth: MAIN_GROWTH };
  const host = el("div", { class: "scroll tall", role: "region", "aria-labelledby": "heatmap-title" });
  const redraw = () => host.replaceChildren(heatTable(view));
  const orders = [[WORST_ORDER, "whichever moves it most"], ...ORDERS.map((order) => [order, order])];
  const scale = el(
    "div",
    { class: "scale", "aria-hidden": "true" },
    [-1, -0.25, -0.05, -0.01, 0, 0.01, 0.05, 0.25, 1].map((change) => {
      const step = el("span", {}, `${change < 0 ? "−" : change ? "+" : ""}${Math.abs(change * 100)}%`);
      paint(step, change);
      return step;
    }),
  );
  section(
    "heatmap",
    "Which thresholds move",
    `The threshold of ${short(MEASURED, 40)} against the batch-invariant one; ` +
      "the worst tensor comes first. Of several seeds the worst counts. " +
      "Arrow keys move about, Enter opens the tensor at that batch size.",
    el(
      "div",
      { class: "controls" },
      select("Order", orders, view.order, (order) => {
        view.order = order;
        redraw();
      }),
      select(
        "Growth rule",
        GROWTHS.map((growth) => [growth, growth]),
        view.growth,
        (growth) => {
          view.growth = growth;
          redraw();
        },
      ),
      scale,
    ),
    host,
  );
  redraw();
}

function heatTable({ order, growth }) {
  const wanted = order === WORST_ORDER ? { growth } : { growth, order };
  const bySize = SIZES.map((size) => matching({ ...wanted, batch_size: size }));
  const rows = DATA.tensors.map((name, index) => ({
    name,
    index,
    cells: bySize.map((among) => furthest(index, among)),
  }));
  const worst = (row) => Math.max(...row.cells.map((a) => Math.abs(a?.change[row.index] ?? 0)));
  rows.sort((a, b) => worst(b) - worst(a));
  const body = el(
    "tbody",
    {},
    rows.map((row, y) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, nameOf(row.name, 56), mark(row.index, growth)),
        row.cells.map((a, x) => {
          const change = a?.change[row.index];
          const cell = el("td", { tabindex: x || y ? "-1" : "0" }, percent(change, true));
          if (!a) return cell;
          paint(cell, change);
          cell.dataset.tip = `${short(row.name, 60)}: ${percent(change, true)} with ${arrangementName(a)}`;
          cell.goal = { ...pick(a), tensor: row.index };
          return cell;
        }),
      ),
    ),
  );
  const open = (cell) => cell?.goal && explore(cell.goal, true);
  body.addEventListener("click", (event) => open(event.target.closest("td")));
  body.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td");
    const [right, down] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[
      event.key
    ] ?? [0, 0];
    if (event.key === "Enter" || event.key === " ") open(cell);
    else if (!right && !down) return;
    const next = body.rows[cell.parentNode.sectionRowIndex + down]?.cells[cell.cellIndex + right];
    event.preventDefault();
    if (next?.tagName !== "TD") return;
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return el(
    "table",
    { class: "heat", role: "grid" },
    el("caption", {}, `Relative change of thresholds, growth rule ${growth}`),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "tensor"),
        SIZES.map((size) => el("th", { scope: "col" }, String(size))),
      ),
    ),
    body,
  );
}

const mark = (tensor, growth = MAIN_GROWTH) =>
  isApproximate(tensor, growth)
    ? el(
        "span",
        { class: "badge", title: `The replay is ${percent(DATA.off[tensor])} off here` },
        "approximate: run with --exact",
      )
    : null;
