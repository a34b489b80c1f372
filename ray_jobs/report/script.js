"use strict";
(() => {
  const { root, columns, rows } = JSON.parse(document.getElementById("data").textContent);
  const LIMIT = 200;
  const table = document.getElementById("table");
  const filter = document.getElementById("filter");
  const all = document.getElementById("all");
  const count = document.getElementById("count");
  const state = { column: null, down: false, whole: false };
  const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
  const folder = (row) => row[row.length - 1];

  const write = {
    text: (value) => value,
    link: (value) => value,
    count: (value) => number.format(value),
    number: (value) => number.format(value),
    percent: (value) => (100 * value).toFixed(1).replace(/\.0$/, "") + "%",
    score: (value, row) => {
      const error = row[columns.length];
      return value.toPrecision(4) + (error == null ? "" : " ± " + error.toPrecision(2));
    },
  };
  const numeric = (kind) => kind !== "text" && kind !== "link";

  function cellOf(row, i) {
    const kind = columns[i][1];
    const cell = document.createElement("td");
    if (numeric(kind)) cell.className = "n";
    const text = row[i] == null ? "" : write[kind](row[i], row);
    if (kind === "link" && folder(row)) {
      const link = document.createElement("a");
      link.href = root + folder(row) + "/";
      link.textContent = text;
      cell.append(link);
    } else {
      cell.textContent = text;
    }
    return cell;
  }

  function chosen() {
    const terms = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = rows.filter((row) => terms.every((term) => row[0].toLowerCase().includes(term)));
    if (state.column === null) return found;
    const i = state.column;
    const sign = state.down ? -1 : 1;
    return found.slice().sort((a, b) => {
      if (a[i] == null || b[i] == null) return (a[i] == null) - (b[i] == null);
      return sign * (numeric(columns[i][1]) ? a[i] - b[i] : a[i].localeCompare(b[i]));
    });
  }

  function show() {
    const found = chosen();
    const shown = state.whole ? found : found.slice(0, LIMIT);
    const lines = shown.map((row) => {
      const line = document.createElement("tr");
      columns.forEach((_, i) => line.append(cellOf(row, i)));
      return line;
    });
    table.tBodies[0].replaceChildren(...lines);
    count.textContent = `${shown.length === found.length ? "" : shown.length + " of "}${found.length} cells`;
    all.hidden = shown.length === found.length;
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      head.ariaSort = i === state.column ? (state.down ? "descending" : "ascending") : "none";
    });
  }

  // What a mark is, at once and on touch too; without scripts the marks keep their <title>.
  const hover = document.createElement("div");
  hover.id = "hover";
  hover.hidden = true;
  document.body.append(hover);
  const texts = new WeakMap();
  function tell(event) {
    const mark = event.target.closest("svg use, svg path, svg g");
    const title = mark && mark.querySelector(":scope > title");
    if (title) {
      texts.set(mark, title.textContent);
      title.remove();
    }
    const text = mark && texts.get(mark);
    hover.hidden = !text;
    if (!text) return;
    hover.textContent = text;
    const box = hover.getBoundingClientRect();
    hover.style.left = Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4)) + "px";
    hover.style.top = Math.max(4, event.clientY - box.height - 12) + "px";
  }
  document.addEventListener("pointerover", tell);
  document.addEventListener("pointerdown", tell);
  document.addEventListener("scroll", () => { hover.hidden = true; }, { passive: true });

  const head = document.createElement("tr");
  columns.forEach(([name, kind], i) => {
    const cell = document.createElement("th");
    const button = document.createElement("button");
    if (numeric(kind)) cell.className = "n";
    button.textContent = name;
    button.addEventListener("click", () => {
      state.down = state.column === i && !state.down;
      state.column = i;
      show();
    });
    cell.append(button);
    head.append(cell);
  });
  table.tHead.append(head);
  filter.addEventListener("input", show);
  all.addEventListener("click", () => {
    state.whole = true;
    show();
  });
  show();
})();
