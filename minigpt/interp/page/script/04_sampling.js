// Sampling, in float64 as in Python

/** A step's logits in float64, and their order: largest first, of equal ones the larger id first. */
function stepLogits(step) {
  if (!step.sorted) {
    const full = step.logits.ids === undefined;
    const logits = Float64Array.from(full ? step.logits.values : step.logits.values.values);
    const ids = full ? null : step.logits.ids.values;
    const id = (i) => (ids ? ids[i] : i);
    const order = Uint32Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || id(b) - id(a));
    step.sorted = { logits, order, id, tail: full ? null : step.logits };
  }
  return step.sorted;
}

/**
 * ln of the sum of exp(logit / temperature) over the tokens that the page does not hold, which it has as a Chebyshev
 * series in ln(temperature).
 */
function tailMass(tail, temperature) {
  if (!tail?.count) return -Infinity;
  const [low, high] = tail.temperatures.map(Math.log), c = tail.coefficients.values;
  const x = (2 * Math.log(temperature) - low - high) / (high - low);
  let [next, afterNext] = [0, 0];
  for (let i = c.length - 1; i > 0; i--) [next, afterNext] = [2 * x * next - afterNext + c[i], next];
  return tail.top / temperature + x * next - afterNext + c[0];
}

/** Probabilities of the tokens that are still kept; `tail` is the log-sum-exp of those not held. */
function softmax(logits, kept, tail) {
  let top = tail;
  for (let i = 0; i < logits.length; i++) if (kept[i] && logits[i] > top) top = logits[i];
  const p = new Float64Array(logits.length);
  let sum = Math.exp(tail - top);
  for (let i = 0; i < logits.length; i++) if (kept[i]) sum += p[i] = Math.exp(logits[i] - top);
  for (let i = 0; i < logits.length; i++) p[i] /= sum;
  return { p, rest: Math.exp(tail - top) / sum };
}

/**
 * What temperature, top-k and top-p leave of a step, in this order and with Python's ties.
 *
 * Returns the probabilities before, and after each stage, with what it removed; `beyond` says that the kept set reaches
 * tokens that the page does not hold.
 */
function distribution(step, { temperature, topK, topP }) {
  const { logits, order, id, tail } = stepLogits(step);
  const kept = Uint8Array.from(logits, (x) => x > -Infinity);
  let rest = tailMass(tail, 1), others = tail?.count ?? 0, beyond = false;
  let now = softmax(logits, kept, rest);
  const before = now.p, stages = [];
  const scaled = logits.map((x) => x / temperature);
  const take = (name, removed, mass) => {
    now = softmax(scaled, kept, rest);
    stages.push({ name, p: now.p, removed, mass });
  };

  rest = tailMass(tail, temperature);
  take("temperature", 0, 0);
  if (topK > 0) {
    const limit = scaled[order[Math.min(topK, order.length) - 1]];
    beyond = topK > order.length && others > 0;
    let [removed, mass] = [0, 0];
    for (let i = 0; i < scaled.length; i++) {
      if (kept[i] && scaled[i] < limit) [kept[i], removed, mass] = [0, removed + 1, mass + now.p[i]];
    }
    if (!beyond) [removed, mass, others, rest] = [removed + others, mass + now.rest, 0, -Infinity];
    take("top-k", removed, mass);
  } else take("top-k", 0, 0);
  if (topP < 1) {
    // Ascending: the small probabilities add up exactly. The token that crosses 1 - p stays, and so does the last one.
    let [sum, removed, mass] = [now.rest, 0, 0];
    if (others && sum > 1 - topP) beyond = true;
    else {
      [removed, mass, others, rest] = [others, sum, 0, -Infinity];
      for (let i = order.length - 1; i > 0; i--) {
        const token = order[i];
        if (!kept[token]) continue;
        sum += now.p[token];
        if (!(sum <= 1 - topP)) break;
        [kept[token], removed, mass] = [0, removed + 1, mass + now.p[token]];
      }
    }
    take("top-p", removed, mass);
  } else take("top-p", 0, 0);
  beyond ||= others > 0;

  const p = now.p;
  let [count, entropy] = [0, 0];
  for (let i = 0; i < p.length; i++) {
    if (p[i] === 0) continue;
    count += 1;
    entropy -= p[i] * Math.log2(p[i]);
  }
  return { before, stages, p, kept, order, id, count, others, beyond, entropy, rest: now.rest };
}

