// Tables

// Kinds of columns. A cell of a bar is [text, length from 0 to 1].
const asText = (name) => ({ name });
const asList = (name) => ({ name, kind: "list" });
const asPiece = (name) => ({ name, kind: "piece" });
const asNumber = (name) => ({ name, kind: "number" });
const asBar = (name) => ({ name, kind: "number", bar: true });

/** Lets the keyboard scroll a box, and makes it no stop where there is nothing to scroll. */
function reachable(box) {
  const resized = new ResizeObserver(() => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  resized.observe(box);
  if (box.firstElementChild) resized.observe(box.firstElementChild);
}

/** A table with a heading and a button that copies it; its cells are replaced when what it shows changes. */
class Table {
  constructor(container) {
    this.title = el("h3", { id: `${container.id}-title` });
    this.copy = el("button", { type: "button", click: () => this.copied() }, "Copy as text");
    this.head = el("thead");
    this.body = el("tbody");
    this.after = el("p", { class: "count" });
    const label = { "aria-labelledby": this.title.id };
    const box = el("div", { class: "scroll", role: "region", ...label }, el("table", label, this.head, this.body));
    container.replaceChildren(el("div", { class: "table-head" }, this.title, this.copy), box, this.after);
    reachable(box);
  }

  /** Shows rows: [{ cells, current: it is the selected one, gone: it is struck out, badge: a word after the piece }]. */
  fill(title, columns, rows, after = "") {
    this.title.textContent = title;
    this.after.textContent = after;
    const texts = rows.map(({ cells }) => cells.map((cell) => (Array.isArray(cell) ? cell[0] : cell)));
    this.lines = [columns.map((column) => column.name), ...texts];
    const header = el("tr");
    for (const { name, kind, bar } of columns) {
      header.append(el("th", { scope: "col", class: kind === "number" && kind }, name));
      if (bar) header.append(el("td"));
    }
    this.head.replaceChildren(header);
    this.body.replaceChildren(...rows.map((row) => this.row(columns, row)));
  }

  row(columns, { cells, current, gone, badge }) {
    const tr = el("tr", { class: [current && "current", gone && "gone"].filter(Boolean).join(" ") || undefined });
    columns.forEach((column, i) => {
      const cell = cells[i];
      const text = String(column.bar ? cell[0] : cell);
      tr.append(i ? el("td", { class: column.kind }, text) : el("th", { class: column.kind, scope: "row" }, text));
      if (column.kind === "piece" && badge) tr.lastChild.append(el("span", { class: "badge" }, badge));
      if (column.bar) {
        const bar = el("span");
        bar.style.width = `${100 * clamp(cell[1] || 0, 0, 1)}%`;
        tr.append(el("td", { class: "bar" }, bar));
      }
    });
    return tr;
  }

  async copied() {
    const text = this.lines.map((line) => line.join("\t")).join("\n") + "\n";
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = el("textarea", { class: "hidden" });
      area.value = text;
      document.body.append(area);
      area.select();
      done = document.execCommand("copy");
      area.remove();
      this.copy.focus();
    }
    this.copy.textContent = done ? "Copied" : "The browser does not allow it";
    $("live").textContent = this.copy.textContent;
    setTimeout(() => (this.copy.textContent = "Copy as text"), 1500);
  }
}

