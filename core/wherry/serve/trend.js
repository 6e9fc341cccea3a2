// A figure of one target over time; the table below says the same.
function startTrend(box, data) {
  const holder = box.querySelector(".chart");
  box.hidden = false;
  const title = data.unit ? `${data.metric.replace(/_ms$|_mj$/, "")}, ${data.unit}` : data.metric;
  const marks = (point) => [point.clean ? "" : "not clean", point.another_model ? "another model" : ""].filter(Boolean).join(", ");
  const points = data.points.filter((point) => point.value !== null).map((point) => ({
    at: point.started, value: point.value, low: point.low, high: point.high, series: point.series,
    fill: point.clean ? colour(point.series) : "var(--card)", run: point.run_id, tag: point.tag ?? "",
    shape: point.another_model ? "diamond" : "circle",
    tip: { title: point.run_id, lines: [
      ["started", point.started.replace("T", " ").replace("+00:00", " UTC")], [title, point.text],
      ...(point.tag ? [["tag", point.tag]] : []),
      ["timed by", `${point.timed_by}${point.emulated ? ", emulated" : ""}`],
      ...(data.series.some((one) => one.manifest !== point.manifest) ? [["manifest", point.manifest]] : []),
      ...(marks(point) ? [["marks", marks(point)]] : []),
    ] },
  }));
  const stroke = { field: "series", type: "nominal", legend: null, scale: { domain: data.series.map((_, place) => place), range: data.series.map((_, place) => colour(place)) } };
  const spec = () => ({
    $schema: LITE, description: `${title} of ${data.target.name}, run by run.`, data: { values: points },
    width: Math.max(240, holder.clientWidth), height: narrow(holder) ? 260 : 340, autosize: { type: "fit", contains: "padding" },
    encoding: {
      x: { field: "at", type: "temporal", scale: { type: "utc" }, axis: axisOf("started, UTC", { grid: false, labelOverlap: true, tickCount: narrow(holder) ? 4 : 8 }) },
      y: { field: "value", type: "quantitative", scale: { zero: false }, axis: axisOf(title, { tickCount: 6 }) },
    },
    layer: [
      { transform: [{ filter: "datum.low !== null" }], mark: { type: "rule", strokeWidth: 1.5, opacity: 0.55, aria: false }, encoding: { y: { field: "low", type: "quantitative" }, y2: { field: "high" }, stroke } },
      { mark: { type: "line", strokeWidth: 1.2, opacity: 0.7, aria: false }, encoding: { stroke } },
      { mark: { type: "point", filled: false, strokeWidth: 1.5, size: points.length > 300 ? 18 : 45, aria: false }, encoding: { stroke, fill: { field: "fill", type: "nominal", scale: null, legend: null }, shape: { field: "shape", type: "nominal", scale: null, legend: null }, tooltip: { field: "tip" } } },
      { transform: [{ filter: "datum.tag !== ''" }], mark: { type: "text", dy: -11, fontSize: 11, limit: 90, aria: false }, encoding: { text: { field: "tag" } } },
    ],
  });
  const again = () => draw(holder, spec(), { onClick: (point) => point.run && location.assign(`/runs/${encodeURIComponent(point.run)}`) });
  onWidth(holder, again);
  return again();
}
