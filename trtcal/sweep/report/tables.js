// Tables that sort and search: the worst tensors, and all trials.

const FIRST_ROWS = 200;

/**
 * A table with sorting heads and a search field. A column is {name, value(row), text(row) or cell(row)};
 * `words(row)` is what the search looks through.
 */
function sortable({ id, label, columns, rows, words, by, searchLabel }) {
  const state = { by, down: true, words: "", all: false };
  const said = el("p", { class: "said", role: "status" });
  const body = el("tbody", {});
  const more = el("button", {
    type: "button",
    onclick: () => {
      state.all = true;
      fill();
    },
  });
  const heads = columns.map((column, i) =>
    el(
      "th",
      { scope: "col" },
      el(
        "button",
        {
          type: "button",
          onclick: () => {
            state.down = state.by === i ? !state.down : true;
            state.by = i;
            fill();
          },
        },
        column.name,
      ),
    ),
  );
  const search = el("input", {
    type: "search",
    id: `${id}-search`,
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => {
      state.words = search.value.toLowerCase();
      fill();
    },
  });
  const order = (a, b) => {
    const [x, y] = [a, b].map(columns[state.by].value);
    if (x === y) return 0;
    if (x === null || x === undefined) return 1; // what was not measured comes last either way
    if (y === null || y === undefined) return -1;
    return (x < y ? -1 : 1) * (state.down ? -1 : 1);
  };
  function fill() {
    const wanted = state.words.split(/\s+/).filter(Boolean);
    const found = rows.filter((row) => wanted.every((word) => words(row).toLowerCase().includes(word))).sort(order);
    const shown = state.all ? found : found.slice(0, FIRST_ROWS);
    body.replaceChildren(
      ...shown.map((row) =>
        el(
          "tr",
          {},
          columns.map((column, i) =>
            el(i ? "td" : "th", i ? {} : { scope: "row" }, column.cell ? column.cell(row) : column.text(row)),
          ),
        ),
      ),
    );
    heads.forEach((head, i) =>
      head.setAttribute("aria-sort", i !== state.by ? "none" : state.down ? "descending" : "ascending"),
    );
    said.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    more.hidden = shown.length === found.length;
    more.textContent = `Show all ${found.length.toLocaleString("en")}`;
  }
  fill();
  return [
    el("div", { class: "controls" }, el("label", { class: "field wide" }, el("span", {}, searchLabel), search), said),
    el(
      "div",
      { class: "scroll tall", tabindex: "0", role: "region", "aria-label": label },
      el("table", {}, el("caption", {}, label), el("thead", {}, el("tr", {}, heads)), body),
    ),
    more,
  ];
}

function drawWorst() {
  const among = matching({ growth: MAIN_GROWTH });
  const rows = TENSORS.map(({ index, name, change, at }) => {
    const all = (key) => among.map((a) => a[key][index]).filter(known);
    const steps = all("change")
      .map(Math.abs)
      .sort((a, b) => a - b);
    return {
      index,
      name,
      change,
      at,
      median: steps[Math.floor(steps.length / 2)] ?? null,
      doublings: Math.max(...all("doublings")),
      empty: Math.max(...all("empty")),
      clipped: Math.max(...all("clipped")),
      js: Math.max(...all("js")),
      amax: DATA.histograms[index].amax,
      off: DATA.off?.[index] ?? null,
    };
  });
  const high = (name, key, text) => ({ name, value: (row) => row[key], text: (row) => text(row[key]) });
  const columns = [
    {
      name: "tensor",
      value: (row) => row.name.toLowerCase(),
      cell: (row) => [
        el("a", { href: viewAddress({ ...pick(row.at), tensor: row.index }) }, nameOf(row.name, 56)),
        mark(row.index),
      ],
    },
    { name: "worst change", value: (row) => Math.abs(row.change), text: (row) => percent(row.change, true) },
    {
      name: "with batches of",
      value: (row) => row.at.batch_size,
      text: (row) => arrangementName(row.at, false).replace("batches of ", ""),
    },
    high("median", "median", percent),
    high("doublings", "doublings", (v) => number(v, 3)),
    high("empty bins", "empty", percent),
    high("clipped", "clipped", percent),
    high("JS dist.", "js", (v) => number(v, 3)),
    high("max |x|", "amax", number),
    ...(DATA.off ? [high("replay off", "off", percent)] : []),
  ];
  section(
    "worst",
    "Worst tensors",
    `Growth rule ${MAIN_GROWTH}; doublings, empty bins, clipped mass and distance are each tensor's largest. A name opens the tensor where it moves most.`,
    ...sortable({
      id: "worst",
      label: "Tensors by how far their thresholds move",
      columns,
      rows,
      words: (row) => row.name,
      by: 1,
      searchLabel: "Search tensors",
    }),
    el("p", { class: "lead" }, trustworthy()),
  );
}

/** How far the replay behind these numbers can be trusted. */
function trustworthy() {
  if (DATA.exact)
    return "Every histogram was counted on its own limit by a second pass: the numbers are those of separate calibrations.";
  if (!DATA.off)
    return "Limits and doublings are exact; thresholds are read off fine histograms and were not checked. Run with --exact to count them.";
  const off = DATA.off.filter((value) => value > APPROXIMATE).length;
  const most = percent(Math.max(...DATA.off, 0));
  const found = off
    ? `${plural(off, "tensor")} of ${DATA.tensors.length} ${off === 1 ? "is" : "are"} more than 1% off, ${most} at most: there the thresholds are approximate, run with --exact`
    : `no tensor is more than 1% off, ${most} at most`;
  return `Limits and doublings are exact; thresholds are read off fine histograms. Checked against the pass's own batches, ${found}.`;
}

function drawTrials() {
  const rows = DATA.trials.map((trial) => ({
    ...trial,
    ...pick(DATA.arrangements[trial.arrangement]),
    fell_back: DATA.arrangements[trial.arrangement].fell_back.filter(Boolean).length,
  }));
  const column = (name, key, text = String) => ({
    name,
    value: (row) => row[key],
    text: (row) => (known(row[key]) || typeof row[key] === "string" ? text(row[key]) : NOT_MEASURED),
  });
  const scored = METRICS.filter(({ zero }) => !zero).map((metric) => ({
    name: metric.label,
    value: (row) => row[metric.key],
    text: (row) =>
      known(row[metric.key])
        ? metric.format(row[metric.key]) +
          (known(row[`${metric.key}_low`])
            ? ` (${metric.format(row[`${metric.key}_low`])} to ${metric.format(row[`${metric.key}_high`])})`
            : "")
        : NOT_MEASURED,
  }));
  const remarks = (row) =>
    [
      row.error && short(row.error, 300),
      row.unusable && `unusable: ${short(row.unusable, 300)}`,
      row.dropped && `judged on ${plural(row.judged_samples || 0, "sample")}: ${short(row.dropped, 300)}`,
      row.judged_as && `judged as ${short(row.judged_as, 100)}`,
      row.approximate && "approximate",
      row.fell_back && `rule undefined for ${plural(row.fell_back, "tensor")}, doubled instead`,
    ]
      .filter(Boolean)
      .join("; ");
  const columns = [
    column("method", "method"),
    column("batch size", "batch_size"),
    column("order", "order"),
    column("seed", "seed"),
    column("growth", "growth"),
    ...scored,
    column("median change", "amax_change_median", percent),
    column("worst change", "amax_change_max", percent),
    column("doublings, most", "doublings_max", (v) => number(v, 3)),
    { name: "remarks", value: remarks, text: remarks },
  ];
  const host = el("details", {}, el("summary", {}, `All ${plural(rows.length, "trial")}`));
  const words = (row) => `${row.method} ${row.batch_size} ${row.order} ${row.growth} ${remarks(row)}`;
  host.addEventListener(
    "toggle",
    () =>
      host.append(
        ...sortable({ id: "trials", label: "All trials", columns, rows, words, by: 5, searchLabel: "Search trials" }),
      ),
    { once: true },
  );
  section("trials", "Trials", "The same numbers lie beside this page in trials.csv.", host);
  const bad = rows.filter((row) => row.error || row.unusable);
  if (bad.length) host.open = true;
}
