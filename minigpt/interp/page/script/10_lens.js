// The view of the logit lens

const lensView = {
  id: "lens", title: "Logit lens", available: () => true,

  /** What the colour shows: its value at a row and position, on a scale from 0 to 1, as text, and the legend. */
  quantity(run) {
    const size = Math.log2(config.vocab_size);
    return {
      probability: { name: "green", of: (at) => at.top[0].probability, text: (at) => percent(at.top[0].probability), title: "Probability of the likeliest token", low: "0%", high: "100%" },
      rank: { name: "green", of: (at) => 1 - Math.log2(at.rank) / size, text: (at) => (Number.isFinite(at.rank) ? `rank ${whole(at.rank)}` : "–"), title: "Rank of the token that follows", low: whole(config.vocab_size), high: "1" },
      entropy: { name: "amber", of: (at) => at.entropy / size, text: (at) => `${bits(at.entropy)} bits`, title: "Entropy", low: "0 bits", high: `${size.toFixed(0)} bits` },
      kl: { name: "amber", of: (at) => at.kl / this.mostKl(run), text: (at) => `${bits(at.kl)} bits`, title: "KL to the last layer", low: "0 bits", high: `${this.mostKl(run).toFixed(0)} bits` },
    }[state.quantity];
  },

  mostKl(run) {
    run.mostKl ??= Math.max(1, run.lens.kl.values.reduce((most, x) => (x > most ? x : most), 0));
    return run.mostKl;
  },

  paint(run) {
    const quantity = this.quantity(run), row = lensRow(run, state.layer);
    const values = Float32Array.from(run.pieces, (_, i) => quantity.of(lensAt(run, row, i)));
    return { values, ...quantity, title: `${quantity.title}, after each token, layer ${state.layer}` };
  },

  read(run) {
    const at = lensAt(run, lensRow(run, state.layer), state.cursor);
    const follows = state.cursor + 1 < run.length ? ` ${named(run, state.cursor + 1)} follows, rank ${whole(at.rank)}.` : "";
    return `After ${named(run, state.cursor)}, layer ${state.layer} would predict “${pieceOf(at.top[0].id)}” ${percent(at.top[0].probability)}.${follows}`;
  },

  start() {
    this.map = new Plot($("lens-map"), (x, y, click) => {
      const run = runs[state.run];
      const token = clamp(Math.floor((x / this.map.canvas.clientWidth) * run.length), 0, run.length - 1);
      if (click) set({ token, cursor: token, pinned: true });
      else if (!state.pinned) set({ token }, { announce: false });
    });
    this.table = new Table($("lens-table"));
    this.window = el("table", { class: "heat", "aria-label": "Likeliest token at each layer, around the selected token" });
    this.window.addEventListener("click", (event) => {
      const cell = event.target.closest("td");
      if (cell) set({ token: Number(cell.dataset.i), layer: Math.max(Number(cell.dataset.row) - 1, 0) });
    });
    $("lens-window").replaceChildren(this.window);
  },

  show(run) {
    const n = run.length, rows = run.lens.points.length;
    const columns = Math.min(n, clamp(Math.floor(($("lens-window").clientWidth - 90) / 84), 2, 12));
    const first = clamp(state.token - (columns >> 1), 0, n - columns);
    this.showWindow(run, first, columns);
    $("lens-figure").hidden = columns === n;
    if (columns < n) this.showMap(run, first, columns);

    const names = [{ name: "Layer" }, { name: "Likeliest", piece: true }, { name: "Probability", number: true },
      { name: "Then", list: true }, { name: "Rank", number: true }, { name: "Entropy", number: true }, { name: "KL", number: true }];
    const lines = [];
    for (let row = rows - 1; row >= 0; row--) {
      const at = lensAt(run, row, state.token);
      const others = at.top.slice(1).map(({ id, probability }) => `${pieceOf(id)} ${percent(probability)}`).join("  ");
      lines.push({ current: row === lensRow(run, state.layer), cells: [layerName(run.lens.points[row]), pieceOf(at.top[0].id),
        percent(at.top[0].probability), others, Number.isFinite(at.rank) ? whole(at.rank) : "–", bits(at.entropy), bits(at.kl)] });
    }
    const follows = state.token + 1 < n ? `Next is ${named(run, state.token + 1)}.` : "Nothing follows.";
    this.table.fill(`Predictions after ${named(run, state.token)}`, names, lines, `${follows} Rank: of the token that follows. Entropy and KL in bits.`);
  },

  showWindow(run, first, columns) {
    const quantity = this.quantity(run), selected = lensRow(run, state.layer);
    const positions = Array.from({ length: columns }, (_, i) => first + i);
    const header = el("tr", {}, el("td", {}), ...positions.map((i) =>
      el("th", { scope: "col", class: i === state.token ? "piece current" : "piece", title: `position ${i}` }, run.pieces[i])));
    const lines = [];
    for (let row = run.lens.points.length - 1; row >= 0; row--) {
      const line = el("tr", {}, el("th", { scope: "row", class: row === selected ? "current" : undefined }, layerName(run.lens.points[row])));
      for (const i of positions) {
        const at = lensAt(run, row, i);
        const cell = el("td", { class: row === selected && i === state.token ? "piece current" : "piece", "data-i": i, "data-row": row,
          title: `${pieceOf(at.top[0].id)}: ${quantity.text(at)}` }, pieceOf(at.top[0].id));
        line.append(painted(cell, quantity.name, quantity.of(at)));
      }
      lines.push(line);
    }
    this.window.replaceChildren(el("thead", {}, header), el("tbody", {}, ...lines));
  },

  showMap(run, first, columns) {
    const quantity = this.quantity(run), n = run.length, rows = run.lens.points.length;
    const [width, height] = [this.map.width, rows * 9];
    this.map.draw(width, height, `${run.number} ${state.quantity}`, (context, ratio) => {
      const colours = ramp(quantity.name), step = this.map.canvas.width / n, tall = this.map.canvas.height / rows;
      for (let row = 0; row < rows; row++) for (let i = 0; i < n; i++) {
        const level = levelOf(quantity.of(lensAt(run, row, i)));
        if (level < 0) continue;
        context.fillStyle = colours[level].css;
        context.fillRect(Math.floor(i * step), Math.round((rows - 1 - row) * tall), Math.ceil(step), Math.ceil(tall) - ratio);
      }
    });
    this.map.frame((first * width) / n, 0, (columns * width) / n, height);
  },
};

