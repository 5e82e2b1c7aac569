"use strict";
// The script of the page of `minigpt explore`: these files one after the other, no library, no request.
// Text of the model enters the document by textContent alone.

// Elements and numbers

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes (functions become listeners) and children (strings become text). */
function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** A probability as a percentage with at least two significant digits; never 100 for less than 1. */
function percent(p) {
  if (!Number.isFinite(p)) return "–";
  const share = 100 * p;
  if (share === 0 || share === 100) return `${share}%`;
  if (share < 0.01) return "<0.01%";
  if (share > 99.9) return ">99.9%";
  return `${share.toFixed(share < 1 ? 2 : share < 99 ? 1 : 2)}%`;
}

const bits = (x) => (Number.isFinite(x) ? x.toFixed(Math.abs(x) < 100 ? 2 : 1) : "–");

/** A number with its sign: a difference, or a score. */
function signed(x, digits = 2) {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(x).toFixed(digits);
  return (Number(size) === 0 ? "" : x > 0 ? "+" : "−") + size;
}

const whole = (n) => n.toLocaleString("en");

function bytes(n) {
  const unit = n < 1e3 ? "B" : n < 1e6 ? "kB" : "MB";
  const value = n / { B: 1, kB: 1e3, MB: 1e6 }[unit];
  return `${unit === "B" ? value : value.toFixed(value < 10 ? 2 : 1)} ${unit}`;
}

