// A table that can be sorted by its heads, and filtered: by text, by facets, by a mark.

// Sort by a head: a button in it, by mouse or keyboard; aria-sort says how. Rows without a value
// come last either way, and equal ones stay in their order.
function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const places = new Map([...body.rows].map((row, place) => [row, place]));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = head.classList.contains("n");
      const keyed = [...body.rows].map((row) => [key(row.cells[column], numeric), row]);
      keyed.sort(([a, first], [b, second]) => {
        if ((a === null) !== (b === null)) return a === null ? 1 : -1;
        const order = a === null ? 0 : numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
        return (up ? order : -order) || places.get(first) - places.get(second);
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

function key(cell, numeric) {
  if (!numeric) return cell.textContent;
  return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
}

// The filters of a table; `onChange` is told the indices (data-i) of the rows that are shown.
function filterable(form, table, onChange) {
  const rows = [...table.tBodies[0].rows].map((row) => ({
    row,
    index: Number(row.dataset.i),
    text: row.textContent.toLowerCase(),
  }));
  const facets = [...form.querySelectorAll("details.facet")];
  const find = form.querySelector("#find");
  const onlyFront = form.querySelector("#only-front");
  const count = form.querySelector("#count");
  const none = document.getElementById("none");

  const apply = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = facets.map((facet) => {
      const chosen = [...facet.querySelectorAll("input:checked")];
      facet.classList.toggle("active", chosen.length > 0);
      facet.querySelector(".chosen").textContent = chosen.length ? `(${chosen.length})` : "";
      return [facet.dataset.facet, new Set(chosen.map((box) => box.value))];
    });
    const shown = new Set();
    for (const { row, index, text } of rows) {
      const fits = words.every((word) => text.includes(word))
        && wanted.every(([name, values]) => !values.size || values.has(row.dataset[name]))
        && (!onlyFront || !onlyFront.checked || row.classList.contains("front"));
      row.hidden = !fits;
      if (fits) shown.add(index);
    }
    count.textContent = `${shown.size} of ${rows.length}`;
    none.hidden = shown.size > 0;
    onChange(shown);
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply)); // the fields are empty after the event
  document.getElementById("none-reset").addEventListener("click", () => {
    form.reset();
    find.focus();
  });
  // one menu is open at a time; Escape and a click elsewhere close it
  document.addEventListener("click", (event) => {
    for (const facet of facets) if (!facet.contains(event.target)) facet.open = false;
  });
  form.addEventListener("keydown", (event) => {
    const facet = event.target.closest("details.facet[open]");
    if (event.key === "Escape" && facet) {
      facet.open = false;
      facet.querySelector("summary").focus();
    }
  });
  form.addEventListener("focusin", (event) => {
    for (const facet of facets) if (!facet.contains(event.target)) facet.open = false;
  });
  form.hidden = false;
  apply();
}
