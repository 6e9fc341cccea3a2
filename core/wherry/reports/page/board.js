// The board over the run: one of its sensors over time.
function startBoards(data) {
  for (const panel of document.querySelectorAll(".board")) {
    const device = data.board_order[Number(panel.dataset.board)];
    if (!Object.hasOwn(data.boards, device)) continue;
    const curves = data.boards[device];
    panel.hidden = false;
    const box = panel.querySelector(".chart");
    const choice = panel.querySelector("select");
    const all = Object.keys(curves).sort((a, b) => rank(a, curves) - rank(b, curves));
    choices(choice, all.map((name) => [name, name]));
    const again = () => draw(box, sensorSpec(box, choice.value, curves[choice.value]));
    choice.addEventListener("change", again);
    onWidth(box, again);
    again();
  }
}

// Temperatures first, then throttling, clocks, power, load; what never moved comes last.
function rank(name, curves) {
  const kinds = ["temperature", "throttle", "frequency", "power", "load"];
  const kind = kinds.findIndex((each) => name.startsWith(each));
  const moved = curves[name].some((point) => point[1] !== curves[name][0][1]);
  return (moved ? 0 : 100) + (kind < 0 ? kinds.length : kind);
}

function sensorSpec(box, name, points) {
  const values = points.map(([at, value]) => ({ at, value, tip: { title: `${figure(at)} s`, lines: [[name, figure(value)]] } }));
  const x = { field: "at", type: "quantitative", axis: axisOf("seconds since the first reading", { grid: false, tickCount: 6 }) };
  const y = { field: "value", type: "quantitative", scale: { zero: false }, axis: axisOf(null, { tickCount: 4 }) };
  return {
    $schema: LITE, description: `${name} over the run.`, data: { values },
    width: Math.max(240, box.clientWidth), height: 180, autosize: { type: "fit", contains: "padding" },
    encoding: { x, y },
    layer: [
      { mark: { type: "line", stroke: "var(--s0)", strokeWidth: 1.5, interpolate: "step-after", aria: false } },
      { mark: { type: "point", fill: "var(--s0)", stroke: "var(--s0)", size: 14, aria: false }, encoding: { tooltip: { field: "tip" } } },
    ],
  };
}
