// What the page does when it is open; each part starts only where the page has it.
const data = JSON.parse(document.getElementById("data").textContent);

function light(index) { // from the picture to the table and the charts of one target
  for (const row of document.querySelectorAll("tr.lit")) row.classList.remove("lit");
  const row = document.getElementById(`r${index}`);
  row.classList.add("lit");
  row.scrollIntoView({ block: "nearest" });
}

function openTarget() { // a link to a target opens it
  const place = document.getElementById(location.hash.slice(1));
  if (!(place instanceof HTMLDetailsElement)) return;
  place.open = true;
  place.scrollIntoView({ block: "start" });
}

function startCharts() {
  for (const part of document.querySelectorAll(".live, #pareto > .controls")) {
    if (!part.classList.contains("board") && part.id !== "side") part.hidden = false;
  }
  for (const part of document.querySelectorAll(".still")) part.hidden = true;
  const latency = startLatency(data);
  const picture = startPareto(data, (index) => {
    light(index);
    latency.show(index);
  });
  follow = (indices) => {
    picture.filter(indices);
    latency.filter(indices);
  };
  if (shown) follow(shown);
  startBoards(data);
  startLayers(data);
}

let shown = null; // the indices that the filters let through
let follow = () => {}; // what follows them beside the table
startTheme();
const resultsTable = document.getElementById("results");
if (resultsTable) {
  sortable(resultsTable);
  filterable(document.getElementById("filters"), resultsTable, (indices) => {
    shown = indices;
    follow(indices);
  });
}
unpackLibrary().then((charts) => charts && startCharts());
window.addEventListener("hashchange", openTarget);
openTarget();
