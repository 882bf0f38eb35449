// How well each configuration performs, against batch size.

const isShare = (key) => DATA.trials.every((trial) => !known(trial[key]) || (trial[key] >= 0 && trial[key] <= 1));
const METRICS = [
  { key: "accuracy", label: "Accuracy", interval: true, format: isShare("accuracy") ? percent : number },
  { key: "agreement", label: "Agreement with FP32", interval: true, format: percent },
  { key: "sqnr_db", label: "SQNR of the outputs", interval: DATA.trials.some((trial) => known(trial.sqnr_db_low)), format: (value) => `${number(value, 3)} dB` },
  { key: "amax_change_median", label: "Change of thresholds, median", interval: false, zero: true, format: percent },
  { key: "amax_change_max", label: "Change of thresholds, worst", interval: false, zero: true, format: percent },
].filter((metric) => DATA.trials.some((trial) => known(trial[metric.key])));

/** Trials of a metric -> lines by growth rule, and as references what no batch size or order changes. */
function arms(metric) {
  const trials = DATA.trials
    .filter((trial) => known(trial[metric.key]))
    .map((trial) => ({
      ...trial,
      ...pick(DATA.arrangements[trial.arrangement]),
      y: trial[metric.key],
      low: trial[`${metric.key}_low`],
      high: trial[`${metric.key}_high`],
    }));
  const still = (rows) => rows.length > 0 && rows.every((row) => row.y === rows[0].y);
  const references = [];
  const panels = new Map();
  const varying = new Set();
  for (const method of METHODS) {
    const rows = trials.filter((trial) => trial.method === method);
    if (still(rows)) {
      references.push({ name: method, ...score(rows[0]) });
      continue;
    }
    for (const growth of GROWTHS) {
      const grown = rows.filter((row) => row.growth === growth);
      if (still(grown)) references.push({ name: `${method}, ${growth}`, ...score(grown[0]) });
      else if (grown.length)
        panels.set(growth, [
          ...(panels.get(growth) ?? []),
          ...lines(method, growth, grown, metric, [...varying.add(method)].indexOf(method)),
        ]);
    }
  }
  if (!panels.size && references.length) panels.set("", []);
  return { panels, references };
}

const score = ({ y, low, high }) => ({ y, low, high });

function lines(method, growth, rows, metric, variant) {
  return ORDERS.filter((order) => rows.some((row) => row.order === order)).map((order) => ({
    name: `${method}, ${order}`,
    method,
    growth,
    order,
    variant,
    colour: ORDERS.indexOf(order) % 6,
    shape: ORDERS.indexOf(order) % 6,
    points: SIZES.map((size) => {
      const here = rows.filter((row) => row.order === order && row.batch_size === size);
      if (!here.length) return { x: size, y: null };
      const [y, low, high] = ["y", "low", "high"].map((key) =>
        here.every((row) => known(row[key])) ? mean(here.map((row) => row[key])) : null,
      );
      const interval = known(low) ? ` (${metric.format(low)} to ${metric.format(high)})` : "";
      const seeds = here.length > 1 ? `, mean of ${here.length} seeds` : "";
      return {
        x: size,
        y,
        low,
        high,
        dots: here.length > 1 ? here.map((row) => row.y) : [],
        tip: `${method}, ${order}, batches of ${size}: ${metric.format(y)}${interval}${seeds}`,
      };
    }),
  }));
}

/** Words for which line is whose, where several methods vary: orders have the colours. */
function methodsOf(series) {
  const [first, ...others] = unique(series.map((one) => one.method));
  return others.length ? `; solid lines: ${first}, dotted: ${others.join(", ")}` : "";
}

const hiddenOrders = new Set();

function drawScores() {
  let metric = METRICS[0];
  if (!metric) return section("scores", "Batch size", "No trial was measured.");
  const charts = el("div", {});
  const numbers = el("div", {
    class: "scroll",
    tabindex: "0",
    role: "region",
    "aria-label": "The numbers of the chart",
  });
  const redraw = drawn(charts, (width) => {
    const { panels, references } = arms(metric);
    const every = [...panels.values()].flat();
    const shown = [...every.flatMap((one) => one.points), ...references];
    const range = extent(
      shown.flatMap((point) => [point.y, point.low, point.high, ...(point.dots ?? [])]),
      metric.zero,
    );
    numbers.replaceChildren(scoreTable(every, references, metric, panels.size > 1));
    const parts = [...panels].map(([growth, series]) => {
      const kept = series.filter((one) => !hiddenOrders.has(one.order));
      return el(
        "figure",
        {},
        el(
          "figcaption",
          {},
          growth
            ? [el("b", {}, growth), ` – ${short(growthWords(growth), 200)}${methodsOf(series)}`]
            : "Nothing here depends on batches.",
        ),
        lineChart({
          width,
          height: 330,
          series: kept,
          references,
          range,
          format: metric.format,
          xs: SIZES,
          xTitle: "batch size",
          yTitle: metric.label,
          label: `${metric.label} against batch size, growth rule ${growth}`,
        }),
      );
    });
    if (width < 700 && references.length)
      parts.push(
        el(
          "p",
          { class: "lead" },
          `Whatever the batches: ${references.map((r) => `${r.name} ${metric.format(r.y)}`).join("; ")}.`,
        ),
      );
    return parts;
  });
  const chips = el(
    "div",
    { class: "chips", role: "group", "aria-label": "Orders shown" },
    ORDERS.map((order, i) => {
      const chip = el(
        "button",
        {
          type: "button",
          class: `chip c${i % 6}`,
          "aria-pressed": "true",
          onclick: () => {
            if (!hiddenOrders.delete(order)) hiddenOrders.add(order);
            chip.setAttribute("aria-pressed", String(!hiddenOrders.has(order)));
            redraw();
          },
        },
        svg(
          "svg",
          { viewBox: "-7 -7 14 14", class: "key", "aria-hidden": "true" },
          svg("path", { class: "marker", d: SHAPES[i % 6] }),
        ),
        order,
      );
      return chip;
    }),
  );
  const choice = select(
    "Measure",
    METRICS.map((one) => [one.key, one.label]),
    metric.key,
    (key) => {
      metric = METRICS.find((one) => one.key === key);
      redraw();
    },
  );
  section(
    "scores",
    "What batch size and order do",
    "Bars are 95% intervals, bootstrapped over samples. Shuffled is the mean of its seeds, with the seeds as dots and their mean interval. " +
      "A dashed line is a method that no batch size and no order changes.",
    el("div", { class: "controls" }, choice, chips),
    charts,
    el("details", {}, el("summary", {}, "The numbers of this chart"), numbers),
  );
  redraw();
}

function scoreTable(series, references, metric, several) {
  const cell = (point) =>
    el(
      "td",
      {},
      known(point.y)
        ? metric.format(point.y) +
            (known(point.low) ? ` (${metric.format(point.low)} to ${metric.format(point.high)})` : "")
        : NOT_MEASURED,
    );
  return el(
    "table",
    {},
    el("caption", {}, `${metric.label} by batch size`),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", { scope: "col" }, "series"),
        SIZES.map((size) => el("th", { scope: "col" }, String(size))),
      ),
    ),
    el(
      "tbody",
      {},
      series.map((one) =>
        el("tr", {}, el("th", { scope: "row" }, one.name + (several ? `, ${one.growth}` : "")), one.points.map(cell)),
      ),
      references.map((one) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, one.name),
          SIZES.map(() => cell(one)),
        ),
      ),
    ),
  );
}
