// What the sweep was made of; then everything is drawn.

function drawProvenance() {
  const rows = [
    ["model", DATA.model],
    ["data", DATA.data],
    ...Object.entries(DATA.provenance),
    ["histograms", DATA.exact ? "counted exactly, by a second pass" : "replayed from one pass"],
    ["last batch", DATA.partial],
    ["batch sizes", SIZES.join(", ")],
    ["orders", ORDERS.join(", ")],
    ["growth rules", GROWTHS.join(", ")],
    ["methods", METHODS.join(", ")],
  ];
  section(
    "provenance",
    "Provenance",
    "",
    el(
      "dl",
      { class: "provenance" },
      rows.map(([name, value]) => {
        const text = typeof value === "string" ? value : JSON.stringify(value);
        return el("div", {}, el("dt", {}, short(name, 60)), el("dd", {}, short(text, 1000)));
      }),
    ),
  );
}

drawFindings();
drawScores();
drawHeatmap();
setUpExplorer();
drawWorst();
drawSamples();
drawDrift();
drawSensitivity();
drawTrials();
drawProvenance();
document.documentElement.dataset.ready = "";
