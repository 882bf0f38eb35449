// Axes, line charts and histograms as SVG; colours come from the style sheet, so that dark and paper follow.

const SHAPES = [
  "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z", // circle
  "M-3.6,-3.6h7.2v7.2h-7.2Z", // square
  "M0,-4.8L4.6,3.6H-4.6Z", // triangle
  "M0,4.8L4.6,-3.6H-4.6Z", // triangle on its tip
  "M0,-5L5,0L0,5L-5,0Z", // diamond
  "M-4.5,-1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3Z", // cross
];

function niceTicks(low, high, about) {
  const rough = (high - low || 1) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

/** Frame of a chart: grid, ticks and titles. `x` and `y` turn values into pixels. */
function frame({ width, height, box, xTicks, yTicks, x, y, xTitle, yTitle, label }) {
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, class: "chart" });
  for (const [value, text] of yTicks) {
    root.append(
      svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick end", x: box.left - 8, y: y(value) + 4 }, text),
    );
  }
  for (const [value, text] of xTicks) {
    root.append(
      svg("line", { class: "axis", x1: x(value), x2: x(value), y1: box.bottom, y2: box.bottom + 4 }),
      svg("text", { class: "tick middle", x: x(value), y: box.bottom + 18 }, text),
    );
  }
  root.append(
    svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    svg("text", { class: "title middle", x: (box.left + box.right) / 2, y: box.bottom + 36 }, xTitle),
    svg("text", { class: "title", x: 2, y: 12 }, yTitle),
  );
  return root;
}

/** Places for labels that want to be at `at`, at least `gap` apart, in the same order. */
function spread(labels, gap, top, bottom) {
  const placed = [...labels].sort((a, b) => a.at - b.at);
  placed.forEach((label, i) => (label.place = Math.max(label.at, i ? placed[i - 1].place + gap : top)));
  for (let i = placed.length - 1, limit = bottom; i >= 0; i--, limit -= gap)
    placed[i].place = Math.min(placed[i].place, limit);
  return placed;
}

/**
 * Lines over a logarithmic x. A series is {name, colour, shape, variant, points: [{x, y, low, high, dots, tip}]};
 * a reference, which no x changes, {name, y, low, high}. `range` fixes y across several charts.
 */
function lineChart({
  width,
  height,
  series,
  references = [],
  range,
  format,
  xs,
  xTitle,
  yTitle,
  label,
  mark,
  dodge = 8,
}) {
  const wide = width >= 700;
  const box = { left: 58, right: width - (references.length ? (wide ? 250 : 16 + 7 * references.length) : 16) };
  Object.assign(box, { top: 26, bottom: height - 46 });
  const [low, high] = range;
  const logs = xs.map(Math.log2);
  const span = Math.max(...logs) - Math.min(...logs);
  const inset = Math.min(44, (box.right - box.left) / 8);
  const x = (value) =>
    span
      ? box.left + inset + ((Math.log2(value) - Math.min(...logs)) / span) * (box.right - box.left - 2 * inset)
      : (box.left + box.right) / 2;
  const y = (value) => box.bottom - ((value - low) / (high - low || 1)) * (box.bottom - box.top);
  const yTicks = niceTicks(low, high, 5).map((value) => [value, format(value)]);
  const root = frame({
    width,
    height,
    box,
    x,
    y,
    yTicks,
    xTicks: xs.map((v) => [v, String(v)]),
    xTitle,
    yTitle,
    label,
  });
  if (known(mark)) root.append(svg("line", { class: "mark", x1: x(mark), x2: x(mark), y1: box.top, y2: box.bottom }));
  drawReferences(root, references, box, y, format, wide);
  series.forEach((one, number) => {
    const shift = (number - (series.length - 1) / 2) * dodge;
    const at = one.points.filter((point) => known(point.y)).map((point) => [x(point.x) + shift, point]);
    const group = svg("g", { class: `series c${one.colour}${one.variant ? " variant" : ""}` });
    group.append(svg("path", { class: "line", d: at.map(([px, p], i) => `${i ? "L" : "M"}${px},${y(p.y)}`).join("") }));
    for (const [px, point] of at) {
      if (known(point.low))
        group.append(svg("path", { class: "whisker", d: `M${px},${y(point.low)}V${y(point.high)}` }));
      for (const dot of point.dots ?? []) group.append(svg("circle", { class: "dot", cx: px, cy: y(dot), r: 1.8 }));
      group.append(
        svg("path", { class: "marker", d: SHAPES[one.shape], transform: `translate(${px} ${y(point.y)})` }),
        svg("circle", { class: "target", cx: px, cy: y(point.y), r: 9, "data-tip": point.tip }),
      );
    }
    root.append(group);
  });
  return root;
}

function drawReferences(root, references, box, y, format, wide) {
  const labels = references.map((one, i) => ({ ...one, at: y(one.y), bar: box.right + 6 + 5 * i }));
  for (const one of spread(labels, 15, box.top, box.bottom)) {
    root.append(svg("line", { class: "reference", x1: box.left, x2: box.right, y1: one.at, y2: one.at }));
    if (known(one.low))
      root.append(svg("path", { class: "whisker soft", d: `M${one.bar},${y(one.low)}V${y(one.high)}` }));
    if (!wide) continue;
    const start = box.right + 10 + 5 * references.length;
    root.append(
      svg("path", { class: "leader", d: `M${one.bar},${one.at}L${start},${one.place}h4` }),
      svg("text", { class: "direct", x: start + 8, y: one.place + 4 }, `${short(one.name, 22)} ${format(one.y)}`),
    );
  }
}

/** Lowest and highest of all values, with air; from 0 where `zero`. */
function extent(values, zero = false) {
  const found = values.filter(known);
  if (zero) found.push(0);
  if (!found.length) return [0, 1];
  const low = Math.min(...found);
  const high = Math.max(...found);
  const air = (high - low || Math.abs(high) || 1) * 0.06;
  return [zero && low === 0 ? 0 : low - air, high + air];
}

/** Counts over [0, limit) read off on `bins` equal bins over [0, to): what lies above falls into the last. */
function rebinned({ counts, limit }, to, bins) {
  const below = new Float64Array(counts.length + 1);
  counts.forEach((value, i) => (below[i + 1] = below[i] + value));
  const total = below[counts.length];
  const upTo = (value) => {
    const place = Math.min((value / limit) * counts.length, counts.length);
    const whole = Math.min(Math.floor(place), counts.length - 1);
    return below[whole] + (place - whole) * counts[whole];
  };
  return Array.from(
    { length: bins },
    (_, i) => (i === bins - 1 ? total : upTo(((i + 1) * to) / bins)) - upTo((i * to) / bins),
  );
}

/** Bins [0, limit) as an area on a logarithmic count, and lines {name, at, kind} across it. */
function histogramChart({ width, height, bins, limit, to, threshold, lines, label }) {
  const inside = lines.filter((line) => known(line.at) && line.at <= to).sort((a, b) => a.at - b.at);
  const outside = lines.filter((line) => known(line.at) && line.at > to);
  const box = { left: 58, right: width - 16 };
  const x = (value) => box.left + (value / to) * (box.right - box.left);
  const lanes = [];
  for (const line of inside) {
    const half = line.name.length * 3.2 + 4;
    line.middle = Math.min(Math.max(x(line.at), box.left + half), box.right - half);
    line.lane = lanes.findIndex((end) => end < line.middle - half);
    if (line.lane < 0) line.lane = lanes.push(0) - 1;
    lanes[line.lane] = line.middle + half;
  }
  Object.assign(box, { top: 30 + 15 * lanes.length, bottom: height - 46 });
  const most = Math.max(Math.ceil(Math.log10(Math.max(...bins, 10))), 1);
  const y = (value) =>
    box.bottom - (Math.log10(Math.max(value, 0.5) * 2) / (most + Math.log10(2))) * (box.bottom - box.top);
  const yTicks = Array.from({ length: most + 1 }, (_, i) => [10 ** i, count(10 ** i)]);
  const root = frame({
    width,
    height,
    box,
    x,
    y,
    yTicks,
    label,
    xTicks: niceTicks(0, to, width > 600 ? 8 : 4).map((value) => [value, number(value)]),
    xTitle: "|x|",
    yTitle: "elements per bin, logarithmic",
  });
  const step = limit / bins.length;
  for (const clipped of [false, true]) {
    let path = "";
    bins.forEach((value, i) => {
      const left = i * step;
      if (value < 0.5 || left >= to || left + step / 2 > threshold !== clipped) return;
      path += `M${x(left)},${box.bottom}V${y(value)}H${x(Math.min(left + step, to))}V${box.bottom}Z`;
    });
    root.append(svg("path", { class: clipped ? "bars clipped" : "bars", d: path }));
  }
  const top = (line) => 26 + 15 * line.lane;
  for (const line of inside)
    root.append(svg("path", { class: `cut ${line.kind}`, d: `M${x(line.at)},${box.bottom}V${top(line) + 4}` }));
  for (const line of inside)
    root.append(svg("text", { class: `cut-label middle ${line.kind}`, x: line.middle, y: top(line) }, line.name));
  if (outside.length)
    root.append(
      svg(
        "text",
        { class: "cut-label end", x: box.right, y: 12 },
        `beyond the right edge: ${outside.map((line) => `${line.name} ${number(line.at)}`).join(", ")} →`,
      ),
    );
  return root;
}
