// The first screen: what to do, and whether to believe it.

function tile(label, value, note, kind = "") {
  return el(
    "div",
    { class: `tile ${kind}` },
    el("h3", {}, label),
    el("p", { class: "value" }, value),
    el("p", {}, note),
  );
}

/** What never clips must not depend on batches; where it does, nothing on the page can be trusted. */
function control() {
  const { control_flat: flat } = DATA.recommendation;
  if (flat === false) return { value: "BROKEN", note: "it must be the same everywhere and is not", kind: "bad" };
  if (!CONTROLS.length) return { value: "not run", note: `add ${DATA.control} to the methods`, kind: "" };
  if (flat === null || DATA.partial === "drop") return { value: "not checked", note: "dropping samples changes what it sees", kind: "" };
  return { value: "flat", note: `${short(CONTROLS.join(", "), 40)} is the same everywhere`, kind: "good" };
}

function banners() {
  const found = [];
  if (DATA.recommendation.control_flat === false)
    found.push(
      el(
        "p",
        { class: "banner bad", role: "alert" },
        el("strong", {}, "The control failed. "),
        `${short(CONTROLS.join(", "), 80) || "The control"} cannot depend on batch size or order, and yet it does. Trust nothing on this page.`,
      ),
    );
  const failed = DATA.trials.filter((trial) => trial.error).length;
  if (failed)
    found.push(
      el(
        "p",
        { class: "banner warn" },
        `${failed} of ${plural(DATA.trials.length, "trial")} failed; `,
        el("a", { href: "#trials" }, "the table of trials"),
        " says why.",
      ),
    );
  const unusable = DATA.trials.filter((trial) => trial.unusable);
  if (unusable.length)
    found.push(
      el(
        "p",
        { class: "banner bad", role: "alert" },
        el("strong", {}, "Unusable thresholds. "),
        `In ${unusable.length} of ${plural(DATA.trials.length, "trial")}, of ${short(unique(unusable.map((t) => t.method)).join(", "), 80)}: ${short(unusable[0].unusable, 200)}; `,
        el("a", { href: "#trials" }, "the table of trials"),
        " marks all.",
      ),
    );
  return found;
}

function scoreTile() {
  const metric = METRICS.find((one) => one.interval);
  if (!metric) return null;
  const values = DATA.trials
    .filter((t) => t.method === STUDIED && DATA.arrangements[t.arrangement].growth === MAIN_GROWTH)
    .map((t) => t[metric.key])
    .filter(known);
  if (!values.length) return null;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const note = low === high ? "in every arrangement" : "worst and best arrangement";
  return tile(
    `${metric.label}, ${short(STUDIED, 40)}`,
    low === high ? metric.format(low) : `${metric.format(low).replace("%", "")}–${metric.format(high)}`,
    note,
  );
}

/** The command that the headline leads to; an older file has its options alone. */
function next(command, options) {
  if (command) return [el("p", { class: "next" }, "Next: ", el("code", {}, visible(command)))];
  if (!options?.length) return [];
  const line = `trtcal calibrate ${short(DATA.model, 80)} --data … ${options.join(" ")} -o model.cache`;
  return [el("p", { class: "next" }, "Next, with the other options for data as they were: ", el("code", {}, line))];
}

function drawFindings() {
  const { headline, batch_size: size, order_matters: order, evidence, options, command, method, decided_by: decided } = DATA.recommendation;
  const arm = control();
  const worst = TENSORS[0];
  const verdict = [
    method && tile("Method", short(method, 40), decided ? `decided by ${short(decided, 40)}` : "by its thresholds alone"),
    tile(
      `Batch size for ${short(STUDIED, 40)}`,
      size === null ? "none" : String(size),
      size === null ? "no size is steady" : "smallest that cannot be told from the best",
    ),
    tile(
      "Order of samples",
      order === null ? "not varied" : order ? "matters" : "does not matter",
      order === null ? "add orders to the sweep" : order ? "fix it, and say so" : "as far as can be measured",
    ),
    worst && tile("Thresholds move by up to", percent(Math.abs(worst.change)), "against the batch-invariant answer"),
    scoreTile(),
    tile("Control arm", arm.value, arm.note, arm.kind),
  ];
  document.getElementById("findings").replaceChildren(
    ...banners(),
    el(
      "p",
      { class: "about" },
      nameOf(DATA.model, 80),
      ` on ${short(DATA.data, 120)}; `,
      `${plural(DATA.tensors.length, "tensor")}, ${plural(DATA.trials.length, "trial")}`,
    ),
    el("h1", {}, short(headline, 600)),
    ...next(command, options),
    el("div", { class: "tiles" }, verdict),
    el(
      "ul",
      { class: "evidence" },
      evidence.map((sentence) => el("li", {}, short(sentence, 900))),
    ),
    ...(DATA.notes.length
      ? [
          el(
            "ul",
            { class: "notes" },
            DATA.notes.map((note) => el("li", {}, short(note, 600))),
          ),
        ]
      : []),
  );
}
