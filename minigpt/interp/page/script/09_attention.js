// The view of attention

const NAMES = 76; // pixels beside the square of weights, for names of tokens
const SHOWN_KEYS = 12;

const attentionView = {
  id: "attention", title: "Attention", available: () => true,

  paint(run) {
    const values = new Float32Array(run.length).fill(NaN);
    const query = Math.min(state.token, run.length - 1);
    values.fill(0, 0, query + 1);
    for (const { key, weight } of attentionRow(run, state.layer, state.head, query).keys) values[key] = scaled(weight);
    return { values, name: "blue", title: this.weightName(), low: "0", high: "1" };
  },

  weightName: () => (state.weighting === "value" ? "Share by value norm" : "Attention weight"),

  read(run) {
    const query = Math.min(state.token, run.length - 1);
    if (isUnread(run, query)) return `${named(run, query)} ${UNREAD}`;
    const { keys } = attentionRow(run, state.layer, state.head, query);
    const where = `in layer ${state.layer}, head ${state.head}`;
    if (state.pinned && state.cursor !== query) {
      return `${named(run, query)} attends to ${named(run, state.cursor)} ${where}: ${this.share(keys, query)}.`;
    }
    const most = keys.slice(0, 3).map(({ key, weight }) => `${named(run, key)} ${percent(weight)}`);
    return `${named(run, query)} attends ${where} most to ${most.join(", ") || "no key shown"}.`;
  },

  /** How much the key under the cursor gets. */
  share(keys, query) {
    if (state.cursor > query) return "nothing, for it comes later";
    const found = keys.find((entry) => entry.key === state.cursor);
    return found ? percent(found.weight) : "less than the weights that the page holds";
  },

  start() {
    this.matrix = new Plot($("matrix"), (x, y, click) => {
      const run = runs[state.run], { cell } = this.geometry(run);
      const [query, key] = [Math.floor(y / cell), Math.floor(x / cell)];
      if (query >= run.length || key >= run.length) return;
      if (click) set({ token: query, cursor: Math.min(key, query), pinned: true });
      else pointed(state.pinned ? key : query, false);
    });
    this.grid = new Plot($("grid"), (x, y, click) => {
      const { step } = this.gridGeometry();
      const [layer, head] = [Math.floor((y - 16) / step), Math.floor((x - 20) / step)];
      if (click && layer >= 0 && head >= 0) set({ layer, head });
    });
    this.table = new Table($("attention-table"));
    reachable($("grid-scroll"));
    $("pictures").classList.toggle("wide", config.n_head > 6);
  },

  show(run) {
    const query = Math.min(state.token, run.length - 1);
    this.showMatrix(run, query);
    this.showGrid(run);
    this.showTable(run, query);
  },

  showTable(run, query) {
    const { keys, mass } = attentionRow(run, state.layer, state.head, query);
    const most = keys.length ? keys[0].weight : 1; // the longest bar
    const rows = keys.filter(({ weight }) => weight > 0).slice(0, SHOWN_KEYS).map(({ key, weight }) => ({
      cells: [run.pieces[key], key, [percent(weight), weight / most]],
      current: state.pinned && key === state.cursor,
      badge: key === query ? "itself" : undefined,
    }));
    const held = `The page holds the ${Math.min(run.attention.kept, query + 1)} largest weights of this row, `
      + `${percent(mass)} of it; shown are at most ${SHOWN_KEYS}.`;
    const known = held + (state.hideFirst ? " The first token is hidden." : "");
    const after = isUnread(run, query) ? `This token ${UNREAD}` : known;
    const title = `What ${named(run, query)} attends to, layer ${state.layer}, head ${state.head}`;
    const weight = state.weighting === "value" ? "Share" : "Weight";
    this.table.fill(title, [asPiece("Key"), asNumber("Position"), asBar(weight)], rows, after);
  },

  // The picture of one head: the size of a cell, and the square's side.
  geometry(run) {
    const side = Math.min(this.matrix.width - NAMES, 460), exact = Math.min(side / run.length, 34);
    const cell = exact >= 4 ? Math.floor(exact) : exact;
    return { cell, side: Math.round(cell * run.length), hasNames: cell >= 11 };
  },

  showMatrix(run, query) {
    const { cell, side, hasNames } = this.geometry(run);
    const key = [run.number, state.layer, state.head, state.weighting, state.scale, state.hideFirst].join();
    this.matrix.draw(side + NAMES, side, key, (context, ratio) => {
      drawHead(context, 0, 0, Math.round(side * ratio), run, state.layer, state.head);
      context.scale(ratio, ratio);
      if (hasNames) this.drawNames(context, run, cell);
    });
    this.matrix.frame(0, query * cell, (query + 1) * cell, Math.max(cell, 2), hasNames ? "" : run.pieces[query]);
    $("matrix-caption").textContent = `Layer ${state.layer}, head ${state.head}. `
      + "Each row is a token that attends; its colours show to which earlier ones.";
  },

  /** The upper triangle is empty, so a name stands beside its own cell: right of its row, above its column. */
  drawNames(context, run, cell) {
    context.fillStyle = variable("soft");
    context.font = canvasFont(clamp(cell - 1, 10, 13));
    context.textBaseline = "middle";
    run.pieces.forEach((piece, i) => {
      const name = [...piece].slice(0, 12).join("");
      context.fillText(name, (i + 1) * cell + 4, (i + 0.5) * cell, NAMES - 4);
    });
  },

  // The picture of all heads: the side of one of them, and the way to the next.
  gridGeometry() {
    const room = $("grid-scroll").clientWidth - 24;
    const side = Math.floor(clamp(room / config.n_head - 4, 24, 84));
    return { side, step: side + 4 };
  },

  showGrid(run) {
    const { side, step } = this.gridGeometry();
    const [left, top] = [(head) => 20 + head * step, (layer) => 16 + layer * step];
    const key = [run.number, state.weighting, state.scale, state.hideFirst].join();
    this.grid.draw(left(config.n_head), top(config.n_layer), key, (context, ratio) => {
      const pixels = (length) => Math.round(length * ratio);
      for (let layer = 0; layer < config.n_layer; layer++) {
        for (let head = 0; head < config.n_head; head++) {
          drawHead(context, pixels(left(head)), pixels(top(layer)), pixels(side), run, layer, head);
        }
      }
      context.scale(ratio, ratio);
      context.fillStyle = variable("soft");
      context.font = canvasFont(11, "sans");
      for (let head = 0; head < config.n_head; head++) context.fillText(head, left(head) + 2, 11);
      for (let layer = 0; layer < config.n_layer; layer++) context.fillText(layer, 2, top(layer) + 12);
    });
    this.grid.frame(left(state.head), top(state.layer), side, side);
  },
};

