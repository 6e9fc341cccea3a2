// Latency sample by sample: a row a target for all that is shown, and one target closely.
const ROWS = 40;

function startLatency(data) {
  const whole = document.getElementById("latency");
  if (!whole) return { filter: () => {}, show: () => {} };
  // an emulated board's times mean nothing: none is drawn
  const sampled = data.results.filter((result) => result.box && !result.emulated);
  if (!sampled.length) return { filter: () => {}, show: () => {} };
  const boxes = document.getElementById("boxes");
  const group = document.getElementById("boxes-group");
  const known = new Set(sampled.map((result) => result.index));
  const groups = data.groups.filter((each) => each.results.some((index) => known.has(index)));
  const choice = document.getElementById("one-choice");
  const results = new Map(sampled.map((result) => [String(result.index), result]));
  let shown = null;

  const drawBoxes = () => {
    const of = new Set(groups[Number(group.value)].results); // one board, one clock: never unlike ones
    const all = sampled.filter((result) => of.has(result.index) && (shown === null || shown.has(result.index)));
    all.sort((a, b) => a.box[2] - b.box[2]);
    const kept = all.slice(0, ROWS);
    document.getElementById("boxes-about").textContent =
      "Line: 5th to 95th percentile. Bar: the middle half. Stroke: the median."
      + (all.length > ROWS ? ` The first ${ROWS} of ${all.length}: filter the results to see others.` : "");
    if (!kept.length) {
      boxes.replaceChildren();
      return;
    }
    draw(boxes, boxesSpec(boxes, kept), { onClick: (datum) => datum.index !== undefined && show(datum.index) });
  };
  const drawOne = () => {
    const result = results.get(choice.value);
    drawHistogram(result);
    drawOrder(result);
  };
  const show = (index) => {
    if (!results.has(String(index))) return;
    choice.value = String(index);
    drawOne();
  };
  choices(group, groups.map((each, index) => [String(index), each.title]));
  group.addEventListener("change", drawBoxes);
  choices(choice, sampled.map((result) => [String(result.index), result.name]));
  choice.closest("label").hidden = false;
  choice.addEventListener("change", drawOne);
  for (const [box, again] of [[boxes, drawBoxes], [document.getElementById("histogram"), drawOne]]) onWidth(box, again);
  drawBoxes();
  drawOne();
  let waiting = 0;
  return {
    show,
    filter(indices) {
      shown = indices;
      clearTimeout(waiting); // while somebody types, the table answers first
      waiting = setTimeout(drawBoxes, 250);
    },
  };
}

function boxesSpec(box, kept) {
  const small = narrow(box);
  const names = distinct(kept.map((result) => result.label));
  const values = kept.map((result, place) => ({
    index: result.index, name: names[place],
    p5: result.box[0], p25: result.box[1], p50: result.box[2], p75: result.box[3], p95: result.box[4],
    fill: colour(result.colour),
    tip: { title: result.name, lines: ["5th percentile", "25th", "median", "75th", "95th"].map((name, i) => [name, milliseconds(result.box[i])]) },
  }));
  const ends = [Math.min(...values.map((v) => v.p5)), Math.max(...values.map((v) => v.p95))];
  const log = ends[0] > 0 && ends[1] / ends[0] > 12;
  const x = (field) => ({ field, type: "quantitative", scale: { type: log ? "log" : "linear", ...(log ? {} : { zero: false }), domain: ends, nice: !log }, axis: axisOf(`latency, ms${log ? " (logarithmic)" : ""}`, { labelOverlap: true, tickCount: small ? 4 : 8 }) });
  const y = { field: "name", type: "ordinal", sort: null, axis: axisOf(null, { labelLimit: small ? 120 : 300, grid: false }) };
  const common = { tooltip: { field: "tip" }, stroke: { field: "fill", type: "nominal", scale: null, legend: null } };
  return {
    $schema: LITE, description: `Latency of ${kept.length} targets: percentiles, a row a target.`,
    width: Math.max(240, box.clientWidth), height: 60 + 26 * kept.length, autosize: { type: "fit", contains: "padding" },
    data: { values }, encoding: { y },
    layer: [
      { mark: { type: "rule", strokeWidth: 1.5, aria: false }, encoding: { x: x("p5"), x2: { field: "p95" }, ...common } },
      { mark: { type: "bar", height: 12, fillOpacity: 0.35, strokeWidth: 1, cornerRadius: 2, aria: false }, encoding: { x: x("p25"), x2: { field: "p75" }, fill: { field: "fill", type: "nominal", scale: null, legend: null }, ...common } },
      { mark: { type: "tick", thickness: 2.5, height: 16, aria: false }, encoding: { x: x("p50"), ...common, fill: { field: "fill", type: "nominal", scale: null, legend: null } } },
    ],
  };
}

function drawHistogram(result) {
  const box = document.getElementById("histogram");
  const { from, step, counts, beyond } = result.histogram;
  const values = counts.map((count, bin) => ({ low: from + bin * step, high: from + (bin + 1) * step, count,
    tip: { title: `${milliseconds(from + bin * step)} to ${milliseconds(from + (bin + 1) * step)} ms`, lines: [["samples", String(count)]] } }));
  document.getElementById("histogram-about").textContent =
    `${beyond ? `${beyond} samples took longer than is shown. ` : ""}The dashed line is the median.`;
  draw(box, {
    $schema: LITE, description: `How often which latency: ${result.name}.`,
    width: Math.max(200, box.clientWidth), height: 220, autosize: { type: "fit", contains: "padding" },
    layer: [
      { data: { values }, mark: { type: "bar", fill: colour(result.colour), binSpacing: 1, aria: false }, encoding: {
        x: { field: "low", type: "quantitative", bin: "binned", scale: { zero: false, nice: false }, axis: axisOf("latency, ms", { grid: false, labelOverlap: true, tickCount: 5, format: "~g" }) }, x2: { field: "high" },
        y: { field: "count", type: "quantitative", axis: axisOf("samples", { tickCount: 4 }) }, tooltip: { field: "tip" } } },
      { data: { values: [{ at: result.box[2] }] }, mark: { type: "rule", stroke: "var(--text)", strokeDash: [4, 3], strokeWidth: 1.5, aria: false }, encoding: { x: { field: "at", type: "quantitative" } } },
    ],
  });
}

// Over time: the run without pause, with its temperature; else the samples in their order.
function drawOrder(result) {
  const box = document.getElementById("order");
  const about = document.getElementById("order-about");
  const long = result.sustained;
  document.getElementById("order-title").textContent = long ? "Without pause" : "In the order in which they ran";
  about.textContent = long ? `${long.text} Line: median of each window; band: up to its 90th percentile; dashes: the hottest zone.`
    : "Line: median of neighbouring runs; band: 10th to 90th percentile. A step or a slope is drift.";
  const hue = colour(result.colour);
  const values = long
    ? long.points.map(([at, p50, high, heat]) => ({ at, p50, low: p50, high, heat, tip: { title: `${figure(at)} s`, lines: [["median", milliseconds(p50)], ["p90", milliseconds(high)], ...(heat === null ? [] : [["temperature", `${figure(heat)} °C`]])] } }))
    : result.order.map(([low, p50, high], place) => ({ at: (100 * (place + 0.5)) / result.order.length, low, p50, high, tip: { title: `at ${figure((100 * (place + 0.5)) / result.order.length)} % of the runs`, lines: [["10th percentile", milliseconds(low)], ["median", milliseconds(p50)], ["90th", milliseconds(high)]] } }));
  const heated = values.some((value) => value.heat !== null && value.heat !== undefined);
  // single slow runs must not flatten the line that is looked for
  const tops = values.map((value) => value.high).sort((a, b) => a - b);
  const top = Math.max(...values.map((value) => value.p50), tops[Math.floor(0.9 * (tops.length - 1))]);
  const x = { field: "at", type: "quantitative", scale: { nice: false, zero: false }, axis: axisOf(long ? "time, s" : "share of the runs, %", { grid: false, tickCount: 5 }) };
  const y = (field, zero) => ({ field, type: "quantitative", scale: { zero, domainMax: top }, axis: axisOf("latency, ms", { tickCount: 4 }) });
  const latency = { layer: [
    { mark: { type: "area", clip: true, fill: hue, opacity: 0.2, aria: false }, encoding: { x, y: y("low", false), y2: { field: "high" } } },
    { mark: { type: "line", clip: true, stroke: hue, strokeWidth: 1.8, aria: false }, encoding: { x, y: y("p50", false) } },
    { mark: { type: "rule", opacity: 0, strokeWidth: 6, stroke: "var(--text)", aria: false }, encoding: { x, tooltip: { field: "tip" } } },
  ] };
  const layers = [latency];
  if (heated) layers.push({ mark: { type: "line", stroke: "var(--s1)", strokeDash: [5, 4], strokeWidth: 1.8, aria: false }, encoding: { x, y: { field: "heat", type: "quantitative", scale: { zero: false }, axis: axisOf("temperature, °C", { grid: false, orient: "right", tickCount: 4 }) } } });
  if (long && long.throttled !== null) layers.push({ data: { values: [{ at: long.throttled }] }, mark: { type: "rule", stroke: "var(--bad)", strokeDash: [2, 3], strokeWidth: 2, aria: false }, encoding: { x } });
  draw(box, {
    $schema: LITE, description: `Latency over time: ${result.name}.`, data: { values },
    width: Math.max(200, box.clientWidth), height: 220, autosize: { type: "fit", contains: "padding" },
    layer: layers, resolve: { scale: { y: heated ? "independent" : "shared" } },
  });
}
