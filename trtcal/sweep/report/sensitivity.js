// Which layers cost accuracy: what trtcal sensitivity found, where its report lies beside the sweep.

const decibels = (value) => (known(value) ? `${number(value, 3)} dB` : value ? `${value} dB` : NOT_MEASURED);
const sortableDecibels = (value) => (typeof value === "string" ? Number(value.replace("inf", "Infinity")) : value);

function drawSensitivity() {
  const found = DATA.sensitivity;
  if (!found) {
    document.getElementById("sensitivity").remove();
    document.querySelector('nav a[href="#sensitivity"]').remove();
    return;
  }
  const trial = (one) =>
    found.metric === null ? decibels(one.sqnr_db) : `${number(one.metric)}, ${decibels(one.sqnr_db)}`;
  const judged = found.metric === null ? "the outputs' SQNR to FP32" : short(found.metric, 80);
  const fp32 = known(found.fp32) ? `, FP32 ${number(found.fp32)}` : "";
  section(
    "sensitivity",
    "Which layers cost accuracy",
    `Measured on ${plural(found.samples, "sample")} by ${judged}; all of INT8: ${trial(found.int8)}${fp32}.`,
    el("h3", {}, "Layers to leave out of INT8, one after the other"),
    ...curve(found, trial),
    ...spellings(found.options),
    el("h3", {}, "Layers, one at a time"),
    ...layerTable(found, trial),
    el("h3", {}, "Tensors by the SQNR of their own rounding"),
    ...tensorTable(found),
  );
}

/** The steps of the list as a curve and in words, and why it ends. */
function curve({ curve: steps, ended }, trial) {
  const host = el("div", {});
  const points = steps.map((step, i) => ({
    x: i + 1,
    y: step.recovered,
    tip: `${short(step.layer, 80)}: ${percent(step.recovered)} recovered`,
  }));
  const again = drawn(host, (width) =>
    lineChart({
      width,
      height: 240,
      series: [{ name: "recovered", colour: 0, shape: 0, points }],
      xs: points.map((point) => point.x),
      range: extent(
        points.map((point) => point.y),
        true,
      ),
      format: percent,
      xTitle: "layers left out",
      yTitle: "share of INT8's loss that is recovered",
      label: "Share of INT8's loss that is recovered, against the number of layers left out",
    }),
  );
  if (points.filter((point) => known(point.y)).length > 1) again();
  const list = steps.map((step) =>
    el("li", {}, nameOf(step.layer), ` – ${percent(step.recovered)} recovered, ${trial(step)}`),
  );
  return [host, el("ol", { class: "steps" }, list), el("p", { class: "lead" }, `The list ends: ${short(ended, 200)}.`)];
}

/** The list of layers as each builder wants it; a character that cannot be seen cannot be copied unseen either. */
function spellings(options) {
  return Object.entries(options).map(([builder, text]) =>
    el(
      "div",
      { class: "spelling" },
      el("small", {}, builder),
      el("pre", { tabindex: "0", role: "region", "aria-label": `Options of ${builder}` }, visible(text)),
      visible(text) === text ? null : el("small", {}, "It holds invisible characters: copy it from sensitivity.json."),
    ),
  );
}

function layerTable({ layers }, trial) {
  const recovered = (row) => row.without?.recovered ?? null;
  return sortable({
    id: "sensitivity-layers",
    label: "Layers by what leaving each one out of INT8 recovers",
    columns: [
      { name: "layer", value: (row) => row.layer.toLowerCase(), cell: (row) => nameOf(row.layer, 56) },
      { name: "op type", value: (row) => row.op_type, text: (row) => short(row.op_type, 30) },
      { name: "recovers", value: recovered, text: (row) => percent(recovered(row)) },
      {
        name: "alone in INT8",
        value: (row) => sortableDecibels(row.only?.sqnr_db ?? null),
        text: (row) => (row.only ? trial(row.only) : NOT_MEASURED),
      },
      {
        name: "estimate from what it reads",
        value: (row) => sortableDecibels(row.estimate_db),
        text: (row) => decibels(row.estimate_db),
      },
    ],
    rows: layers,
    words: (row) => `${row.layer} ${row.op_type}`,
    by: 2,
    searchLabel: "Search layers",
  });
}

function tensorTable({ tensors }) {
  return sortable({
    id: "sensitivity-tensors",
    label: "Tensors by the SQNR of their own rounding",
    columns: [
      { name: "tensor", value: (row) => row.tensor.toLowerCase(), cell: (row) => nameOf(row.tensor, 56) },
      { name: "SQNR", value: (row) => -sortableDecibels(row.sqnr_db), text: (row) => decibels(row.sqnr_db) },
      { name: "amax", value: (row) => row.amax, text: (row) => number(row.amax) },
      { name: "read by", value: (row) => row.layers.length, text: (row) => short(row.layers.join(", "), 60) },
    ],
    rows: tensors,
    words: (row) => row.tensor,
    by: 1,
    searchLabel: "Search tensors",
  });
}
