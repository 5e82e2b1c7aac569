// Start

// A view says how it colours the text (`paint`: values from 0 to 1 for each token of a run, and a legend), what it reads
// off for the selected token (`read`), and how its panel is drawn (`show`).
const views = [attentionView, lensView, choicesView, surprisalView, beamsView, cacheView, compareView, helpView];
let strips = [];

/** Brings the page in line with the state. */
function show() {
  const run = runs[state.run], view = views.find(({ id }) => id === state.view);
  for (const other of views) {
    $(`panel-${other.id}`).hidden = other !== view;
    const tab = $(`tab-${other.id}`);
    tab.setAttribute("aria-selected", String(other === view));
    tab.tabIndex = other === view ? 0 : -1;
  }
  $("count").textContent = `${whole(run.length)} tokens: ${whole(run.prompt_length)} of the prompt, ${whole(run.generated)} generated`;
  $("runs").hidden = runs.length < 2 || view.id === "compare";
  for (const input of document.querySelectorAll('input[name="run"]')) input.checked = Number(input.value) === state.run;
  if (document.activeElement !== $("token")) $("token").value = state.token;
  $("token").max = run.length - 1;
  for (const name of ["layer", "head", ...Object.keys(CHOICES)]) $(name).value = state[name];
  $("hide-first").checked = state.hideFirst;
  for (const option of $("weighting").options) option.disabled = option.value === "value" && !run.attention.norms;
  $("pin").setAttribute("aria-pressed", String(state.pinned));
  $("pin").textContent = state.pinned ? "Pinned" : "Pin";
  for (const strip of strips) {
    strip.root.hidden = view.id !== "compare" && strip.run !== run;
    strip.name.hidden = view.id !== "compare";
    if (strip.root.hidden) continue;
    const paint = view.paint(strip.run);
    strip.paint(paint.values, paint.name);
    strip.select();
    if (strip.run === run) showLegend(paint);
  }
  $("readout").textContent = view.read(run);
  view.show(run);
}

const GRADIENT = Array.from({ length: 16 }, (_, i) => i / 15);

function showLegend({ title, low, high, name, swatches = GRADIENT }) {
  $("legend").hidden = false;
  $("legend-title").textContent = title;
  $("legend-low").textContent = low;
  $("legend-high").textContent = high;
  const key = `${name} ${swatches.length} ${theme()}`;
  if ($("legend-ramp").dataset.key === key) return;
  $("legend-ramp").dataset.key = key;
  $("legend-ramp").replaceChildren(...swatches.map((x) => painted(el("span"), name, x)));
}

function makeTabs() {
  const choose = (id, focus) => {
    set({ view: id });
    if (focus) $(`tab-${id}`).focus();
  };
  for (const view of views) {
    $("tabs").append(el("button", { type: "button", role: "tab", id: `tab-${view.id}`, "aria-controls": `panel-${view.id}`, hidden: !view.available(), click: () => choose(view.id) }, view.title));
  }
  $("tabs").addEventListener("keydown", (event) => {
    const open = views.filter((view) => view.available());
    const at = open.findIndex((view) => view.id === state.view);
    const to = { ArrowRight: (at + 1) % open.length, ArrowLeft: (at + open.length - 1) % open.length, Home: 0, End: open.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(open[to].id, true);
  });
}

function makeControls() {
  for (let i = 0; i < config.n_layer; i++) $("layer").append(el("option", { value: i }, String(i)));
  for (let i = 0; i < config.n_head; i++) $("head").append(el("option", { value: i }, String(i)));
  $("layer").addEventListener("change", (event) => set({ layer: Number(event.target.value) }));
  $("head").addEventListener("change", (event) => set({ head: Number(event.target.value) }));
  $("token").addEventListener("input", (event) => Number.isFinite(event.target.valueAsNumber) && set({ token: event.target.valueAsNumber, cursor: event.target.valueAsNumber }));
  $("pin").addEventListener("click", () => set(state.pinned ? { pinned: false } : { pinned: true }));
  for (const name of Object.keys(CHOICES)) $(name).addEventListener("change", (event) => set({ [name]: event.target.value }));
  $("hide-first").addEventListener("change", (event) => set({ hideFirst: event.target.checked }));
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    $("views").focus();
  });
  for (const run of runs) {
    const radio = el("input", { type: "radio", name: "run", value: run.number, change: () => set({ run: run.number }) });
    $("runs").append(el("label", {}, radio, el("span", {}, `${run.name}: ${run.opening}`)));
  }
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
  const lines = [["Model", model], ["Weights (SHA-256)", sha256], ["Command", command], ["Decoding strategy", how], ["Versions", software],
    ["Shape", `${config.n_layer} layers, ${config.n_head} heads, context length ${whole(config.n_positions)}, vocabulary ${whole(config.vocab_size)}`]];
  $("provenance").textContent = [model && `Model ${model}`, sha256 && `weights ${sha256.slice(0, 12)}`, how, software].filter(Boolean).join(" · ");
  for (const [name, value] of lines) if (value) $("origin").append(el("dt", {}, name), el("dd", {}, String(value)));
  $("title").textContent = runs[0].opening || data.title;
}

async function start() {
  data = await unpackedAll(JSON.parse($("data").textContent));
  config = data.config;
  vocabulary = new Map(Object.entries(data.vocabulary));
  runs = data.runs.map(prepared);
  defaults = startingState();
  defaults = checked(defaults);
  makeTheme();
  makeTabs();
  makeControls();
  makeProvenance();
  $("main").hidden = false;
  strips = runs.map((run) => new Strip(run));
  $("strips").replaceChildren(...strips.map((strip) => strip.root));
  for (const view of views) view.start();
  set(readHash(), { announce: false });
  window.addEventListener("hashchange", () => set(readHash()));
  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs($("views").clientWidth - width) < 2) return;
    width = $("views").clientWidth;
    show();
  }).observe($("views"));
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  $("failure").hidden = false;
  $("failure").textContent = typeof DecompressionStream === "undefined"
    ? "This browser cannot unpack the page’s data: it needs DecompressionStream (browsers since 2023)."
    : `The page could not be shown: ${error.message}`;
});

