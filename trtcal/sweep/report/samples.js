// The samples: which of them set ranges, and how many are enough.

function drawSamples() {
  const { outliers } = DATA.recommendation;
  const cards = outliers.map(({ sample, tensor, factor, tensors }) => {
    const index = DATA.tensors.indexOf(tensor);
    const target = index < 0 ? nameOf(tensor, 48) : el("a", { href: `#tensor=${index}` }, nameOf(tensor, 48));
    const picture = DATA.thumbnails[sample];
    return el(
      "li",
      { class: "card" },
      picture ? el("img", { src: picture, alt: `The sample as the network sees it` }) : null,
      el("p", { class: "factor" }, `${number(factor, 3)}×`),
      el(
        "p",
        {},
        "Drop ",
        el("b", {}, nameOf(sample, 48)),
        " and the range of ",
        target,
        ` shrinks ${number(factor, 3)}×.`,
      ),
      el("small", {}, `It alone sets the range of ${plural(tensors, "tensor")}.`),
    );
  });
  section(
    "samples",
    "Samples that set ranges",
    "A sample whose largest value is 1.5 times that of every other or more. Look whether it belongs in the calibration set.",
    cards.length
      ? el("ul", { class: "cards" }, cards)
      : el(
          "p",
          { class: "empty" },
          `None of the ${plural(DATA.sample_count, "sample")} stands out: no range hangs on a single one.`,
        ),
  );
}

function drawDrift() {
  const methods = Object.keys(DATA.drift);
  const xs = methods.length
    ? unique(methods.flatMap((method) => DATA.drift[method].samples)).sort((a, b) => a - b)
    : [];
  if (xs.length < 2) return document.getElementById("drift").remove();
  let key = "change_median";
  const host = el("div", {});
  const redraw = drawn(host, (width) => {
    const series = methods.map((method, i) => ({
      name: method,
      colour: i % 6,
      shape: i % 6,
      points: DATA.drift[method].samples.map((samples, at) => {
        const y = DATA.drift[method][key][at];
        return { x: samples, y, tip: `${method}, ${samples} samples: ${percent(y)}` };
      }),
    }));
    return lineChart({
      width,
      height: 280,
      series,
      xs,
      dodge: 4,
      range: extent(
        series.flatMap((s) => s.points.map((p) => p.y)),
        true,
      ),
      format: percent,
      xTitle: "samples",
      yTitle: "distance to the thresholds of all samples",
      label: "Distance of thresholds to those of all samples, against the number of samples",
    });
  });
  section(
    "drift",
    "How many samples are enough",
    "How far the thresholds of the first so many samples, batch-invariant, are from those of all. A curve that has come to rest needs no more samples.",
    el(
      "div",
      { class: "controls" },
      select(
        "Of all tensors",
        [
          ["change_median", "the median"],
          ["change_max", "the worst"],
        ],
        key,
        (value) => {
          key = value;
          redraw();
        },
      ),
      el(
        "p",
        { class: "legend" },
        methods.map((method, i) =>
          el(
            "span",
            { class: `c${i % 6}` },
            svg(
              "svg",
              { viewBox: "-7 -7 14 14", class: "key", "aria-hidden": "true" },
              svg("path", { class: "marker", d: SHAPES[i % 6] }),
            ),
            method,
          ),
        ),
      ),
    ),
    host,
  );
  redraw();
}
