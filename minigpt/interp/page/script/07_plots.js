// Plots: canvases, hidden from screen readers, each beside a table that says the same

/** A canvas that is drawn anew only when its key changes; a frame over it marks the selection. */
class Plot {
  constructor(container, onPoint) {
    this.container = container;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.markName = el("span", { class: "mark-name", "aria-hidden": "true" });
    this.mark = el("div", { class: "mark", hidden: true }, this.markName);
    container.replaceChildren(this.canvas, this.mark);
    const point = (event) => onPoint?.(event.offsetX, event.offsetY, event.type === "click");
    this.canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && point(event));
    this.canvas.addEventListener("click", point);
  }

  get width() {
    return Math.floor(this.container.parentElement.clientWidth) || 300;
  }

  /** draw(context, pixels per CSS pixel) is called if the key differs from last time's. */
  draw(width, height, key, draw) {
    key = `${key} ${width} ${height} ${theme()}`;
    if (key === this.key) return;
    this.key = key;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    draw(this.canvas.getContext("2d"), ratio);
  }

  /** The position under a point of a picture that is a text from left to right. */
  positionAt(x, n) {
    return clamp(Math.floor((x / this.canvas.clientWidth) * n), 0, n - 1);
  }

  /** Marks a part of the picture, and names it if there is a name. */
  frame(x, y, width, height, name = "") {
    this.mark.hidden = false;
    this.markName.hidden = !name;
    this.markName.textContent = name;
    this.mark.style.transform = `translate(${x - 2}px, ${y - 2}px)`;
    this.mark.style.width = `${width + 4}px`;
    this.mark.style.height = `${height + 4}px`;
  }
}

/** What pointing at a position of a picture does: a click pins it. */
function pointed(token, click) {
  if (click) set({ token, cursor: token, pinned: true });
  else set(state.pinned ? { cursor: token } : { token }, { announce: false });
}

/** A font of the page for a canvas. */
function canvasFont(size, family = "serif") {
  return `${size}px ${getComputedStyle(document.documentElement).getPropertyValue(`--${family}`)}`;
}

/** Every weight of a head on a square of pixels; where several fall on one pixel the largest counts. */
function drawHead(context, left, top, side, run, layer, head) {
  const image = context.createImageData(side, side), pixels = new Uint32Array(image.data.buffer);
  const colours = ramp("blue"), n = run.length;
  const levels = new Int8Array(side * side).fill(-1);
  const edge = (i) => Math.floor((i * side) / n);
  for (let query = 0; query < n; query++) {
    const y0 = edge(query), y1 = Math.max(edge(query + 1), y0 + 1);
    for (let y = y0; y < y1; y++) {
      for (let x = 0; x < Math.max(edge(query + 1), 1); x++) levels[y * side + x] = Math.max(levels[y * side + x], 0);
    }
    for (const { key, weight } of attentionRow(run, layer, head, query).keys) {
      const level = levelOf(scaled(weight)), x0 = edge(key), x1 = Math.max(edge(key + 1), x0 + 1);
      for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) {
        if (level > levels[y * side + x]) levels[y * side + x] = level;
      }
    }
  }
  levels.forEach((level, i) => {
    if (level >= 0) pixels[i] = colours[level].pixel;
  });
  context.putImageData(image, left, top);
}

/** A weight from 0 to 1 on the colour scale that is chosen. */
function scaled(weight) {
  if (state.scale === "linear") return weight;
  if (state.scale === "root") return Math.sqrt(weight);
  return weight > 0 ? Math.max(0, 1 + Math.log10(weight) / Math.log10(255)) : 0;
}

/** One bar a position, from the middle if there are negative ones. */
function drawBars(context, ratio, width, height, values, { name, low, high, line }) {
  const colours = ramp(name), n = values.length, step = width / n;
  context.scale(ratio, ratio);
  const y = (value) => height - 1 - ((value - low) / (high - low)) * (height - 2);
  for (let i = 0; i < n; i++) {
    if (!Number.isFinite(values[i])) continue;
    const level = low < 0 ? 0.5 + values[i] / (2 * high) : 0.35 + (0.65 * values[i]) / high;
    context.fillStyle = colours[Math.max(levelOf(level), 0)].css;
    const from = y(Math.max(low, 0)), to = y(clamp(values[i], low, high));
    const [wide, tall] = [Math.max(step - (step > 4 ? 1 : 0), 0.75), Math.max(Math.abs(from - to), 1)];
    context.fillRect(i * step, Math.min(from, to), wide, tall);
  }
  context.fillStyle = variable("edge");
  context.fillRect(0, y(line ?? 0), width, 1);
  context.fillStyle = variable("soft");
  context.font = canvasFont(11, "sans");
  context.fillText(`${high.toFixed(1)} bits`, 2, 11);
}

