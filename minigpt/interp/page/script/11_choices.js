// The view of choices: alternatives, and what each sampling stage leaves of them

const choicesView = {
  id: "choices", title: "Choices", available: () => runs.some((run) => run.steps.length > 0),
  paint: surprisalPaint,

  read(run) {
    const step = run.stepAt.get(state.cursor);
    if (!step) return `${named(run, state.cursor)} was given in the prompt. ${surprisalText(run, state.cursor)}`;
    const now = distribution(step, state);
    const at = now.order.findIndex((i) => now.id(i) === step.chosen);
    const share = at < 0 ? "is not among the tokens held" : `has ${percent(now.p[now.order[at]])} with these settings`;
    return `${named(run, state.cursor)} ${share}; ${keptText(now)} could be sampled.`;
  },

  start() {
    const slider = (name, label, low, high, step, most) => {
      const send = (event) => Number.isFinite(event.target.valueAsNumber) && set({ [name]: event.target.valueAsNumber });
      this[name] = [
        el("input", { type: "range", id: `slider-${name}`, min: low, max: high, step, input: send }),
        el("input", { type: "number", min: low, max: most, step, input: send, "aria-label": `${label} as a number` }),
      ];
      $("sliders").append(el("div", { class: "slider" }, el("label", { for: `slider-${name}` }, label), ...this[name]));
    };
    slider("temperature", "Temperature", 0.1, 2, 0.05, 2);
    slider("topK", "Top-k (0: off)", 0, Math.min(200, config.vocab_size), 1, config.vocab_size);
    slider("topP", "Top-p (1: off)", 0, 1, 0.01, 1);
    const reset = () => set({ temperature: defaults.temperature, topK: defaults.topK, topP: defaults.topP });
    const off = () => set({ temperature: 1, topK: 0, topP: 1 });
    $("sliders").append(el("p", { class: "options" }, el("button", { type: "button", click: reset }, "As in the run"), el("button", { type: "button", click: off }, "All off")));
    $("sliders").addEventListener("submit", (event) => event.preventDefault());
    this.table = new Table($("choice-table"));
    this.trace = new Table($("trace-table"));
  },

  show(run) {
    for (const name of ["temperature", "topK", "topP"]) {
      for (const input of this[name]) if (document.activeElement !== input || input.valueAsNumber !== state[name]) input.value = state[name];
      this[name][0].setAttribute("aria-valuetext", String(state[name]));
    }
    const step = run.stepAt.get(state.token);
    $("sliders").hidden = $("trace-table").hidden = !step;
    $("choice-note").hidden = true;
    if (!step) return this.showPrompt(run);

    const now = distribution(step, state);
    const stages = now.stages.map(({ name, removed, mass }) => ({
      temperature: `Temperature ${state.temperature}`,
      "top-k": state.topK ? `top-k ${state.topK} removes ${whole(removed)} (${percent(mass)})` : "top-k is off",
      "top-p": state.topP < 1 ? `top-p ${state.topP} removes ${whole(removed)} (${percent(mass)})` : "top-p is off",
    })[name]);
    $("choice-sentence").textContent = `${stages.join("; ")}. ${keptText(now)} left, entropy ${bits(now.entropy)} bits.`;
    this.showNote(step, now, run);
    this.showAlternatives(run, step, now);
    const columns = [{ name: "Stage of the run" }, { name: "Removed", number: true }, { name: "Their probability", number: true }, { name: "Chosen token after it", number: true, bar: true }];
    const rows = step.stages.map(({ stage, removed, mass, probability }) => ({ cells: [stage, whole(removed), percent(mass), [percent(probability), probability]] }));
    $("trace-table").hidden = rows.length === 0;
    this.trace.fill(`What the run did when it chose ${named(run, state.token)}`, columns, rows);
  },

  showPrompt(run) {
    $("choice-sentence").textContent = `${named(run, state.token)} was given in the prompt: no choice was made. Generated tokens are underlined in the text.`;
    if (state.token === 0) return this.table.fill("The first token is predicted by nothing", [{ name: "Token", piece: true }], []);
    const { top } = lensAt(run, run.lens.points.length - 1, state.token - 1);
    const rows = top.map(({ id, probability }) => ({ cells: [pieceOf(id), [percent(probability), probability]], current: id === run.tokens[state.token] }));
    this.table.fill(`What the model would have written instead of ${named(run, state.token)}`, [{ name: "Token", piece: true }, { name: "Probability", number: true, bar: true }], rows);
    return undefined;
  },

  showNote(step, now, run) {
    const notes = [];
    if (step.logits.ids) {
      notes.push(`The page holds the ${whole(now.order.length)} likeliest of ${whole(config.vocab_size)} tokens here, and the mass of the rest at every temperature.`);
      if (now.beyond) notes.push(`With these settings the kept set goes beyond them: ${percent(now.rest)} of the probability lies on tokens not listed, none of which is removed in the numbers here.`);
    }
    const { before: earlier, after: later } = run.sampling;
    if (earlier.length) notes.push(`The probabilities are those after ${earlier.join(", ")}.`);
    if (later.length) notes.push(`The run also had ${later.join(", ")}, which the sliders leave out.`);
    $("choice-note").hidden = notes.length === 0;
    $("choice-note").textContent = notes.join(" ");
  },

  showAlternatives(run, step, now) {
    const columns = [{ name: "Token", piece: true }, { name: "Model", number: true },
      ...["Temperature", "Top-k", "Top-p"].map((name, i) => ({ name, number: true, bar: i === 2 }))];
    const shown = Array.from(now.order.slice(0, 15));
    const chosen = now.order.find((i) => now.id(i) === step.chosen);
    if (chosen !== undefined && !shown.includes(chosen)) shown.push(chosen);
    const rows = shown.map((i) => {
      const after = now.stages.map(({ p }) => (p[i] > 0 || now.kept[i] ? percent(p[i]) : "removed"));
      const isChosen = now.id(i) === step.chosen;
      return { cells: [pieceOf(now.id(i)), percent(now.before[i]), after[0], after[1], [after[2], now.p[i]]], gone: !now.kept[i], current: isChosen, badge: isChosen ? "chosen" : undefined };
    });
    this.table.fill(`Alternatives to ${named(run, state.token)}`, columns, rows, "Probabilities after each stage, renormalised over what it leaves. Listed are the 15 likeliest and the chosen token.");
  },
};

/** How many tokens could be sampled. */
function keptText(now) {
  if (now.others) return `at least ${whole(now.count)} tokens`;
  return now.count === 1 ? "1 token" : `${whole(now.count)} tokens`;
}

