// Sorting of claim tables, and filtering of those of the scorecard. The page reads without it, too.
document.addEventListener("DOMContentLoaded", () => {
  const heads = (table) => [...table.querySelectorAll("thead th")].map((th) => th.textContent.trim());
  const tables = [...document.querySelectorAll("table")].filter((t) => heads(t).includes("bound"));
  if (!tables.length) return;

  const key = (text) => {
    const number = parseFloat(text.replace(/^[<>≤≥= ]+/, "").replace(/−/g, "-"));
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const compare = (a, b) => {
    if (typeof a === typeof b) return a < b ? -1 : Number(a > b);
    return typeof a === "number" ? -1 : 1; // numbers before words
  };

  function sort(table, column, header) {
    const up = header.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach((th) => th.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = table.tBodies[0];
    const value = (row) => key(row.cells[column].textContent.trim());
    const rows = [...body.rows].sort((a, b) => (up ? 1 : -1) * compare(value(a), value(b)));
    body.append(...rows);
  }

  for (const table of tables) {
    table.classList.add("claims");
    table.querySelectorAll("thead th").forEach((header, column) => {
      const title = header.textContent.trim();
      const button = document.createElement("button");
      button.append(...header.childNodes);
      button.title = "sort by this column";
      header.replaceChildren(button);
      header.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, column, header));
      const cells = [...table.tBodies[0].rows].map((row) => row.cells[column]);
      const empty = cells.every((cell) => cell.textContent.trim() === "-");
      for (const cell of [header, ...cells]) {
        cell.hidden = empty;
        cell.classList.add(title.split(" ")[0].replace(/\W/g, ""));
      }
    });
  }

  if (tables.length === 1) return; // an evidence page: the controls would stand above its title

  const verdictOf = (row, table) => row.cells[heads(table).indexOf("verdict")].textContent.trim();
  const verdicts = ["reproduced", "partly", "not reproduced", "not tested here", "open"];

  const controls = document.createElement("form");
  controls.className = "scorecard-controls";
  controls.setAttribute("role", "search");
  controls.innerHTML = `
    <label>words of a claim, setting or verdict <input type="search" name="words"></label>
    <label>verdict <select name="verdict"><option value="">all</option>
      ${verdicts.map((v) => `<option>${v}</option>`).join("")}</select></label>
    <output role="status"></output>`;
  controls.addEventListener("submit", (event) => event.preventDefault());

  function filter() {
    const words = controls.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const verdict = controls.elements.verdict.value;
    let shown = 0;
    let all = 0;
    for (const table of tables) {
      let left = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        const fits = words.every((word) => text.includes(word));
        row.hidden = !(fits && verdictOf(row, table).startsWith(verdict));
        left += !row.hidden;
        all += 1;
      }
      table.closest("section").hidden = !left;
      shown += left;
    }
    for (const paper of new Set(tables.map((t) => t.closest("section").parentElement))) {
      paper.hidden = !paper.querySelector(":scope > section:not([hidden])");
    }
    controls.querySelector("output").textContent = `${shown} of ${all} claims`;
  }

  controls.addEventListener("input", filter);
  const first = tables[0].closest("section").parentElement; // the section of its paper
  first.before(controls);
  filter();
});
