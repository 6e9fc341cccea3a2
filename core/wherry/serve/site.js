// What a page of the server does when it is open; each part starts only where the page has it.
const data = JSON.parse(document.getElementById("data").textContent);
startTheme();
const sortableTable = document.getElementById("sortable");
if (sortableTable) sortable(sortableTable);
for (const box of document.querySelectorAll("[data-live]")) startLive(box);
const trendBox = document.getElementById("trend");
if (trendBox && hasCharts()) startTrend(trendBox, data);
