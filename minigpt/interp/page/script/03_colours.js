// Colours

const LEVELS = 64;
const RAMPS = {
  light: {
    blue: ["#ffffff", "#cfe0f5", "#6f9fd8", "#1d4f91"],
    amber: ["#ffffff", "#fbe3c0", "#e79a4b", "#933a0b"],
    green: ["#ffffff", "#cfe9dc", "#5fb291", "#0f5c46"],
    diverging: ["#1d4f91", "#8fb3df", "#f3f1eb", "#eaa868", "#933a0b"],
    steps: ["#ffffff", "#cfe0f5", "#f3b27a"],
  },
  dark: {
    blue: ["#1b1e24", "#22406b", "#4f8fd9", "#d5e8ff"],
    amber: ["#1b1e24", "#5a3413", "#c9782f", "#ffe3bf"],
    green: ["#1b1e24", "#174a3c", "#3f9f80", "#d3f7e6"],
    diverging: ["#a9ccff", "#365d94", "#272b33", "#8a4d1a", "#ffc48a"],
    steps: ["#1b1e24", "#22406b", "#a65e22"],
  },
};
const INKS = { light: ["#1c1f24", "#ffffff", "#000000"], dark: ["#e9e7e2", "#14161a", "#ffffff", "#000000"] };

let printing = false;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const chosen = document.documentElement.dataset.theme ?? "auto";
  if (printing) return "light";
  return chosen === "auto" ? (systemIsDark.matches ? "dark" : "light") : chosen;
}

const linear = (byte) => (byte /= 255) <= 0.04045 ? byte / 12.92 : ((byte + 0.055) / 1.055) ** 2.4;
const coded = (x) => Math.round(255 * clamp(x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055, 0, 1));
const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** sRGB -> OKLab, in which equal steps look equal (Ottosson 2020). */
function oklab([r, g, b]) {
  [r, g, b] = [linear(r), linear(g), linear(b)];
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function srgb([L, a, b]) {
  const l = (L + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (L - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (L - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    coded(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s),
    coded(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
    coded(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s),
  ];
}

const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);

/** WCAG's contrast ratio of two colours. */
function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

/** The first ink that can be read on a ground (4.5 : 1), or else the best. */
function inkOn(ground) {
  const inks = INKS[theme()];
  const contrasts = inks.map((ink) => contrast(channels(ink), ground));
  const good = contrasts.findIndex((ratio) => ratio >= 4.6);
  return inks[good >= 0 ? good : contrasts.indexOf(Math.max(...contrasts))];
}

const ramps = new Map();

/** LEVELS colours from the stops of a ramp: [{ css, ink, pixel }]. */
function ramp(name) {
  const key = `${theme()} ${name}`;
  if (!ramps.has(key)) {
    const stops = RAMPS[theme()][name].map((hex) => oklab(channels(hex)));
    const colours = Array.from({ length: LEVELS }, (_, i) => {
      const at = (i / (LEVELS - 1)) * (stops.length - 1);
      const left = Math.min(Math.floor(at), stops.length - 2);
      const rgb = srgb(stops[left].map((x, c) => x + (at - left) * (stops[left + 1][c] - x)));
      const pixel = (255 << 24) | (rgb[2] << 16) | (rgb[1] << 8) | rgb[0];
      return { css: `rgb(${rgb.join(" ")})`, ink: inkOn(rgb), pixel };
    });
    ramps.set(key, colours);
  }
  return ramps.get(key);
}

const levelOf = (x) => (Number.isFinite(x) ? Math.round(clamp(x, 0, 1) * (LEVELS - 1)) : -1);

function painted(node, name, x) {
  const level = levelOf(x);
  node.style.backgroundColor = level < 0 ? "" : ramp(name)[level].css;
  node.style.color = level < 0 ? "" : ramp(name)[level].ink;
  return node;
}

const variable = (name) => {
  // A custom property holds light-dark(...) unresolved; a colour that uses it is resolved.
  const probe = $("live");
  probe.style.color = `var(--${name})`;
  const colour = getComputedStyle(probe).color;
  probe.style.color = "";
  return colour;
};

