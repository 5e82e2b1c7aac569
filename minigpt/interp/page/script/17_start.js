// Start

const helpView = {
  id: "help", title: "Help", available: () => true, // its text stands in page.html
  paint: surprisalPaint,
  read: surprisalView.read,
  start() {},
  show() {},
};

// A view says how it colours the text (`paint`: a value from 0 to 1 for each token of a run, and a legend), what it
// reads off for the selected token (`read`), and how its panel is drawn (`show`).
const views = [attentionView, lensView, choicesView, surprisalView, beamsView, cacheView, compareView, helpView];
const FORMAT = "minigpt-page-1";
let strips = [];

/** Brings the page in line with the state. */
function show() {
  const run = runs[state.run], view = views.find(({ id }) => id === state.view);
  showControls(run, view);
  $("count").textContent = countText(run);
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

function countText(run) {
  const parts = `${whole(run.length)} tokens: ${whole(run.prompt_length)} of the prompt, ${whole(run.generated)} generated`;
  return run.dropped ? `${parts}; the oldest ${whole(run.dropped)} of the prompt were left out` : parts;
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

async function start() {
  const packed = JSON.parse($("data").textContent);
  if (packed.format !== FORMAT) throw new Error(`its data is not of the format ${FORMAT}`);
  data = await unpackedAll(packed);
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
  set(readHash(location.href), { announce: false });
  for (const strip of strips) strip.reveal();
  // The event's address: the page's own may be that of the last state again, which is written a little after each change.
  window.addEventListener("hashchange", ({ newURL }) => set(readHash(newURL)));
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

