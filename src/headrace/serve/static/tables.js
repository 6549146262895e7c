// Tables: rows are changed in place, so that a selection, a scroll position and a screen reader's place survive.

/** Fill a table. `columns`: [{title, cls, text(row), node(row)}], the first one names the row. */
export function fill(table, columns, rows, emptyText) {
  if (!table.tHead) {
    const head = table.createTHead().insertRow();
    for (const column of columns) {
      const cell = document.createElement("th");
      cell.scope = "col"; cell.textContent = column.title;
      if (column.cls === "n") cell.className = "n";
      head.append(cell);
    }
    table.createTBody();
  }
  const body = table.tBodies[0];
  if (!rows.length) {
    if (body.dataset.empty !== emptyText) {
      body.replaceChildren();
      const cell = body.insertRow().insertCell();
      cell.colSpan = columns.length; cell.className = "empty"; cell.textContent = emptyText;
      body.dataset.empty = emptyText;
    }
    return;
  }
  if (body.dataset.empty) { body.replaceChildren(); delete body.dataset.empty; }
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((row, r) => {
    const line = body.rows[r] ?? newRow(body, columns);
    columns.forEach((column, c) => {
      const cell = line.cells[c];
      if (column.node) { column.node(row, cell); return; }
      const text = String(column.text(row) ?? "–");
      if (cell.textContent !== text) cell.textContent = text;
      if (column.mark) { const mark = column.mark(row); if (cell.dataset.mark !== mark) { cell.dataset.mark = mark; cell.classList.toggle("odd", mark === "odd"); } }
    });
  });
}

function newRow(body, columns) {
  const line = body.insertRow();
  columns.forEach((column, c) => {
    const cell = document.createElement(c ? "td" : "th");
    if (!c) cell.scope = "row";
    if (column.cls) cell.className = column.cls;
    line.append(cell);
  });
  return line;
}

const GOOD = new Set(["running", "ok", "connected", "idle", "closed", "finished"]);
const WARN = new Set(["starting", "stopped", "paused", "retrying", "waiting", "half_open", "degraded", "recovering"]);

/** A state as a coloured word. */
export function state(cell, word) {
  let badge = cell.firstElementChild;
  if (!badge) { badge = document.createElement("span"); badge.className = "state"; cell.append(badge); }
  if (badge.textContent === word) return;
  badge.textContent = word;
  badge.dataset.state = GOOD.has(word) ? "good" : WARN.has(word) ? "warn" : "bad";
}

/** Text in code type, cut by the style sheet. */
export function code(cell, text) {
  let node = cell.firstElementChild;
  if (!node) { node = document.createElement("code"); cell.append(node); }
  if (node.textContent !== text) { node.textContent = text; node.title = text; }
}

/** Columns {name: [values]} as row objects. */
export function rowsOf(columns) {
  const names = Object.keys(columns);
  const count = names.length ? columns[names[0]].length : 0;
  return Array.from({ length: count }, (_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
}
