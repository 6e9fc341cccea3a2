// The picture: a cost against a worth, for the results of one board that one clock timed.
//
// Fronts come with the page's data, made by the same function as the record's; nothing is ranked here.
function startPareto(data, onPick) {
  const panel = document.getElementById("pareto");
  if (!panel || !data.groups.length) return { filter: () => {} };
  const groups = data.groups.filter((group) => Object.keys(group.fronts).length);
  if (!groups.length) return { filter: () => {} };
  const box = document.getElementById("pareto-chart");
  const control = (name) => panel.querySelector(`[data-control="${name}"] select`);
  const [group, cost, worth] = ["group", "cost", "worth"].map(control);
  const log = panel.querySelector('[data-control="log"]');
  const results = new Map(data.results.map((result) => [result.index, result]));
  let shown = null;
  let view = null;

  const now = () => {
    const chosen = groups[Number(group.value)];
    const front = new Set(chosen.fronts[`${cost.value}|${worth.value}`] ?? []);
    const points = chosen.results.map((index) => results.get(index)).filter((result) =>
      result.values[cost.value] !== null && result.values[worth.value] !== null
      && (!log.checked || result.values[cost.value] > 0));
    return { chosen, front, points };
  };
  const rows = ({ front, points }) => points.map((result) => {
    const interval = cost.value === "latency" ? { low: result.ci95[0], high: result.ci95[1] } : { low: null, high: null };
    const far = shown !== null && !shown.has(result.index);
    return {
      index: result.index, x: result.values[cost.value], y: result.values[worth.value], ...interval,
      fill: result.clean ? colour(result.colour) : "var(--card)", stroke: colour(result.colour),
      shape: result.shape === "triangle" ? "triangle-up" : result.shape,
      opacity: far ? 0.12 : 1, front: front.has(result.index),
      label: front.has(result.index) && !far ? result.label : "",
      tip: {
        title: result.name,
        lines: [
          [title(data.costs, cost.value), cost.value === "latency" ? milliseconds(result.values.latency) : figure(result.values[cost.value])],
          [title(data.worths, worth.value), figure(result.values[worth.value])],
          ...(cost.value === "latency" ? [["95 %", result.ci95.map(milliseconds).join(" to ")]] : []),
          ...(front.has(result.index) ? [["Pareto front", "yes"]] : []),
          ...(result.clean ? [] : [["not clean", "disturbed"]]),
        ],
      },
    };
  });

  const again = async () => {
    const state = now();
    const made = rows(state);
    const spec = paretoSpec(box, made, {
      cost: title(data.costs, cost.value), worth: title(data.worths, worth.value),
      better: data.worths[worth.value].better, log: log.checked,
      place: state.chosen.title, fronts: state.front.size,
    });
    document.getElementById("pareto-title").textContent =
      `${capital(plain(data.costs[cost.value].title))} and ${plain(data.worths[worth.value].title)} on ${state.chosen.title}`;
    box.dataset.front = JSON.stringify([...state.front]);
    view = await draw(box, spec, { onClick: (datum) => datum.index !== undefined && onPick(datum.index) });
  };
  const fillWorths = () => {
    const kept = worth.value;
    const keys = Object.keys(data.worths).filter((key) => key !== cost.value
      && groups[Number(group.value)].results.some((index) => results.get(index).values[key] !== null));
    choices(worth, keys.map((key) => [key, data.worths[key].title]));
    if (keys.includes(kept)) worth.value = kept;
  };
  const fillCosts = () => {
    const kept = cost.value;
    const keys = groups[Number(group.value)].costs;
    choices(cost, keys.map((key) => [key, data.costs[key].title]));
    if (keys.includes(kept)) cost.value = kept;
    fillWorths();
  };
  choices(group, groups.map((each, index) => [String(index), each.title]));
  fillCosts();
  group.addEventListener("change", () => { fillCosts(); again(); });
  cost.addEventListener("change", () => { fillWorths(); again(); });
  worth.addEventListener("change", again);
  log.addEventListener("change", again);
  onWidth(box, again);
  again();
  return {
    filter(indices) {
      shown = indices;
      if (view) view.data("points", rows(now())).run();
    },
  };
}

const title = (axes, name) => axes[name].title;
const plain = (text) => text.replace(/, (ms|mJ|kB|MB)$/, "");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function paretoSpec(box, points, told) {
  const small = narrow(box);
  const size = { size: { signal: small ? "90" : "110" } };
  const at = { x: { scale: "x", field: "x" }, y: { scale: "y", field: "y" } };
  const grid = { gridDash: [1, 0], ticks: false, domain: false, labelPadding: 6 };
  return {
    $schema: "https://vega.github.io/schema/vega/v6.json",
    description: `${points.length} results on ${told.place}: ${told.cost} against ${told.worth}; ${told.fronts} on the Pareto front. The table below has all figures.`,
    width: Math.max(240, box.clientWidth), height: small ? 300 : 400,
    autosize: { type: "fit", contains: "padding" }, padding: { left: 2, right: 14, top: 8, bottom: 2 },
    data: [
      { name: "points", values: points },
      { name: "line", source: "points", transform: [{ type: "filter", expr: "datum.front" }, { type: "collect", sort: { field: ["x", "y"] } }] },
    ],
    scales: [
      { name: "x", type: told.log ? "log" : "linear", domain: { data: "points", fields: ["x", "low", "high"].slice(0, points.some((p) => p.low !== null) ? 3 : 1) }, range: "width", nice: true, zero: false, padding: 24 },
      { name: "y", domain: { data: "points", field: "y" }, range: "height", nice: true, zero: false, padding: 24 },
    ],
    axes: [
      { orient: "bottom", scale: "x", grid: true, title: `${told.cost} (less is better)`, tickCount: small ? 4 : 8, labelOverlap: true, titleLimit: box.clientWidth - 80, ...grid },
      { orient: "left", scale: "y", grid: true, title: `${told.worth} (${told.better === "higher" ? "more" : "less"} is better)`, tickCount: 6, titleLimit: small ? 230 : 320, ...grid },
    ],
    marks: [
      { type: "rule", aria: false, from: { data: "points" }, encode: { update: { x: { scale: "x", field: "low" }, x2: { scale: "x", field: "high" }, y: { scale: "y", field: "y" }, stroke: { field: "stroke" }, strokeWidth: { value: 1.5 }, opacity: { signal: "datum.low === null ? 0 : 0.45 * datum.opacity" } } } },
      { type: "line", name: "frontline", aria: false, from: { data: "line" }, encode: { update: { ...at, interpolate: { value: "linear" }, stroke: { value: "var(--text)" }, strokeWidth: { value: 1.4 }, strokeDash: { value: [5, 4] } } } },
      { type: "symbol", name: "dots", aria: false, from: { data: "points" }, encode: { update: { ...at, ...size, shape: { field: "shape" }, fill: { field: "fill" }, stroke: { field: "stroke" }, strokeWidth: { value: 2 }, opacity: { field: "opacity" }, tooltip: { field: "tip" }, cursor: { value: "pointer" } }, hover: { strokeWidth: { value: 4 } } } },
      { type: "text", aria: false, from: { data: "dots" }, interactive: false, encode: { update: { text: { field: "datum.label" }, limit: { value: small ? 150 : 320 }, fill: { value: "var(--text)" }, fontSize: { value: small ? 11 : 12 }, font: { value: FONT }, fontWeight: { value: 600 } } },
        transform: [{ type: "label", size: { signal: "[width, height]" }, avoidMarks: told.fronts > 1 ? ["dots", "frontline"] : ["dots"], anchor: ["right", "top", "left", "bottom", "top-right", "bottom-right", "top-left", "bottom-left"], offset: [6], padding: 4 }] },
    ],
  };
}
