// Charts by Vega: our looks, and how one is put into the page and grows with it.
//
// Colours are the page's own CSS variables, so that light, dark and print need no second drawing;
// expressions are interpreted, never compiled, as the page's policy demands.
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
const AXIS = {
  domainColor: "var(--strong-line)", tickColor: "var(--strong-line)", gridColor: "var(--line)",
  labelColor: "var(--muted)", titleColor: "var(--text)", labelFont: FONT, titleFont: FONT,
  labelFontSize: 12, titleFontSize: 12.5, titleFontWeight: 500, titlePadding: 10, gridOpacity: 1,
};
const CONFIG = {
  background: "transparent", font: FONT, axis: AXIS, view: { stroke: null },
  legend: { labelColor: "var(--text)", titleColor: "var(--muted)", labelFont: FONT, titleFont: FONT, labelFontSize: 12, symbolStrokeWidth: 2 },
  text: { fill: "var(--text)", font: FONT, fontSize: 12 },
};
const LITE = "https://vega.github.io/schema/vega-lite/v6.json";
const axisOf = (text, more = {}) => ({ title: text, ticks: false, domain: false, labelPadding: 6, ...more });
const drawn = new Map(); // element to { result, turn }

// Unpack the library, and run it: the page's policy names it by its hash. Resolves to whether the page
// has charts: a browser that cannot unpack it shows the still pictures.
async function unpackLibrary() {
  if (hasCharts()) return true; // a file of the page's own brought it
  const packed = document.getElementById("library");
  if (!packed || typeof DecompressionStream !== "function") return false;
  const bytes = Uint8Array.from(atob(packed.textContent), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  return hasCharts();
}

const colour = (index) => `var(--s${index % 12})`;
const hasCharts = () => typeof window.vegaEmbed === "function";
const narrow = (box) => box.clientWidth < 560;

// Draw into an element, in place of what is there; resolves to the view, or null where a later
// drawing overtook this one.
async function draw(box, spec, { onClick } = {}) {
  const turn = (drawn.get(box)?.turn ?? 0) + 1;
  drawn.set(box, { ...drawn.get(box), turn });
  const holder = document.createElement("div");
  holder.className = "chart";
  const result = await window.vegaEmbed(holder, spec, {
    renderer: "svg", ast: true, actions: false, defaultStyle: false, config: CONFIG,
    tooltip: (_handler, event, item, value) => tip(event, value), logLevel: 1,
  });
  if (drawn.get(box).turn !== turn) {
    result.finalize();
    return null;
  }
  drawn.get(box).result?.finalize();
  drawn.set(box, { turn, result });
  box.replaceChildren(holder);
  if (onClick) result.view.addEventListener("click", (_event, item) => item?.datum && onClick(item.datum));
  return result.view;
}

// What the pointer is at: a title and lines of [name, text]; texts only, never markup, and no name
// from outside is ever a key.
function tip(event, value) {
  let box = document.getElementById("tip");
  if (!box) {
    box = document.createElement("div");
    box.id = "tip";
    box.setAttribute("aria-hidden", "true"); // the same is in the table
    document.body.append(box);
  }
  box.hidden = !value;
  if (!value) return;
  const head = document.createElement("strong");
  head.textContent = value.title;
  const rows = value.lines.map(([name, text]) => {
    const row = document.createElement("div");
    for (const part of [name, text]) {
      const cell = document.createElement("span");
      cell.textContent = part;
      row.append(cell);
    }
    return row;
  });
  box.replaceChildren(head, ...rows);
  const { offsetWidth: wide, offsetHeight: high } = box;
  const left = Math.min(event.clientX + 14, window.innerWidth - wide - 8);
  const above = event.clientY + 14 + high > window.innerHeight;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${above ? event.clientY - high - 12 : event.clientY + 14}px`;
}

// Draw again where an element's width changes: a phone that is turned, a window that is dragged.
function onWidth(box, again) {
  let last = box.clientWidth;
  let waiting = 0;
  new ResizeObserver(() => {
    if (!box.clientWidth || box.clientWidth === last) return;
    last = box.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(again, 120);
  }).observe(box);
}

// Fill a <select>; hide its label where there is nothing to choose.
function choices(select, options) {
  select.replaceChildren(...options.map(([value, text]) => {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = text;
    return option;
  }));
  const label = select.closest("label");
  if (label) label.hidden = options.length < 2;
}

// Names as the places of an axis: one that comes again is counted.
function distinct(names) {
  const seen = new Map();
  return names.map((name) => {
    seen.set(name, (seen.get(name) ?? 0) + 1);
    return seen.get(name) > 1 ? `${name} (${seen.get(name)})` : name;
  });
}

// Figures as the report writes them: see words.py.
function milliseconds(value) {
  if (value === null || value === undefined) return "-";
  return value >= 0.1 ? value.toFixed(3) : String(Number(value.toPrecision(3)));
}
const figure = (value) => (value === null || value === undefined ? "-" : String(Number(value.toPrecision(4))));
