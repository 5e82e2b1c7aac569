// The view of surprisal

/** The end of the scale in bits: that of a model without any idea, which takes every token for equally likely. */
const surprisalRange = () => Math.max(8, Math.log2(config.vocab_size));

function surprisalPaint(run) {
  const most = surprisalRange();
  const values = run.surprisal.values.map((x) => x / most);
  return { values, name: "amber", title: "Surprisal", low: "0 bits", high: `${most.toFixed(0)} bits` };
}

function surprisalText(run, i) {
  const x = run.surprisal.values[i];
  return Number.isFinite(x) ? `Surprisal ${bits(x)} bits.` : "No surprisal here.";
}

/** What the model expected in place of a token. */
function expectedText(run, i) {
  if (i === 0) return "";
  const [best] = predictionAfter(run, i - 1).top;
  const share = percent(best.probability);
  return best.id === run.tokens[i] ? `It was the likeliest, ${share}.` : `Likeliest was “${pieceOf(best.id)}” ${share}.`;
}

const surprisalView = {
  id: "surprisal", title: "Surprisal", available: () => true,
  paint: surprisalPaint,
  read: (run) => `${named(run, state.cursor)}: ${surprisalText(run, state.cursor)} ${expectedText(run, state.cursor)}`,

  start() {
    this.plot = new Plot($("surprisal-plot"), (x, y, click) =>
      pointed(this.plot.positionAt(x, runs[state.run].length), click));
    this.table = new Table($("surprisal-table"));
  },

  show(run) {
    const { values } = run.surprisal, n = run.length, mean = run.meanSurprisal;
    const [width, height] = [Math.min(this.plot.width, n * 24), 150];
    const average = `${bits(mean)} bits on average, a perplexity of ${(2 ** mean).toFixed(1)}`;
    $("surprisal-lead").textContent = Number.isFinite(mean)
      ? `How unexpected each token was to the model: ${average}.`
      : "One token alone has no surprisal.";
    const high = values.reduce((most, x) => (x > most ? x : most), 4);
    this.plot.draw(width, height, run.number, (context, ratio) =>
      drawBars(context, ratio, width, height, values, { name: "amber", low: 0, high, line: mean || 0 }));
    this.plot.frame((state.token * width) / n, 0, Math.max(width / n, 2), height);
    this.showTable(run, high);
  },

  showTable(run, high) {
    const { values } = run.surprisal;
    const known = Array.from(values.keys()).filter((i) => Number.isFinite(values[i]));
    const most = known.sort((a, b) => values[b] - values[a] || a - b).slice(0, 10);
    const rows = most.map((i) => ({
      cells: [run.pieces[i], i, [bits(values[i]), values[i] / high], expectedText(run, i)],
      current: i === state.token,
    }));
    const columns = [asPiece("Token"), asNumber("Position"), asBar("Bits"), asText("Expected instead")];
    this.table.fill("The most surprising tokens", columns, rows);
  },
};

