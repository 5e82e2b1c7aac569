// Controls: tabs, the selection, the theme, and where the page comes from

function makeTabs() {
  const choose = (id) => {
    set({ view: id });
    $(`tab-${id}`).focus();
  };
  for (const view of views) {
    const attributes = { role: "tab", id: `tab-${view.id}`, "aria-controls": `panel-${view.id}` };
    const click = () => choose(view.id);
    $("tabs").append(el("button", { type: "button", ...attributes, hidden: !view.available(), click }, view.title));
  }
  $("tabs").addEventListener("keydown", (event) => {
    const open = views.filter((view) => view.available()), last = open.length - 1;
    const at = open.findIndex((view) => view.id === state.view);
    const next = at < last ? at + 1 : 0, previous = at > 0 ? at - 1 : last;
    const to = { ArrowRight: next, ArrowLeft: previous, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(open[to].id);
  });
}

function makeControls() {
  const on = (id, event, changes) => $(id).addEventListener(event, ({ target }) => set(changes(target)));
  for (let i = 0; i < config.n_layer; i++) $("layer").append(el("option", { value: i }, String(i)));
  for (let i = 0; i < config.n_head; i++) $("head").append(el("option", { value: i }, String(i)));
  on("layer", "change", (target) => ({ layer: Number(target.value) }));
  on("head", "change", (target) => ({ head: Number(target.value) }));
  on("pin", "click", () => ({ pinned: !state.pinned }));
  on("hide-first", "change", (target) => ({ hideFirst: target.checked }));
  for (const name of Object.keys(CHOICES)) on(name, "change", (target) => ({ [name]: target.value }));
  $("token").addEventListener("input", ({ target }) => {
    const token = target.valueAsNumber; // NaN while it is being typed
    if (Number.isFinite(token)) set({ token, cursor: token });
  });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is the state's
    $("views").focus();
  });
  for (const run of runs) {
    const change = () => set({ run: run.number });
    const radio = el("input", { type: "radio", name: "run", value: run.number, change });
    $("runs").append(el("label", {}, radio, el("span", {}, `${run.name}: ${run.opening}`)));
  }
}

/** Brings the controls in line with the state. */
function showControls(run, view) {
  for (const other of views) {
    $(`panel-${other.id}`).hidden = other !== view;
    $(`tab-${other.id}`).setAttribute("aria-selected", String(other === view));
    $(`tab-${other.id}`).tabIndex = other === view ? 0 : -1;
  }
  $("runs").hidden = runs.length < 2 || view === compareView;
  for (const radio of document.querySelectorAll('input[name="run"]')) radio.checked = Number(radio.value) === state.run;
  if (document.activeElement !== $("token")) $("token").value = state.token;
  $("token").max = run.length - 1;
  for (const name of ["layer", "head", ...Object.keys(CHOICES)]) $(name).value = state[name];
  $("hide-first").checked = state.hideFirst;
  $("weighting").disabled = !run.attention.norms; // quantized weights have none
  $("pin").setAttribute("aria-pressed", String(state.pinned));
  $("pin").textContent = state.pinned ? "Pinned" : "Pin";
}

function makeTheme() {
  let stored = "auto";
  try {
    stored = localStorage.getItem("minigpt-theme") ?? "auto";
  } catch {
    // Some browsers give a file no storage.
  }
  const choose = (value) => {
    document.documentElement.dataset.theme = value;
    $("theme").value = value;
  };
  choose(["light", "dark"].includes(stored) ? stored : "auto");
  $("theme").addEventListener("change", (event) => {
    choose(event.target.value);
    try {
      localStorage.setItem("minigpt-theme", event.target.value);
    } catch {
      // As above.
    }
    show();
  });
  systemIsDark.addEventListener("change", show);
  for (const [event, value] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => {
      printing = value;
      show();
    });
  }
}

function makeProvenance() {
  const { model, sha256, command, strategy, seed, versions } = data.provenance;
  const software = Object.entries(versions).map(([name, version]) => `${name} ${version}`).join(", ");
  const how = strategy && (seed === null ? strategy : `${strategy}, random seed ${seed}`);
  const shape = `${config.n_layer} layers, ${config.n_head} heads, context length ${whole(config.n_positions)}, `
    + `vocabulary of ${whole(config.vocab_size)}`;
  const lines = {
    Model: model, "Weights (SHA-256)": sha256, Shape: shape, "Decoding strategy": how, Command: command, Versions: software,
  };
  for (const [name, value] of Object.entries(lines)) if (value) $("origin").append(el("dt", {}, name), el("dd", {}, value));
  const brief = [model && `Model ${model}`, `weights ${sha256.slice(0, 12)}`, how, software];
  $("provenance").textContent = brief.filter(Boolean).join(" · ");
  $("title").textContent = runs[0].opening || data.title;
}

