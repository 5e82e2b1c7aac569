// The data

const ARRAYS = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array, float64: Float64Array,
};

/**
 * Unpacks numbers: base64 of zlib of byte planes, the lowest byte of every number, then the next of every number, ...
 * The result is { shape, values }.
 */
async function unpacked(packed) {
  const text = atob(packed.data);
  const compressed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) compressed[i] = text.charCodeAt(i);
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const kind = ARRAYS[packed.dtype], width = kind.BYTES_PER_ELEMENT, n = planes.length / width;
  const bytes = new Uint8Array(planes.length);
  for (let byte = 0; byte < width; byte++) for (let i = 0; i < n; i++) bytes[i * width + byte] = planes[byte * n + i];
  return { shape: packed.shape, values: new kind(bytes.buffer) };
}

/** The data with every packed array in it unpacked. */
async function unpackedAll(value) {
  if (Array.isArray(value)) return Promise.all(value.map(unpackedAll));
  if (value === null || typeof value !== "object") return value;
  if (typeof value.data === "string" && value.dtype in ARRAYS) return unpacked(value);
  const entries = await Promise.all(Object.entries(value).map(async ([k, v]) => [k, await unpackedAll(v)]));
  return Object.fromEntries(entries);
}

let data, config, runs, vocabulary;

const pieceOf = (id) => (id === null ? "–" : vocabulary.get(String(id)) ?? `#${id}`);
const spoken = (piece) => piece.replaceAll("·", " ").replaceAll("⏎", " line break ").trim() || "space";

/** A token by its position and its piece, and the character of which it is a part. */
function named(run, i) {
  const character = run.characterOf.get(i);
  return `${i} “${run.pieces[i]}”` + (character ? ` (a part of ${character.shown})` : "");
}

/** A character that may be shown: neither one that turns the writing round nor half of one. */
const visible = (character) =>
  /[\p{C}\p{Z}\p{M}]/u.test(character) ? `U+${character.codePointAt(0).toString(16).toUpperCase()}` : character;

/** Shown pieces as running text. */
const plain = (text) => text.replaceAll("·", " ").replaceAll(/[⏎\s]+/g, " ").trim();

/** At most so many characters of a text, up to the end of a word. */
function shortened(text, most) {
  const characters = [...text];
  return characters.length <= most ? text : characters.slice(0, most).join("").replace(/\s+\S*$/, "") + " …";
}

/** What a run has beside the data: its number, name, and the start of its text. */
function prepared(run, number) {
  run.number = number;
  run.name = "AB"[number];
  run.length = run.tokens.length;
  run.generated = run.length - run.prompt_length;
  run.opening = shortened(plain(run.pieces.slice(0, run.prompt_length).join("")), 100);
  run.stepAt = new Map(run.steps.map((step) => [step.position, step]));
  run.characterOf = new Map();
  for (const [first, last, text] of run.characters) {
    const character = { first, last, shown: visible(text) };
    for (let i = first; i <= last; i++) run.characterOf.set(i, character);
  }
  const surprisal = Array.from(run.surprisal.values).filter(Number.isFinite);
  run.meanSurprisal = surprisal.reduce((sum, x) => sum + x, 0) / surprisal.length;
  return run;
}

/** The keys that a query attends to, largest first: [{ key, weight }], and the share of the row that is kept. */
function attentionRow(run, layer, head, query) {
  const { kept, index, weight, scale, mass, norms } = run.attention;
  const row = (layer * config.n_head + head) * run.length + query;
  const unit = scale.values[row] / 65535 / 255;
  const keys = [];
  for (let i = row * kept; i < (row + 1) * kept; i++) {
    const key = index.values[i];
    if (key > query || (state.hideFirst && key === 0)) continue; // 65535: no key
    keys.push({ key, weight: weight.values[i] * unit });
  }
  if (state.weighting === "value") {
    const base = row - query;
    for (const entry of keys) entry.weight *= norms.norm.values[base + entry.key];
    const sum = keys.reduce((total, entry) => total + entry.weight, 0) || 1;
    for (const entry of keys) entry.weight /= sum;
    keys.sort((a, b) => b.weight - a.weight);
  }
  return { keys, mass: mass.values[row] / 255 };
}

/** The row of the lens that shows what leaves a layer; the first one shows the embedding. */
const lensRow = (layer) => layer + 1;
const rowName = (row) => (row === 0 ? "embedding" : `layer ${row - 1}`);

/** The last token of a full context is shown and was never read: nothing is known of it. */
const isUnread = (run, position) => position >= run.read;
const UNREAD = "was not read: it lies beyond the context length.";

/** What a lens says at a row and a position. */
function lensAt(run, row, position) {
  const { kept, ids, probability, rank, entropy, kl } = run.lens;
  const at = row * run.length + position;
  if (isUnread(run, position)) return { top: [{ id: null, probability: NaN }], rank: NaN, entropy: NaN, kl: NaN };
  const top = [];
  for (let i = at * kept; i < (at + 1) * kept; i++) {
    top.push({ id: ids.values[i], probability: probability.values[i] });
  }
  const following = rank.values[at] || NaN; // 0: nothing follows
  return { top, rank: following, entropy: entropy.values[at], kl: kl.values[at] };
}

/** The model's own prediction after a position: the last row of the lens. */
const predictionAfter = (run, position) => lensAt(run, config.n_layer, position);

