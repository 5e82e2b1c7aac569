// Tables

/** A table with a heading and a button that copies it; its cells are replaced when what it shows changes. */
class Table {
  constructor(container) {
    this.title = el("h3", { id: `${container.id}-title` });
    this.copy = el("button", { type: "button", click: () => this.copied() }, "Copy as text");
    this.head = el("thead");
    this.body = el("tbody");
    this.after = el("p", { class: "count" });
    const table = el("table", { "aria-labelledby": this.title.id }, this.head, this.body);
    container.replaceChildren(
      el("div", { class: "table-head" }, this.title, this.copy),
      el("div", { class: "scroll", role: "region", tabindex: "0", "aria-labelledby": this.title.id }, table),
      this.after,
    );
  }

  /** columns: [{ name, number, piece, bar }]; rows: [{ cells, current, gone }]; a bar's cell is [text, share]. */
  fill(title, columns, rows, after = "") {
    this.title.textContent = title;
    this.after.textContent = after;
    this.rows = [columns.map((column) => column.name), ...rows.map((row) => row.cells.map((cell) => (Array.isArray(cell) ? cell[0] : cell)))];
    const names = columns.map((column) => el("th", { scope: "col", class: column.number ? "number" : undefined }, column.name));
    this.head.replaceChildren(el("tr", {}, ...columns.flatMap((column, i) => (column.bar ? [names[i], el("td")] : [names[i]]))));
    this.body.replaceChildren(...rows.map((row) => this.row(columns, row)));
  }

  row(columns, { cells, current, gone, badge }) {
    const tr = el("tr", { class: [current && "current", gone && "gone"].filter(Boolean).join(" ") || undefined });
    columns.forEach((column, i) => {
      const cell = cells[i];
      const kind = column.piece ? "piece" : column.number ? "number" : column.list ? "list" : undefined;
      tr.append(el(i ? "td" : "th", { class: kind, scope: i ? undefined : "row" }, String(column.bar ? cell[0] : cell)));
      if (column.piece && badge) tr.lastChild.append(el("span", { class: "badge" }, badge));
      if (column.bar) {
        const bar = el("span");
        bar.style.width = `${100 * clamp(cell[1] || 0, 0, 1)}%`;
        tr.append(el("td", { class: "bar" }, bar));
      }
    });
    return tr;
  }

  async copied() {
    const text = this.rows.map((row) => row.join("\t")).join("\n") + "\n";
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

