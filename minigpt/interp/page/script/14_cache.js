// The view of the KV cache

/** The last token is never read: nothing follows it. */
function lastCacheStep(run) {
  return Math.max(run.generated - 1, 0);
}

const cacheView = {
  id: "cache", title: "KV cache", available: () => true,

  paint(run) {
    const cached = run.prompt_length + state.cacheStep, fresh = state.cacheStep ? cached - 1 : 0;
    const values = Float32Array.from(run.pieces, (_, i) => (i >= cached ? NaN : i >= fresh ? 1 : 0.5));
    return { values, name: "steps", title: "In the cache", low: "before", high: "read in this step", swatches: [0.5, 1] };
  },

  read(run) {
    const cached = run.prompt_length + state.cacheStep;
    const what = state.cacheStep ? `reads ${named(run, cached - 1)}` : `reads the prompt of ${whole(run.prompt_length)} tokens`;
    return `Step ${state.cacheStep} ${what}; keys and values of ${whole(cached)} tokens are in the cache.`;
  },

  start() {
    this.table = new Table($("cache-table"));
    $("cache-step").addEventListener("input", (event) => set({ cacheStep: event.target.valueAsNumber }));
    $("cache-play").addEventListener("click", () => this.play(!this.timer));
    this.rows = Array.from({ length: config.n_layer }, (_, layer) => {
      const [old, fresh, amount] = [el("span", { class: "old" }), el("span", { class: "new" }), el("span", { class: "amount" })];
      $("cache-bars").append(el("div", { class: "layer-bar" }, el("span", {}, `layer ${layer}`), el("span", { class: "room" }, old, fresh), amount));
      return { old, fresh, amount };
    });
  },

  play(on) {
    clearInterval(this.timer);
    this.timer = 0;
    $("cache-play").textContent = on ? "Pause" : "Play";
    $("cache-play").setAttribute("aria-pressed", String(on));
    if (!on) return;
    if (state.cacheStep >= lastCacheStep(runs[state.run])) set({ cacheStep: 0 });
    this.timer = setInterval(() => {
      if (state.view !== "cache" || state.cacheStep >= lastCacheStep(runs[state.run])) return this.play(false);
      set({ cacheStep: state.cacheStep + 1 }, { announce: false });
      return undefined;
    }, 500);
  },

  show(run) {
    const steps = lastCacheStep(run), each = config.cache_bytes;
    const now = run.prompt_length + state.cacheStep, added = state.cacheStep ? 1 : run.prompt_length;
    $("cache-step").max = steps;
    $("cache-step").value = state.cacheStep;
    $("cache-step").disabled = $("cache-play").disabled = steps === 0;
    $("cache-output").textContent = `${state.cacheStep} of ${steps}`;
    for (const { old, fresh, amount } of this.rows) {
      old.style.width = `${(100 * (now - added)) / (run.prompt_length + steps)}%`;
      fresh.style.width = `${(100 * added) / (run.prompt_length + steps)}%`;
      amount.textContent = bytes(now * each);
    }
    const layers = config.n_layer;
    const rows = [["before", now - added], ["read in this step", added], ["after", now]].map(([name, count]) => ({
      current: name === "after", cells: [name, whole(count), bytes(count * each), bytes(count * each * layers), percent(count / config.n_positions)] }));
    this.table.fill(`Step ${state.cacheStep}: ${state.cacheStep ? `reads ${named(run, now - 1)}` : "reads the prompt"}`,
      [{ name: "Cache" }, { name: "Tokens", number: true }, { name: "Each layer", number: true }, { name: `All ${layers} layers`, number: true }, { name: "Of the context length", number: true }],
      rows, `One token takes ${whole(each)} bytes in each layer: its key and its value. The last token of a text is never read.`);
  },
};

