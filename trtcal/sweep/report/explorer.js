// One tensor: its histogram as each arrangement of the samples would have TensorRT see it.

const DRAWN_BINS = 128;
const EXPLORED = { tensor: 0, batch_size: SIZES[0], order: ORDERS[0], seed: null, growth: MAIN_GROWTH };

/** Show a tensor in an arrangement; what is left out stays as it was. The address of the page keeps the view. */
function explore(goal, jump = false) {
  Object.assign(EXPLORED, goal);
  if (!DATA.tensors[EXPLORED.tensor]) EXPLORED.tensor = 0;
  const near = closest();
  if (!near) return;
  Object.assign(EXPLORED, pick(near));
  drawExplorer(near);
  try {
    history.replaceState(null, "", viewAddress(EXPLORED));
  } catch {
    // A page inside a frame may not; it works all the same.
  }
  if (jump) {
    const reduced = matchMedia("(prefers-reduced-motion: reduce)").matches;
    document.getElementById("explorer").scrollIntoView({ behavior: reduced ? "auto" : "smooth" });
    document.getElementById("explorer-title").focus({ preventScroll: true });
  }
}

const viewAddress = ({ tensor, batch_size, order, seed, growth }) =>
  `#${new URLSearchParams({ tensor, batch: batch_size, order, ...(seed === null ? {} : { seed }), growth })}`;

function follow(address) {
  const asked = new URLSearchParams(address.slice(1));
  if (!asked.has("tensor")) return false;
  const given = (key, read) => (asked.has(key) ? read(asked.get(key)) : undefined);
  const goal = {
    tensor: given("tensor", Number),
    batch_size: given("batch", Number),
    order: given("order", String),
    seed: given("seed", Number),
    growth: given("growth", String),
  };
  explore(Object.fromEntries(Object.entries(goal).filter(([, value]) => value !== undefined)), true);
  return true;
}

/** The arrangement asked for, or the one most like it that the sweep has. */
function closest() {
  const likeness = (a) =>
    ["growth", "order", "batch_size", "seed"].reduce((sum, key, i) => sum + (a[key] === EXPLORED[key] ? 8 >> i : 0), 0);
  return DATA.arrangements.reduce((best, a) => (!best || likeness(a) > likeness(best) ? a : best), null);
}

const parts = {};

function setUpExplorer() {
  if (!TENSORS.length || !DATA.arrangements.length)
    return section("explorer", "One tensor", "The sweep holds no tensor with a range.");
  parts.tensor = el(
    "select",
    { onchange: () => explore({ tensor: Number(parts.tensor.value) }) },
    TENSORS.map(({ name, index, change }) =>
      el("option", { value: index }, `${short(name, 70)}  ${percent(change, true)}`),
    ),
  );
  const turn = (step) => () => {
    const place = TENSORS.findIndex(({ index }) => index === EXPLORED.tensor);
    explore({ tensor: TENSORS[(place + step + TENSORS.length) % TENSORS.length].index });
  };
  parts.size = el("input", {
    type: "range",
    min: 0,
    max: SIZES.length - 1,
    step: 1,
    oninput: () => explore({ batch_size: SIZES[Number(parts.size.value)] }),
  });
  parts.sizeText = el("b", { class: "size" });
  parts.order = select(
    "Order",
    ORDERS.map((order) => [order, order]),
    ORDERS[0],
    (order) => explore({ order }),
  );
  parts.seed = select("Seed", [], "", (seed) => explore({ seed: Number(seed) }));
  parts.growth = select(
    "Growth rule",
    GROWTHS.map((g) => [g, g]),
    MAIN_GROWTH,
    (growth) => explore({ growth }),
  );
  for (const name of ["name", "warning", "chart", "facts", "course", "loudest"])
    parts[name] = el("div", { class: name });
  parts.warning.setAttribute("role", "status");
  section(
    "explorer",
    "One tensor",
    "Its histogram with the bins and the limit that TensorRT would have ended up with, 16 of its 2048 bins to a bar; " +
      `what ${short(MEASURED, 40)} clips, right of its threshold, is orange. ` +
      "Move the batch size and watch the limit. The address of this page keeps the view, so it can be sent on.",
    el(
      "div",
      { class: "controls" },
      el("label", { class: "field wide" }, el("span", {}, "Tensor, worst first"), parts.tensor),
      el(
        "div",
        { class: "pair" },
        el("button", { type: "button", onclick: turn(-1), "aria-label": "Previous tensor" }, "‹"),
        el("button", { type: "button", onclick: turn(1), "aria-label": "Next tensor" }, "›"),
      ),
      el("label", { class: "field slider" }, el("span", {}, "Batch size ", parts.sizeText), parts.size),
      parts.order,
      parts.seed,
      parts.growth,
    ),
    parts.name,
    parts.warning,
    parts.chart,
    parts.facts,
    el("div", { class: "columns" }, parts.course, parts.loudest),
  );
  document.getElementById("explorer-title").tabIndex = -1;
  parts.redraw = ["chart", "course"].map((name) => drawn(parts[name], (width) => parts[`${name}Drawing`](width)));
  const worst = TENSORS[0];
  if (!follow(location.hash)) {
    Object.assign(EXPLORED, { tensor: worst.index, ...pick(worst.at) });
    drawExplorer(closest());
  }
  addEventListener("hashchange", () => follow(location.hash));
  document.addEventListener("click", (event) => {
    // The view may have moved on without the address that the link names having changed.
    const link = event.target.closest('a[href^="#tensor="]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    follow(link.hash);
  });
}

function drawExplorer(a) {
  const { tensor } = EXPLORED;
  parts.tensor.value = tensor;
  parts.size.value = SIZES.indexOf(a.batch_size);
  parts.size.setAttribute("aria-valuetext", `batches of ${a.batch_size}`);
  parts.sizeText.textContent = a.batch_size;
  parts.order.querySelector("select").value = a.order;
  parts.growth.querySelector("select").value = a.growth;
  const seeds = unique(matching({ order: a.order }).map((other) => other.seed)).filter((seed) => seed !== null);
  const seed = parts.seed.querySelector("select");
  seed.replaceChildren(...(seeds.length ? seeds : ["–"]).map((one) => el("option", { value: one }, String(one))));
  seed.disabled = seeds.length < 2;
  if (a.seed !== null) seed.value = a.seed;
  parts.name.replaceChildren(el("h3", {}, nameOf(DATA.tensors[tensor], 160)), mark(tensor, a.growth) ?? "");
  parts.warning.textContent = a.fell_back[tensor]
    ? `The rule ${a.growth} is undefined for these values, which squaring does not make larger; the limit doubled instead.`
    : "";
  parts.facts.replaceChildren(facts(tensor, a));
  parts.loudest.replaceChildren(...loudest(tensor));
  parts.chartDrawing = (width) => tensorHistogram(tensor, a, width);
  parts.courseDrawing = (width) => thresholdCourse(tensor, a, width);
  parts.redraw.forEach((again) => again());
}

function tensorHistogram(tensor, a, width) {
  const histogram = DATA.histograms[tensor];
  const limit = a.limit[tensor];
  if (!limit || !histogram.limit)
    return el("p", { class: "empty" }, "Nothing but zeros: there is no histogram to draw.");
  const limits = matching({ growth: a.growth })
    .map((other) => other.limit[tensor])
    .filter(known);
  const to = Math.min(Math.max(...limits, histogram.amax) * 1.02, histogram.amax * 4);
  const lines = Object.entries(DATA.invariant)
    .filter(([method]) => method !== MEASURED)
    .map(([method, amax]) => ({ name: method, at: amax[tensor], kind: "other" }));
  if (DATA.invariant[MEASURED])
    lines.push({ name: `${MEASURED}, batch-invariant`, at: DATA.invariant[MEASURED][tensor], kind: "invariant" });
  lines.push(
    { name: "first batch's maximum", at: a.first_amax[tensor], kind: "first" },
    { name: MEASURED, at: a.amax[tensor], kind: "measured" },
    { name: "limit", at: limit, kind: "limit" },
  );
  return histogramChart({
    width,
    height: 380,
    limit,
    to,
    lines,
    bins: rebinned(histogram, limit, DRAWN_BINS),
    threshold: a.amax[tensor],
    label:
      `Histogram of ${short(DATA.tensors[tensor], 80)} with ${arrangementName(a)}: limit ${number(limit)}, ` +
      `${short(MEASURED, 40)} keeps up to ${number(a.amax[tensor])}`,
  });
}

function facts(tensor, a) {
  const batches = Math[DATA.partial === "drop" ? "floor" : "ceil"](DATA.sample_count / a.batch_size);
  const grown = a.last_growth[tensor];
  const doublings = a.doublings[tensor];
  const rows = [
    ["First batch's maximum", number(a.first_amax[tensor])],
    ["Limit", number(a.limit[tensor])],
    [
      "Doublings",
      number(doublings, 3),
      grown >= 0 ? `the last in batch ${grown + 1} of ${batches}` : "the first batch's maximum held",
    ],
    [
      "Limit / true maximum",
      known(a.slack[tensor]) ? `${number(a.slack[tensor], 3)}×` : NOT_MEASURED,
      "room that no value uses",
    ],
    ["Empty bins", percent(a.empty[tensor])],
    ["Bins kept, m", a.m[tensor] < 0 ? "all" : String(a.m[tensor]), "of 2048"],
    ["Threshold", number(a.amax[tensor]), `scale ${number(known(a.amax[tensor]) ? a.amax[tensor] / 127 : null)}`],
    ["Threshold's change", percent(a.change[tensor], true), "against batch-invariant"],
    ["Clipped", percent(a.clipped[tensor]), "of all elements"],
    ["Jensen-Shannon distance", number(a.js[tensor], 3), "0 the same, 1 disjoint"],
    ["Earth mover's distance", percent(a.emd[tensor]), "of the largest |x|"],
  ];
  return el(
    "dl",
    { class: "numbers" },
    rows.map(([name, value, note]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, el("b", {}, value), note ? el("small", {}, note) : null)),
    ),
  );
}

/** The tensor's measured threshold over batch sizes, an order a line. */
function thresholdCourse(tensor, a, width) {
  const series = ORDERS.map((order, i) => ({
    name: order,
    colour: i % 6,
    shape: i % 6,
    points: SIZES.map((size) => {
      const values = matching({ growth: a.growth, order, batch_size: size })
        .map((other) => other.amax[tensor])
        .filter(known);
      const y = values.length ? mean(values) : null;
      return { x: size, y, dots: values.length > 1 ? values : [], tip: `${order}, batches of ${size}: ${number(y)}` };
    }),
  }));
  const fixed = DATA.invariant[MEASURED]?.[tensor];
  const references = known(fixed) ? [{ name: "batch-invariant", y: fixed }] : [];
  const range = extent([
    ...series.flatMap((one) => one.points.flatMap((point) => [point.y, ...(point.dots ?? [])])),
    fixed,
  ]);
  return el(
    "figure",
    {},
    el("figcaption", {}, el("b", {}, `Threshold of ${short(MEASURED, 40)}`), ` by batch size; dashed: batch-invariant`),
    lineChart({
      width,
      height: 260,
      series,
      references,
      range,
      format: (v) => number(v),
      xs: SIZES,
      mark: a.batch_size,
      dodge: 5,
      xTitle: "batch size",
      yTitle: "amax",
      label: `Threshold of this tensor by ${short(MEASURED, 40)} against batch size`,
    }),
    el(
      "p",
      { class: "legend" },
      ORDERS.map((order, i) =>
        el(
          "span",
          { class: `c${i % 6}` },
          svg(
            "svg",
            { viewBox: "-7 -7 14 14", class: "key", "aria-hidden": "true" },
            svg("path", { class: "marker", d: SHAPES[i % 6] }),
          ),
          order,
        ),
      ),
    ),
  );
}

function loudest(tensor) {
  const rows = DATA.loudest[tensor];
  const most = rows[0]?.[1] || 1;
  return [
    el("p", { class: "caption" }, el("b", {}, "Loudest samples"), " – largest |x| in this tensor"),
    el(
      "ol",
      { class: "bars" },
      rows.map(([sample, amax]) => {
        const bar = el("span", { class: "bar", "aria-hidden": "true" });
        bar.style.setProperty("width", `${((amax ?? 0) / most) * 100}%`);
        const picture = DATA.thumbnails[DATA.sample_names[sample]];
        return el(
          "li",
          {},
          picture ? el("img", { src: picture, alt: "" }) : null,
          nameOf(DATA.sample_names[sample], 40),
          el("b", {}, number(amax)),
          bar,
        );
      }),
    ),
  ];
}
