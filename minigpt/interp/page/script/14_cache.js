// The view of the KV cache

/** The last token is never read: nothing follows it. */
function lastCacheStep(run) {
  return Math.max(run.generated - 1, 0);
}

/** How many tokens are in the cache after the selected step, and how many of them it added. */
function cacheNow(run) {
  return { held: run.prompt_length + state.cacheStep, added: state.cacheStep ? 1 : run.prompt_length };
}

const cacheView = {
  id: "cache", title: "KV cache", available: () => true,

  paint(run) {
    const { held, added } = cacheNow(run);
    const values = Float32Array.from(run.pieces, (_, i) => (i >= held ? NaN : i >= held - added ? 1 : 0.5));
    return { values, name: "steps", title: "In the cache", low: "before", high: "read in this step", swatches: [0.5, 1] };
  },

  read(run) {
    const { held } = cacheNow(run);
    return `Step ${state.cacheStep} ${this.reads(run)}; keys and values of ${whole(held)} tokens are in the cache.`;
  },

  reads(run) {
    const { held, added } = cacheNow(run);
    return state.cacheStep ? `reads ${named(run, held - 1)}` : `reads the prompt of ${whole(added)} tokens`;
  },

  start() {
    this.table = new Table($("cache-table"));
    $("cache-step").addEventListener("input", (event) => set({ cacheStep: event.target.valueAsNumber }));
    $("cache-play").addEventListener("click", () => this.play(!this.timer));
    const part = (kind) => el("span", { class: kind });
    this.layers = Array.from({ length: config.n_layer }, (_, layer) => {
      const [old, fresh, amount] = [part("old"), part("new"), part("amount")];
      const room = el("span", { class: "room" }, old, fresh);
      $("cache-bars").append(el("div", { class: "layer-bar" }, el("span", {}, `layer ${layer}`), room, amount));
      return { old, fresh, amount };
    });
  },

  /** Goes through the steps by itself, from the beginning if it is at the end. */
  play(on) {
    clearInterval(this.timer);
    this.timer = 0;
    $("cache-play").textContent = on ? "Pause" : "Play";
    $("cache-play").setAttribute("aria-pressed", String(on));
    if (!on) return;
    const atEnd = () => state.cacheStep >= lastCacheStep(runs[state.run]);
    if (atEnd()) set({ cacheStep: 0 });
    this.timer = setInterval(() => {
      if (state.view !== "cache" || atEnd()) this.play(false);
      else set({ cacheStep: state.cacheStep + 1 }, { announce: false });
    }, 500);
  },

  show(run) {
    const steps = lastCacheStep(run), { held, added } = cacheNow(run);
    $("cache-step").max = steps;
    $("cache-step").value = state.cacheStep;
    $("cache-step").disabled = $("cache-play").disabled = steps === 0;
    $("cache-output").textContent = `${state.cacheStep} of ${steps}`;
    for (const { old, fresh, amount } of this.layers) {
      old.style.width = `${(100 * (held - added)) / (run.prompt_length + steps)}%`;
      fresh.style.width = `${(100 * added) / (run.prompt_length + steps)}%`;
      amount.textContent = bytes(held * config.cache_bytes);
    }
    this.showTable(run, held, added);
  },

  showTable(run, held, added) {
    const each = config.cache_bytes, layers = config.n_layer;
    const line = (name, count, current = false) => {
      const sizes = [bytes(count * each), bytes(count * each * layers), percent(count / config.n_positions)];
      return { cells: [name, whole(count), ...sizes], current };
    };
    const rows = [line("before", held - added), line("read in this step", added), line("after", held, true)];
    const columns = [asText("Cache"), asNumber("Tokens"), asNumber("Each layer"), asNumber(`All ${layers} layers`),
      asNumber("Of the context length")];
    const after = `One token takes ${whole(each)} bytes in each layer: its key and its value. `
      + "The last token of a text is never read.";
    this.table.fill(`Step ${state.cacheStep} ${this.reads(run)}`, columns, rows, after);
  },
};

