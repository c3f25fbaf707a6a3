"use strict";

const valueOf = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
};

// Empty cells stay last, whichever way.
const compare = (a, b, sign) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b));
};

const sortBy = (table, heading) => {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const column = heading.cellIndex;
  for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => compare(valueOf(a, column), valueOf(b, column), descending ? -1 : 1));
  body.append(...rows);
};

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.tHead.rows[0].cells) {
    heading.addEventListener("click", () => sortBy(table, heading));
  }
}

// Every word must be in the row; a word behind "!" must not.
const filter = document.getElementById("filter");
const applyFilter = () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.getElementById("cells").tBodies[0].rows];
  for (const row of rows) {
    const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => (word.startsWith("!") ? !text.includes(word.slice(1)) : text.includes(word)));
  }
  document.getElementById("shown").textContent = rows.filter((row) => !row.hidden).length + " of " + rows.length + " cells";
};
filter.addEventListener("input", applyFilter);
applyFilter();
