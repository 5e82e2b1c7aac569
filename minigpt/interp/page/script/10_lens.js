// The view of the logit lens

const lensView = {
  id: "lens", title: "Logit lens", available: () => true,

  /** What the colour shows: its value on a scale from 0 to 1, its text, and the legend. */
  quantity(run) {
    const bitsOfAll = Math.log2(config.vocab_size), most = this.mostKl(run);
    const scales = {
      probability: {
        name: "green", title: "Probability of the likeliest token", low: "0%", high: "100%",
        of: (at) => at.top[0].probability, text: (at) => percent(at.top[0].probability),
      },
      rank: {
        name: "green", title: "Rank of the token that follows", low: whole(config.vocab_size), high: "1",
        of: (at) => 1 - Math.log2(at.rank) / bitsOfAll, text: (at) => `rank ${this.rank(at)}`,
      },
      entropy: {
        name: "amber", title: "Entropy", low: "0 bits", high: `${bitsOfAll.toFixed(0)} bits`,
        of: (at) => at.entropy / bitsOfAll, text: (at) => `${bits(at.entropy)} bits`,
      },
      kl: {
        name: "amber", title: "KL to the last layer", low: "0 bits", high: `${most.toFixed(0)} bits`,
        of: (at) => at.kl / most, text: (at) => `${bits(at.kl)} bits`,
      },
    };
    return scales[state.quantity];
  },

  rank: (at) => (Number.isFinite(at.rank) ? whole(at.rank) : "–"),

  mostKl(run) {
    run.mostKl ??= run.lens.kl.values.reduce((most, x) => (x > most ? x : most), 1);
    return run.mostKl;
  },

  paint(run) {
    const quantity = this.quantity(run), row = lensRow(state.layer);
    const values = Float32Array.from(run.pieces, (_, i) => quantity.of(lensAt(run, row, i)));
    return { ...quantity, values, title: `${quantity.title}, after each token, layer ${state.layer}` };
  },

  read(run) {
    const here = state.cursor;
    if (isUnread(run, here)) return `${named(run, here)} ${UNREAD}`;
    const at = lensAt(run, lensRow(state.layer), here), [best] = at.top;
    const prediction = `After ${named(run, here)}, layer ${state.layer} would predict `
      + `“${pieceOf(best.id)}” ${percent(best.probability)}.`;
    return here + 1 < run.length ? `${prediction} ${named(run, here + 1)} follows, rank ${this.rank(at)}.` : prediction;
  },

  start() {
    this.map = new Plot($("lens-map"), (x, y, click) => {
      const token = this.map.positionAt(x, runs[state.run].length);
      if (click || !state.pinned) pointed(token, click);
    });
    this.table = new Table($("lens-table"));
    this.window = el("table", { class: "heat", "aria-label": "Likeliest token at each layer, around the selected token" });
    this.window.addEventListener("click", (event) => {
      const cell = event.target.closest("td[data-i]");
      if (cell) set({ token: Number(cell.dataset.i), layer: Math.max(Number(cell.dataset.row) - 1, 0) });
    });
    $("lens-window").replaceChildren(this.window);
    reachable($("lens-window"));
  },

  show(run) {
    const columns = Math.min(run.length, clamp(Math.floor(($("lens-window").clientWidth - 100) / 84), 2, 12));
    const first = clamp(state.token - (columns >> 1), 0, run.length - columns);
    this.showWindow(run, first, columns);
    $("lens-figure").hidden = columns === run.length;
    if (columns < run.length) this.showMap(run, first, columns);
    this.showTable(run);
  },

  /** Layers upwards, as many positions as there is room for. */
  showWindow(run, first, columns) {
    const quantity = this.quantity(run), selected = lensRow(state.layer);
    const positions = Array.from({ length: columns }, (_, i) => first + i);
    const kind = (isCurrent) => (isCurrent ? "piece current" : "piece");
    const names = positions.map((i) =>
      el("th", { scope: "col", class: kind(i === state.token), title: `position ${i}` }, run.pieces[i]));
    const lines = [];
    for (let row = config.n_layer; row >= 0; row--) {
      const cells = positions.map((i) => {
        const at = lensAt(run, row, i), piece = pieceOf(at.top[0].id);
        const attributes = { "data-i": i, "data-row": row, title: `${piece}: ${quantity.text(at)}` };
        const cell = el("td", { class: kind(row === selected && i === state.token), ...attributes }, piece);
        return painted(cell, quantity.name, quantity.of(at));
      });
      const isCurrent = row === selected && "current";
      lines.push(el("tr", {}, el("th", { scope: "row", class: isCurrent }, rowName(row)), ...cells));
    }
    this.window.replaceChildren(el("thead", {}, el("tr", {}, el("td"), ...names)), el("tbody", {}, ...lines));
  },

  showMap(run, first, columns) {
    const quantity = this.quantity(run), n = run.length, rows = config.n_layer + 1;
    const [width, height] = [this.map.width, rows * 9];
    this.map.draw(width, height, `${run.number} ${state.quantity}`, (context, ratio) => {
      const colours = ramp(quantity.name), step = this.map.canvas.width / n, tall = this.map.canvas.height / rows;
      for (let row = 0; row < rows; row++) for (let i = 0; i < n; i++) {
        const level = levelOf(quantity.of(lensAt(run, row, i)));
        if (level < 0) continue;
        const y = Math.round((rows - 1 - row) * tall);
        context.fillStyle = colours[level].css;
        context.fillRect(Math.floor(i * step), y, Math.ceil(step), Math.ceil(tall) - ratio);
      }
    });
    this.map.frame((first * width) / n, 0, (columns * width) / n, height);
  },

  showTable(run) {
    const here = state.token, lines = [];
    for (let row = config.n_layer; row >= 0; row--) {
      const at = lensAt(run, row, here), [best, ...others] = at.top;
      const then = others.map(({ id, probability }) => `${pieceOf(id)} ${percent(probability)}`).join("  ");
      const numbers = [this.rank(at), bits(at.entropy), bits(at.kl)];
      lines.push({
        cells: [rowName(row), pieceOf(best.id), percent(best.probability), then, ...numbers],
        current: row === lensRow(state.layer),
      });
    }
    const columns = [asText("Layer"), asPiece("Likeliest"), asNumber("Probability"), asList("Then"),
      asNumber("Rank"), asNumber("Entropy"), asNumber("KL")];
    const follows = here + 1 < run.length ? `Next is ${named(run, here + 1)}` : "Nothing follows";
    const after = `${follows}. Rank: of the token that follows. Entropy and KL in bits.`;
    this.table.fill(`Predictions after ${named(run, here)}`, columns, lines, after);
  },
};

