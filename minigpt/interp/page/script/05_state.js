// State, and its place in the address

const CHOICES = {
  weighting: ["plain", "value"], scale: ["root", "linear", "log"],
  quantity: ["probability", "rank", "entropy", "kl"], difference: ["surprisal", "attention"],
};
let state = {}, defaults = {}, hashTimer = 0, announceTimer = 0;

function startingState() {
  const { temperature, top_k, top_p } = runs[0].sampling;
  return {
    view: "attention", run: 0, token: Math.min(runs[0].prompt_length, runs[0].length - 1), pinned: false,
    layer: config.n_layer >> 1, head: 0, weighting: "plain", scale: "root", hideFirst: false, quantity: "probability",
    difference: "surprisal", temperature, topK: top_k, topP: top_p,
    beamStep: Infinity, cacheStep: 0,
  };
}

/** The state with everything in its range. */
function checked(raw) {
  const s = { ...defaults, ...raw };
  const integer = (value, low, high, otherwise) =>
    Number.isFinite(value) ? clamp(Math.trunc(value), low, high) : otherwise;
  if (!views.some((view) => view.id === s.view && view.available())) s.view = defaults.view;
  s.run = integer(s.run, 0, runs.length - 1, 0);
  const longest = s.view === "compare" ? Math.max(...runs.map((run) => run.length)) : runs[s.run].length;
  s.token = integer(s.token, 0, longest - 1, 0);
  s.cursor = integer(s.cursor, 0, longest - 1, s.token);
  if (!s.pinned) s.cursor = s.token;
  s.layer = integer(s.layer, 0, config.n_layer - 1, 0);
  s.head = integer(s.head, 0, config.n_head - 1, 0);
  s.temperature = Number.isFinite(s.temperature) && s.temperature > 0 ? clamp(s.temperature, 0.1, 2) : 1;
  s.topK = integer(s.topK, 0, config.vocab_size, 0);
  s.topP = Number.isFinite(s.topP) ? clamp(s.topP, 0, 1) : 1;
  s.cacheStep = integer(s.cacheStep, 0, lastCacheStep(runs[s.run]), 0);
  const beamSteps = beamsOf(runs[s.run])?.steps.length ?? 1;
  s.beamStep = integer(s.beamStep, 1, Math.max(beamSteps, 1), Math.max(beamSteps, 1));
  for (const [name, values] of Object.entries(CHOICES)) if (!values.includes(s[name])) s[name] = defaults[name];
  if (!runs[s.run].attention.norms) s.weighting = "plain"; // quantized weights have none
  return s;
}

/**
 * Changes the state and shows it. What the user did by keyboard or a control is announced, and the text scrolls to
 * it; hovering does neither.
 */
function set(changes, { announce = true } = {}) {
  state = checked({ ...state, ...changes });
  show();
  if (announce) for (const strip of strips) strip.reveal();
  clearTimeout(hashTimer);
  hashTimer = setTimeout(writeHash, 150);
  clearTimeout(announceTimer);
  if (announce) announceTimer = setTimeout(() => ($("live").textContent = $("readout").textContent), 250);
}

function writeHash() {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (name !== "cursor" && value !== defaults[name]) parameters.set(name, value === true ? "1" : value);
  }
  try {
    history.replaceState(null, "", `#${parameters}`);
  } catch {
    // A frame of a notebook has no address of its own.
  }
}

/** The state that an address asks for, everything else as at first. */
function readHash(address) {
  const read = { ...defaults, cursor: undefined };
  for (const [name, text] of new URLSearchParams(new URL(address).hash.slice(1))) {
    if (!Object.hasOwn(defaults, name)) continue;
    const kind = typeof defaults[name];
    read[name] = kind === "number" ? Number.parseFloat(text) : kind === "boolean" ? text === "1" : text;
  }
  return read;
}

