// The view that compares two runs

const compareView = {
  id: "compare", title: "Compare", available: () => runs.length > 1,

  difference() {
    const [a, b] = runs.map((run) => run.surprisal.values);
    return Float32Array.from({ length: Math.min(a.length, b.length) }, (_, i) => b[i] - a[i]);
  },

  /** Weights of a row by key. */
  weights: (run, layer, head, query) => new Map(query < run.length ? attentionRow(run, layer, head, query).keys.map(({ key, weight }) => [key, weight]) : []),

  /** Half the sum of the differences of two rows. */
  distance(layer, head, query) {
    const [a, b] = runs.map((run) => this.weights(run, layer, head, query));
    let sum = 0;
    for (const key of new Set([...a.keys(), ...b.keys()])) sum += Math.abs((a.get(key) ?? 0) - (b.get(key) ?? 0));
    return sum / 2;
  },

  paint(run) {
    const values = new Float32Array(run.length).fill(NaN);
    if (state.difference === "surprisal") {
      this.difference().forEach((x, i) => (values[i] = 0.5 + x / 16));
      return { values, name: "diverging", title: "Surprisal, B minus A", low: "−8 bits", high: "+8 bits" };
    }
    const [a, b] = runs.map((one) => this.weights(one, state.layer, state.head, state.token));
    for (let i = 0; i <= Math.min(state.token, run.length - 1); i++) values[i] = 0.5 + ((b.get(i) ?? 0) - (a.get(i) ?? 0)) / 2;
    return { values, name: "diverging", title: "Attention weight, B minus A", low: "−1", high: "+1" };
  },

  read() {
    const i = state.cursor;
    return runs.map((run) => (i < run.length ? `${run.name}: ${named(run, i)}, ${bits(run.surprisal.values[i])} bits` : `${run.name}: ended before`)).join(". ") + ".";
  },

  start() {
    this.plot = new Plot($("compare-plot"), (x, y, click) => {
      const n = Math.min(...runs.map((run) => run.length)), token = clamp(Math.floor((x / this.plot.canvas.clientWidth) * n), 0, n - 1);
      if (click) set({ token, cursor: token, pinned: true });
      else set(state.pinned ? { cursor: token } : { token }, { announce: false });
    });
    this.table = new Table($("compare-table"));
    this.heads = new Table($("compare-heads"));
    this.keys = new Table($("compare-keys"));
  },

  show() {
    const values = this.difference(), n = values.length, width = Math.min(this.plot.width, n * 24);
    const high = Math.max(4, ...Array.from(values).filter(Number.isFinite).map(Math.abs));
    this.plot.draw(width, 130, "difference", (context, ratio) => drawBars(context, ratio, width, 130, values, { name: "diverging", low: -high, high }));
    this.plot.frame((Math.min(state.token, n - 1) * width) / n, 0, Math.max(width / n, 2), 130);
    this.showPositions();
    this.showHeads();
    this.showKeys();
  },

  showPositions() {
    const longest = Math.max(...runs.map((run) => run.length));
    const first = clamp(state.token - 5, 0, Math.max(longest - 11, 0));
    const rows = [];
    for (let i = first; i < Math.min(first + 11, longest); i++) {
      const [a, b] = runs.map((run) => run.surprisal.values[i] ?? NaN);
      rows.push({ cells: [i, runs[0].pieces[i] ?? "", bits(a), runs[1].pieces[i] ?? "", bits(b), signed(b - a)], current: i === state.token });
    }
    this.table.fill("Side by side, around the selected position", [{ name: "Position", number: true }, { name: "A", piece: true }, { name: "A, bits", number: true },
      { name: "B", piece: true }, { name: "B, bits", number: true }, { name: "B − A", number: true }], rows);
  },

  showHeads() {
    const heads = Array.from({ length: config.n_head }, (_, head) => head);
    const columns = [{ name: "Layer" }, ...heads.map((head) => ({ name: `Head ${head}`, number: true }))];
    const rows = [];
    for (let layer = config.n_layer - 1; layer >= 0; layer--) {
      rows.push({ cells: [layer, ...heads.map((head) => this.distance(layer, head, state.token).toFixed(2))], current: layer === state.layer });
    }
    const after = "0: both attend to the same positions; 1: to none in common.";
    this.heads.fill(`Attention distance of every head at position ${state.token}`, columns, rows, after);
    [...this.heads.body.rows].forEach((tr) => [...tr.cells].slice(1).forEach((td) => painted(td, "blue", Number(td.textContent))));
  },

  showKeys() {
    const [a, b] = runs.map((run) => this.weights(run, state.layer, state.head, state.token));
    const keys = [...new Set([...a.keys(), ...b.keys()])].map((key) => ({ key, a: a.get(key) ?? 0, b: b.get(key) ?? 0 }));
    keys.sort((one, other) => Math.abs(other.b - other.a) - Math.abs(one.b - one.a) || one.key - other.key);
    const rows = keys.slice(0, 8).map(({ key, a: inA, b: inB }) =>
      ({ cells: [key, runs[0].pieces[key] ?? "", percent(inA), runs[1].pieces[key] ?? "", percent(inB), signed(100 * (inB - inA))] }));
    this.keys.fill(`Where attention differs most, layer ${state.layer}, head ${state.head}`, [{ name: "Position", number: true }, { name: "A", piece: true }, { name: "A, weight", number: true },
      { name: "B", piece: true }, { name: "B, weight", number: true }, { name: "B − A, points", number: true }], rows);
  },
};

