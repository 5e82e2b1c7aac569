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

  /** The nodes of the search, the prompt first: { column, row, text, score, reason, parent }. */
  nodes(run) {
    if (run.beamNodes) return run.beamNodes;
    const nodes = [{ column: 0, row: 0, text: "…", score: 0, reason: "", parent: null }];
    let live = [...nodes]; // those that went on, which the next step counts
    beamsOf(run).steps.forEach((step, i) => {
      const grown = step.map(([parent, token, score, reason], row) =>
        ({ column: i + 1, row, text: pieceOf(token), score: score ?? -Infinity, reason, parent: live[parent] }));
      nodes.push(...grown);
      live = grown.filter((node) => !node.reason);
    });
    run.beamNodes = nodes;
    return nodes;
  },

  /** Hypotheses after a step, best first: those that go on, and all that were finished by then. */
  hypotheses(run, step) {
    const there = this.nodes(run).filter(({ reason, column }) => (reason ? column <= step : column === step));
    return there.sort((a, b) => b.score - a.score);
  },

  show(run) {
    const beams = beamsOf(run);
    $("beam-picture").hidden = $("beam-table").hidden = !beams;
    $("beam-step").disabled = !beams;
    $("beam-output").textContent = beams ? `${state.beamStep} of ${beams.steps.length}` : "this run had no beams";
    if (!beams) return;
    $("beam-step").max = beams.steps.length;
    $("beam-step").value = state.beamStep;
    const hypotheses = this.hypotheses(run, state.beamStep);
    const ended = state.beamStep === beams.steps.length;
    const best = (ended && hypotheses.find((node) => node.reason)) || hypotheses[0];
    const path = new Set();
    for (let node = best; node; node = node.parent) path.add(node);
    this.draw(run, path);
    const text = (node) => (node.parent ? text(node.parent) + node.text : "");
    const rows = hypotheses.map((node) => ({
      cells: [plain(text(node)), signed(node.score, 3), node.reason ? `finished: ${node.reason}` : "goes on"],
      current: node === best,
    }));
    this.table.fill(`Hypotheses after step ${state.beamStep}`, [asPiece("Text"), asNumber("Score"), asText("State")], rows);
  },

  /** One column a step; a curve from each token to the one before it. */
  draw(run, path) {
    const key = `${run.number} ${state.beamStep}`;
    if (key === this.key) return;
    this.key = key;
    const nodes = this.nodes(run), measure = el("canvas").getContext("2d");
    measure.font = canvasFont(14);
    const label = (node) => [...(node.reason ? `${node.text} ■` : node.text)].slice(0, 24).join("");
    const widthOf = (node) => measure.measureText(label(node)).width * 1.08; // bold is wider
    const widths = [];
    for (const node of nodes) widths[node.column] = Math.max(widths[node.column] ?? 0, widthOf(node));
    const left = [8];
    for (const width of widths) left.push(left.at(-1) + width + 40);
    const y = (node) => 18 + node.row * 26;
    const picture = svg("svg", {
      class: "beams", role: "img", width: left.at(-1), height: 22 + Math.max(...nodes.map(y)),
      "aria-label": "The beams step by step. The table below lists the same hypotheses.",
    });
    for (const node of [...nodes].sort((a, b) => path.has(a) - path.has(b))) { // the best path above the others
      const kinds = [path.has(node) && "best", node.column > state.beamStep && "later"];
      const kind = kinds.filter(Boolean).join(" ") || undefined;
      if (node.parent) {
        const [from, to] = [left[node.parent.column] + widthOf(node.parent) + 4, left[node.column] - 4];
        const middle = (from + to) / 2, [above, below] = [y(node.parent), y(node)];
        const d = `M${from},${above} C${middle},${above} ${middle},${below} ${to},${below}`;
        picture.append(svg("path", { class: kind, d }));
      }
      picture.append(svg("text", { class: kind, x: left[node.column], y: y(node) + 5 }, label(node)));
    }
    $("beam-picture").replaceChildren(picture);
    reachable($("beam-picture"));
  },
};

