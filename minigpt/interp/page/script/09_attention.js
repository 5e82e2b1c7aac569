// The view of attention

const NAMES = 76; // pixels beside the square of weights, for names of tokens

const attentionView = {
  id: "attention", title: "Attention", available: () => true,

  paint(run) {
    const values = new Float32Array(run.length).fill(NaN);
    const query = Math.min(state.token, run.length - 1);
    for (let i = 0; i <= query; i++) values[i] = 0;
    for (const { key, weight } of attentionRow(run, state.layer, state.head, query).keys) values[key] = scaled(weight);
    return { values, name: "blue", title: state.weighting === "value" ? "Share by value norm" : "Attention weight", low: "0", high: "1" };
  },

  read(run) {
    const query = Math.min(state.token, run.length - 1);
    const { keys } = attentionRow(run, state.layer, state.head, query);
    const where = `in layer ${state.layer}, head ${state.head}`;
    if (state.pinned && state.cursor !== query) {
      const found = keys.find((entry) => entry.key === state.cursor);
      const share = found ? percent(found.weight) : state.cursor > query ? "nothing: it comes later" : "less than the keys kept";
      return `${named(run, query)} attends to ${named(run, state.cursor)} ${where}: ${share}.`;
    }
    const most = keys.slice(0, 3).map(({ key, weight }) => `${named(run, key)} ${percent(weight)}`);
    return `${named(run, query)} attends ${where} most to ${most.join(", ") || "no key shown"}.`;
  },

  /** Where a picture of all weights puts a token: the width of a cell, and the square's side. */
  geometry(run) {
    const side = Math.min(this.matrix.width - NAMES, 460), exact = Math.min(side / run.length, 34);
    const cell = exact >= 4 ? Math.floor(exact) : exact;
    return { cell, side: Math.round(cell * run.length), named: cell >= 11 };
  },

  start() {
    this.matrix = new Plot($("matrix"), (x, y, click) => {
      const run = runs[state.run], { cell } = this.geometry(run);
      const query = Math.floor(y / cell), key = Math.floor(x / cell);
      if (query >= run.length) return;
      if (click) set({ token: query, cursor: Math.min(key, query), pinned: true });
      else if (!state.pinned) set({ token: query }, { announce: false });
      else if (key < run.length) set({ cursor: key }, { announce: false });
    });
    this.grid = new Plot($("grid"), (x, y, click) => {
      const { step } = this.gridGeometry();
      const [layer, head] = [Math.floor((y - 16) / step), Math.floor((x - 20) / step)];
      if (click && layer >= 0 && head >= 0) set({ layer, head });
    });
    this.table = new Table($("attention-table"));
  },

  gridGeometry() {
    const room = $("grid-scroll").clientWidth - 24;
    const side = Math.floor(clamp(room / config.n_head - 4, 24, 84));
    return { side, step: side + 4 };
  },

  show(run) {
    const query = Math.min(state.token, run.length - 1);
    this.showMatrix(run, query);
    this.showGrid(run);
    const { keys, mass } = attentionRow(run, state.layer, state.head, query);
    const columns = [{ name: "Key", piece: true }, { name: "Position", number: true },
      { name: state.weighting === "value" ? "Share by value norm" : "Weight", number: true, bar: true }];
    const rows = keys.filter((entry) => entry.weight > 0).slice(0, 12).map(({ key, weight }) =>
      ({ cells: [run.pieces[key], key, [percent(weight), weight]], current: state.pinned && key === state.cursor, badge: key === query ? "itself" : undefined }));
    const held = `The page holds the ${Math.min(run.attention.kept, query + 1)} largest weights of this row, ${percent(mass)} of it; shown are at most 12.`;
    const hidden = state.hideFirst ? " The first token is hidden." : "";
    this.table.fill(`What ${named(run, query)} attends to, layer ${state.layer}, head ${state.head}`, columns, rows, held + hidden);
  },

  showMatrix(run, query) {
    const { cell, side, named: names } = this.geometry(run);
    const key = [run.number, state.layer, state.head, state.weighting, state.scale, state.hideFirst].join();
    this.matrix.draw(side + NAMES, side, key, (context, ratio) => {
      const pixels = Math.round(side * ratio);
      const image = context.createImageData(pixels, pixels);
      headPixels(image, 0, 0, pixels, run, state.layer, state.head);
      context.putImageData(image, 0, 0);
      context.scale(ratio, ratio);
      if (names) this.label(context, run, cell);
    });
    this.matrix.frame(0, query * cell, (query + 1) * cell, Math.max(cell, 2), names ? "" : run.pieces[query]);
    $("matrix-caption").textContent = `Layer ${state.layer}, head ${state.head}. Each row is a token that attends; its colours show to which earlier ones.`;
  },

  /** The upper triangle is empty, so a token's name stands beside its own cell: right of its row, above its column. */
  label(context, run, cell) {
    context.fillStyle = variable("soft");
    context.font = canvasFont(clamp(cell - 1, 10, 13));
    context.textBaseline = "middle";
    run.pieces.forEach((piece, i) => context.fillText([...piece].slice(0, 12).join(""), (i + 1) * cell + 4, (i + 0.5) * cell, 72));
  },

  showGrid(run) {
    const { side, step } = this.gridGeometry();
    const [width, height] = [20 + config.n_head * step, 16 + config.n_layer * step];
    const key = [run.number, state.weighting, state.scale, state.hideFirst].join();
    this.grid.draw(width, height, key, (context, ratio) => {
      const pixels = Math.round(side * ratio);
      for (let layer = 0; layer < config.n_layer; layer++) for (let head = 0; head < config.n_head; head++) {
        const image = context.createImageData(pixels, pixels);
        headPixels(image, 0, 0, pixels, run, layer, head);
        context.putImageData(image, Math.round((20 + head * step) * ratio), Math.round((16 + layer * step) * ratio));
      }
      context.scale(ratio, ratio);
      context.fillStyle = variable("soft");
      context.font = canvasFont(11, "sans");
      for (let head = 0; head < config.n_head; head++) context.fillText(head, 20 + head * step + 2, 11);
      for (let layer = 0; layer < config.n_layer; layer++) context.fillText(layer, 2, 16 + layer * step + 12);
    });
    this.grid.frame(20 + state.head * step, 16 + state.layer * step, side, side);
  },
};

