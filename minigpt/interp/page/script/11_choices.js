// The view of choices: alternatives to a generated token, and what each sampling stage leaves of them

const LISTED = 15;
const SLIDERS = ["temperature", "topK", "topP"];

const choicesView = {
  id: "choices", title: "Choices", available: () => runs.some((run) => run.steps.length > 0),
  paint: surprisalPaint,

  read(run) {
    const step = run.stepAt.get(state.cursor), name = named(run, state.cursor);
    if (!step) return `${name} was given in the prompt. ${surprisalText(run, state.cursor)}`;
    const now = distribution(step, state);
    const chosen = now.order.find((i) => now.id(i) === step.chosen);
    const share = chosen === undefined ? "is not among the tokens held" : `has ${percent(now.p[chosen])}`;
    return `With these settings ${name} ${share}; ${keptText(now)} could be sampled.`;
  },

  start() {
    this.inputs = {};
    this.addSlider("temperature", "Temperature", { min: 0.1, max: 2, step: 0.05 }, 2);
    this.addSlider("topK", "Top-k (0: off)", { min: 0, max: Math.min(200, config.vocab_size), step: 1 }, config.vocab_size);
    this.addSlider("topP", "Top-p (1: off)", { min: 0, max: 1, step: 0.01 }, 1);
    const asRun = () => set(Object.fromEntries(SLIDERS.map((name) => [name, defaults[name]])));
    const off = () => set({ temperature: 1, topK: 0, topP: 1 });
    const button = (name, click) => el("button", { type: "button", click }, name);
    $("sliders").append(el("p", { class: "options" }, button("As in the run", asRun), button("All off", off)));
    $("sliders").addEventListener("submit", (event) => event.preventDefault());
    this.table = new Table($("choice-table"));
    this.trace = new Table($("trace-table"));
  },

  /** A slider, and beside it the same number to type, which may go further. */
  addSlider(name, label, range, most) {
    const send = ({ target }) => Number.isFinite(target.valueAsNumber) && set({ [name]: target.valueAsNumber });
    const slider = el("input", { type: "range", id: `slider-${name}`, ...range, input: send });
    const number = el("input", { type: "number", ...range, max: most, "aria-label": `${label} as a number`, input: send });
    this.inputs[name] = [slider, number];
    $("sliders").append(el("div", { class: "slider" }, el("label", { for: slider.id }, label), slider, number));
  },

  show(run) {
    for (const name of SLIDERS) {
      for (const input of this.inputs[name]) if (input.valueAsNumber !== state[name]) input.value = state[name];
    }
    const step = run.stepAt.get(state.token);
    $("sliders").hidden = $("trace-table").hidden = !step;
    $("choice-note").hidden = true;
    if (step) this.showStep(run, step);
    else this.showPrompt(run);
  },

  showStep(run, step) {
    const now = distribution(step, state);
    const [, topK, topP] = now.stages.map(({ removed, mass }) => `removes ${whole(removed)} (${percent(mass)})`);
    $("choice-sentence").textContent = `Temperature ${state.temperature}; `
      + `${state.topK ? `top-k ${state.topK} ${topK}` : "top-k is off"}; `
      + `${state.topP < 1 ? `top-p ${state.topP} ${topP}` : "top-p is off"}. `
      + `${keptText(now)} left, entropy ${bits(now.entropy)} bits.`;
    this.showNote(run, step, now);
    this.showAlternatives(run, step, now);
    this.showTrace(run, step);
  },

  /** What the page holds of this step, and what the sliders leave out. */
  showNote(run, step, now) {
    const notes = [], { before: earlier, after: later } = run.sampling;
    if (step.logits.ids) {
      notes.push(`The page holds the ${whole(now.order.length)} likeliest of ${whole(config.vocab_size)} tokens here, `
        + "and the mass of the rest at every temperature.");
    }
    if (now.beyond) {
      notes.push(`With these settings the kept set goes beyond them: ${percent(now.rest)} of the probability lies on `
        + "tokens that are not listed, none of which is removed in the numbers here.");
    }
    const { temperature } = run.sampling;
    if (temperature < 0.1 || temperature > 2) notes.push(`The run's temperature was ${temperature}, beyond the slider.`);
    if (earlier.length) notes.push(`The probabilities are those after ${earlier.join(", ")}.`);
    if (later.length) notes.push(`The run also had ${later.join(", ")}, which the sliders leave out.`);
    $("choice-note").hidden = notes.length === 0;
    $("choice-note").textContent = notes.join(" ");
  },

  showAlternatives(run, step, now) {
    const listed = Array.from(now.order.slice(0, LISTED));
    const chosen = now.order.find((i) => now.id(i) === step.chosen);
    if (chosen !== undefined && !listed.includes(chosen)) listed.push(chosen);
    const rows = listed.map((i) => {
      const [temperature, topK, topP] = now.stages.map(({ p }) => (p[i] > 0 ? percent(p[i]) : "removed"));
      return {
        cells: [pieceOf(now.id(i)), percent(now.before[i]), temperature, topK, [topP, now.p[i]]],
        gone: now.p[i] === 0, current: i === chosen, badge: i === chosen ? "chosen" : undefined,
      };
    });
    const columns = [asPiece("Token"), asNumber("Model"), asNumber("Temperature"), asNumber("Top-k"), asBar("Top-p")];
    const after = "Probabilities after each stage, renormalised over what it leaves. "
      + `Listed are the ${LISTED} likeliest and the chosen token.`;
    this.table.fill(`Alternatives to ${named(run, state.token)}`, columns, rows, after);
  },

  showTrace(run, step) {
    const line = (name, removed, mass, p) => ({ cells: [name, removed, mass, [percent(p), p]] });
    const rows = [line("model", "–", "–", step.before.probability)];
    for (const { stage, removed, mass, probability } of step.stages) {
      rows.push(line(stage, whole(removed), percent(mass), probability));
    }
    const columns = [asText("Stage"), asNumber("Removed"), asNumber("Their probability"), asBar("Chosen token after it")];
    const { rank, entropy } = step.before;
    const after = `To the model it had rank ${whole(rank)}, in a distribution with an entropy of ${bits(entropy)} bits.`;
    this.trace.fill(`What the run did when it chose ${named(run, state.token)}`, columns, rows, after);
  },

  /** A token of the prompt was not chosen: what the model would have written. */
  showPrompt(run) {
    const name = named(run, state.token);
    $("choice-sentence").textContent = `${name} was given in the prompt: no choice was made. `
      + "Generated tokens are underlined in the text.";
    const columns = [asPiece("Token"), asBar("Probability")];
    if (state.token === 0) return this.table.fill("The first token is predicted by nothing", columns, []);
    const { top } = predictionAfter(run, state.token - 1);
    const rows = top.map(({ id, probability }) =>
      ({ cells: [pieceOf(id), [percent(probability), probability]], current: id === run.tokens[state.token] }));
    return this.table.fill(`What the model would have written instead of ${name}`, columns, rows);
  },
};

/** How many tokens could be sampled. */
function keptText(now) {
  if (now.others) return `at least ${whole(now.count)} tokens`;
  return now.count === 1 ? "1 token" : `${whole(now.count)} tokens`;
}

