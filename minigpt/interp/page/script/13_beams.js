// The view of beams

const beamsOf = (run) => run.beams ?? null;

const beamsView = {
  id: "beams", title: "Beams", available: () => runs.some((run) => beamsOf(run)),
  paint: surprisalPaint,
  read: (run) => `${named(run, state.cursor)}: ${surprisalText(run, state.cursor)}`,

  start() {
    this.table = new Table($("beam-table"));
    $("beam-step").addEventListener("input", (event) => set({ beamStep: event.target.valueAsNumber }));
  },

  /** The nodes of the search: { column, row, text, score, reason, parent }, the prompt first. */
  nodes(run) {
    if (run.beamNodes) return run.beamNodes;
    const root = { column: 0, row: 0, text: "…", score: 0, reason: "", parent: null };
    const nodes = [root];
    let live = [root];
    beamsOf(run).steps.forEach((step, column) => {
      const grown = step.map(([parent, token, score, reason], row) =>
        ({ column: column + 1, row, text: pieceOf(token), score: score ?? -Infinity, reason, parent: live[parent] }));
      nodes.push(...grown);
      live = grown.filter((node) => !node.reason);
    });
    return (run.beamNodes = nodes);
  },

  /** Hypotheses after a step: finished ones, and those that go on; best first. */
  hypotheses(run, step) {
    return this.nodes(run).filter((node) => (node.reason ? node.column <= step : node.column === step)).sort((a, b) => b.score - a.score);
  },

  show(run) {
    const lattice = beamsOf(run);
    $("beam-picture").hidden = $("beam-table").hidden = !lattice;
    $("beam-step").disabled = !lattice;
    if (!lattice) return void ($("beam-output").textContent = "this run had no beams");
    $("beam-step").max = lattice.steps.length;
    $("beam-step").value = state.beamStep;
    $("beam-output").textContent = `${state.beamStep} of ${lattice.steps.length}`;
    const hypotheses = this.hypotheses(run, state.beamStep);
    const path = new Set();
    const finished = hypotheses.filter((node) => node.reason);
    for (let node = state.beamStep === lattice.steps.length && finished.length ? finished[0] : hypotheses[0]; node; node = node.parent) path.add(node);
    this.draw(run, path);
    const text = (node) => (node.parent ? text(node.parent) + node.text : "");
    const rows = hypotheses.map((node) => ({ cells: [plain(text(node)), signed(node.score, 3), node.reason ? `finished: ${node.reason}` : "goes on"], current: path.has(node) }));
    this.table.fill(`Hypotheses after step ${state.beamStep}`, [{ name: "Text", piece: true }, { name: "Score", number: true }, { name: "State" }], rows);
    return undefined;
  },

  draw(run, path) {
    const key = `${run.number} ${state.beamStep}`;
    if (key === this.key) return;
    this.key = key;
    const nodes = this.nodes(run), measure = document.createElement("canvas").getContext("2d");
    measure.font = canvasFont(14);
    const label = (node) => [...(node.reason ? `${node.text} ■` : node.text)].slice(0, 24).join("");
    const wide = [];
    for (const node of nodes) wide[node.column] = Math.max(wide[node.column] ?? 0, measure.measureText(label(node)).width * 1.08);
    const left = [8];
    for (const width of wide) left.push(left.at(-1) + width + 40);
    const y = (node) => 18 + node.row * 26;
    const picture = svg("svg", { class: "beams", role: "img", width: left.at(-1), height: 40 + 26 * Math.max(...nodes.map((node) => node.row)),
      "aria-label": "The beams step by step. The table below lists the same hypotheses." });
    for (const node of [...nodes].sort((a, b) => path.has(a) - path.has(b))) {
      const kind = [path.has(node) && "best", node.column > state.beamStep && "later"].filter(Boolean).join(" ") || undefined;
      if (node.parent) {
        const [x0, x1] = [left[node.parent.column] + measure.measureText(label(node.parent)).width * 1.08 + 4, left[node.column] - 4];
        const middle = (x0 + x1) / 2;
        picture.append(svg("path", { class: kind, d: `M${x0},${y(node.parent)} C${middle},${y(node.parent)} ${middle},${y(node)} ${x1},${y(node)}` }));
      }
      picture.append(svg("text", { class: kind, x: left[node.column], y: y(node) + 5 }, label(node)));
    }
    $("beam-picture").replaceChildren(picture);
  },
};

