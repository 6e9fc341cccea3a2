// Layers side by side: the time of each piece of the model on each backend.
function startLayers(data) {
  const panel = document.getElementById("side");
  if (!panel || !data.layers.length) return;
  const box = document.getElementById("side-chart");
  const choice = document.getElementById("side-choice");
  choices(choice, data.layers.map((each, index) => [String(index), each.title]));
  const again = () => {
    const chosen = data.layers[Number(choice.value)];
    document.getElementById("side-about").textContent =
      "In the order of the model. A bar that is missing: that backend has no such layer of its own, or did not time it."
      + (chosen.left_out ? ` ${chosen.left_out} faster ones are left out: see the table.` : "");
    draw(box, sideSpec(box, chosen));
  };
  panel.hidden = false;
  choice.addEventListener("change", again);
  onWidth(box, again);
  again();
}

function sideSpec(box, chosen) {
  const small = narrow(box);
  const names = distinct(chosen.pieces.map((piece) => piece.nodes));
  const values = chosen.pieces.flatMap((piece, place) => piece.times.map((time, which) => ({
    name: names[place], head: chosen.heads[which], time,
    tip: { title: piece.nodes, lines: [[chosen.heads[which], `${milliseconds(time)} ms`]] },
  }))).filter((value) => value.time !== null);
  const bar = chosen.heads.length > 4 ? 6 : 9;
  return {
    $schema: LITE, description: `Time of each piece of the model, ${chosen.title}: ${chosen.heads.join(", ")}.`,
    width: Math.max(240, box.clientWidth), height: 90 + (bar * chosen.heads.length + 8) * names.length, autosize: { type: "fit", contains: "padding" },
    data: { values }, mark: { type: "bar", cornerRadiusEnd: 2, aria: false },
    encoding: {
      y: { field: "name", type: "ordinal", sort: null, scale: { paddingInner: 0.35 }, axis: axisOf(null, { labelLimit: small ? 130 : 320, grid: false }) },
      yOffset: { field: "head", type: "nominal", sort: chosen.heads },
      x: { field: "time", type: "quantitative", axis: axisOf("median, ms", { tickCount: small ? 4 : 8, orient: "top" }) },
      fill: { field: "head", type: "nominal", sort: chosen.heads, scale: { domain: chosen.heads, range: chosen.heads.map((_, index) => colour(index)) }, legend: { title: null, orient: "top", columns: small ? 1 : 4, labelLimit: 300, symbolType: "square" } },
      tooltip: { field: "tip" },
    },
  };
}
