// The view of surprisal

const surprisalRange = () => Math.max(8, Math.log2(config.vocab_size)); // bits; a vocabulary's logarithm is no idea at all

function surprisalPaint(run) {
  const most = surprisalRange();
  return { values: run.surprisal.values.map((x) => x / most), name: "amber", title: "Surprisal", low: "0 bits", high: `${most.toFixed(0)} bits` };
}

const surprisalText = (run, i) =>
  Number.isFinite(run.surprisal.values[i]) ? `Surprisal ${bits(run.surprisal.values[i])} bits.` : "No surprisal here.";

const surprisalView = {
  id: "surprisal", title: "Surprisal", available: () => true,
  paint: surprisalPaint,
  read: (run) => `${named(run, state.cursor)}: ${surprisalText(run, state.cursor)} ${before(run, state.cursor)}`,

  start() {
    this.plot = new Plot($("surprisal-plot"), (x, y, click) => {
      const run = runs[state.run], token = clamp(Math.floor((x / this.plot.canvas.clientWidth) * run.length), 0, run.length - 1);
      if (click) set({ token, cursor: token, pinned: true });
      else set(state.pinned ? { cursor: token } : { token }, { announce: false });
    });
    this.table = new Table($("surprisal-table"));
  },

  show(run) {
    const values = run.surprisal.values, n = run.length, width = Math.min(this.plot.width, n * 24);
    $("surprisal-lead").textContent = Number.isFinite(run.meanSurprisal)
      ? `How unexpected each token was to the model: ${bits(run.meanSurprisal)} bits on average, a perplexity of ${(2 ** run.meanSurprisal).toFixed(1)}.`
      : "One token alone has no surprisal.";
    const high = Math.max(4, ...Array.from(values).filter(Number.isFinite));
    this.plot.draw(width, 150, run.number, (context, ratio) =>
      drawBars(context, ratio, width, 150, values, { name: "amber", low: 0, high, line: run.meanSurprisal || 0 }));
    this.plot.frame((state.token * width) / n, 0, Math.max(width / n, 2), 150);
    const order = Array.from(values.keys()).filter((i) => Number.isFinite(values[i])).sort((a, b) => values[b] - values[a] || a - b).slice(0, 10);
    const rows = order.map((i) => ({ cells: [run.pieces[i], i, [bits(values[i]), values[i] / high], before(run, i)], current: i === state.token }));
    this.table.fill("The most surprising tokens", [{ name: "Token", piece: true }, { name: "Position", number: true }, { name: "Bits", number: true, bar: true }, { name: "Expected instead" }], rows);
  },
};

/** What the model expected in place of a token. */
function before(run, i) {
  if (i === 0) return "";
  const { top } = lensAt(run, run.lens.points.length - 1, i - 1);
  return top[0].id === run.tokens[i] ? `It was the likeliest, ${percent(top[0].probability)}.` : `Likeliest was “${pieceOf(top[0].id)}” ${percent(top[0].probability)}.`;
}

