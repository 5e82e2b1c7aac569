// The view that compares two runs, position by position

const compareView = {
  id: "compare", title: "Compare", available: () => runs.length > 1,

  /** Surprisal of run B minus run A, as far as both go. */
  difference() {
    const [a, b] = runs.map((run) => run.surprisal.values);
    return Float32Array.from({ length: Math.min(a.length, b.length) }, (_, i) => b[i] - a[i]);
  },

  /** The weights of both runs at a head and a position: [{ key, a, b }]. */
  weights(layer, head, query) {
    const [a, b] = runs.map((run) => {
      const keys = query < run.length ? attentionRow(run, layer, head, query).keys : [];
      return new Map(keys.map(({ key, weight }) => [key, weight]));
    });
    return [...new Set([...a.keys(), ...b.keys()])].map((key) => ({ key, a: a.get(key) ?? 0, b: b.get(key) ?? 0 }));
  },

  /** Half the sum of the differences of two rows: from 0, the same, to 1. */
  distance(layer, head, query) {
    return this.weights(layer, head, query).reduce((sum, { a, b }) => sum + Math.abs(b - a) / 2, 0);
  },

  paint(run) {
    const values = new Float32Array(run.length).fill(NaN);
    if (state.difference === "surprisal") {
      this.difference().forEach((x, i) => (values[i] = 0.5 + x / 16));
      return { values, name: "diverging", title: "Surprisal, B minus A", low: "−8 bits", high: "+8 bits" };
    }
    values.fill(0.5, 0, state.token + 1);
    for (const { key, a, b } of this.weights(state.layer, state.head, state.token)) values[key] = 0.5 + (b - a) / 2;
    return { values, name: "diverging", title: "Attention weight, B minus A", low: "−1", high: "+1" };
  },

  read() {
    const i = state.cursor;
    const parts = runs.map((run) => {
      if (i >= run.length) return `${run.name}: ended before`;
      return `${run.name}: ${named(run, i)}, ${bits(run.surprisal.values[i])} bits`;
    });
    return `${parts.join(". ")}.`;
  },

  start() {
    const shared = Math.min(...runs.map((run) => run.length));
    this.plot = new Plot($("compare-plot"), (x, y, click) => pointed(this.plot.positionAt(x, shared), click));
    this.table = new Table($("compare-table"));
    this.predictions = new Table($("compare-predictions"));
    this.heads = new Table($("compare-heads"));
    this.keys = new Table($("compare-keys"));
  },

  show() {
    const values = this.difference(), n = values.length;
    const [width, height] = [Math.min(this.plot.width, n * 24), 130];
    const high = values.reduce((most, x) => (Math.abs(x) > most ? Math.abs(x) : most), 4);
    this.plot.draw(width, height, "difference", (context, ratio) =>
      drawBars(context, ratio, width, height, values, { name: "diverging", low: -high, high }));
    this.plot.frame((Math.min(state.token, n - 1) * width) / n, 0, Math.max(width / n, 2), height);
    this.showPositions();
    this.showPredictions();
    this.showHeads();
    this.showKeys();
  },

  showPositions() {
    const longest = Math.max(...runs.map((run) => run.length));
    const first = clamp(state.token - 5, 0, Math.max(longest - 11, 0));
    const rows = [];
    for (let i = first; i < Math.min(first + 11, longest); i++) {
      const [a, b] = runs.map((run) => run.surprisal.values[i] ?? NaN);
      const cells = [i, runs[0].pieces[i] ?? "", bits(a), runs[1].pieces[i] ?? "", bits(b), signed(b - a)];
      rows.push({ cells, current: i === state.token });
    }
    const columns = [asNumber("Position"), asPiece("A"), asNumber("A, bits"), asPiece("B"), asNumber("B, bits"),
      asNumber("B − A")];
    this.table.fill("Side by side, around the selected position", columns, rows);
  },

  /** The likeliest next tokens of either run, as far as the page holds their probabilities. */
  showPredictions() {
    const [a, b] = runs.map((run) => {
      const top = state.token < run.length ? predictionAfter(run, state.token).top : [];
      return new Map(top.filter(({ id }) => id !== null).map(({ id, probability }) => [id, probability]));
    });
    const share = (p) => (p === undefined ? "–" : percent(p));
    const ids = [...new Set([...a.keys(), ...b.keys()])];
    ids.sort((one, other) => Math.max(a.get(other) ?? 0, b.get(other) ?? 0) - Math.max(a.get(one) ?? 0, b.get(one) ?? 0));
    const rows = ids.map((id) => {
      const difference = signed(100 * (b.get(id) - a.get(id)), 1); // – where only one of them is held
      return { cells: [pieceOf(id), share(a.get(id)), share(b.get(id)), difference] };
    });
    const columns = [asPiece("Next token"), asNumber("A"), asNumber("B"), asNumber("B − A, points")];
    const after = "The five likeliest of each; –: not among them.";
    this.predictions.fill(`What each would write after position ${state.token}`, columns, rows, after);
  },

  showHeads() {
    const heads = Array.from({ length: config.n_head }, (_, head) => head);
    const rows = [];
    for (let layer = config.n_layer - 1; layer >= 0; layer--) {
      const distances = heads.map((head) => this.distance(layer, head, state.token).toFixed(2));
      rows.push({ cells: [layer, ...distances], current: layer === state.layer });
    }
    const columns = [asText("Layer"), ...heads.map((head) => asNumber(`Head ${head}`))];
    const after = "0: both attend to the same positions; 1: to none in common.";
    this.heads.fill(`Attention distance of every head at position ${state.token}`, columns, rows, after);
    for (const cell of this.heads.body.querySelectorAll("td")) painted(cell, "blue", Number(cell.textContent));
  },

  showKeys() {
    const keys = this.weights(state.layer, state.head, state.token);
    const size = ({ a, b }) => Math.abs(b - a);
    keys.sort((one, other) => size(other) - size(one) || one.key - other.key);
    const rows = keys.slice(0, 8).map(({ key, a, b }) => {
      const [inA, inB] = runs.map((run) => run.pieces[key] ?? "");
      return { cells: [key, inA, percent(a), inB, percent(b), signed(100 * (b - a))] };
    });
    const columns = [asNumber("Position"), asPiece("A"), asNumber("A, weight"), asPiece("B"), asNumber("B, weight"),
      asNumber("B − A, points")];
    this.keys.fill(`Where attention differs most, layer ${state.layer}, head ${state.head}`, columns, rows);
  },
};

