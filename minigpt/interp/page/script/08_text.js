// The text as tokens

/** One run's tokens: a list with one tab stop. */
class Strip {
  constructor(run) {
    this.run = run;
    this.levels = new Int16Array(run.length).fill(-2);
    this.current = this.shown = -1;
    this.name = el("p", { class: "strip-name", hidden: true }, `Run ${run.name}`);
    this.list = el("div", {
      class: run.length > 160 ? "strip long" : "strip", role: "listbox",
      "aria-label": `Text of run ${run.name}: ${run.length} tokens, ${run.prompt_length} of the prompt`,
      pointerover: (event) => this.hovered(event),
      click: (event) => this.clicked(event),
      keydown: (event) => this.pressed(event),
    });
    this.tokens = run.pieces.map((piece, i) => this.made(piece, i));
    this.root = el("div", {}, this.name, this.list);
  }

  made(piece, i) {
    const { run } = this;
    const generated = i >= run.prompt_length;
    const character = run.characterOf.get(i);
    const isFirstGenerated = generated && i === run.prompt_length && i > 0;
    const isPart = character && i > character.first;
    const kinds = ["token", generated && "generated", isFirstGenerated && "boundary", isPart && "part"];
    const origin = (character ? `, a part of ${character.shown}` : "") + (generated ? ", generated" : "");
    const token = el("span", {
      class: kinds.filter(Boolean).join(" "), role: "option", tabindex: "-1", "aria-selected": "false", "data-i": i,
      "aria-label": `${i}: ${spoken(piece)}${origin}`,
      dir: "auto",
    }, piece);
    if (isPart && i === character.last) token.append(el("span", { class: "whole" }, character.shown));
    this.list.append(token);
    if (/⏎$/.test(piece)) this.list.append(el("span", { class: "break", role: "presentation" }));
    return token;
  }

  indexOf(event) {
    const token = event.target.closest(".token");
    return token ? Number(token.dataset.i) : -1;
  }

  hovered(event) {
    const i = this.indexOf(event);
    if (i < 0 || event.pointerType === "touch") return;
    set(state.pinned ? { cursor: i } : { token: i }, { announce: false });
  }

  clicked(event) {
    const i = this.indexOf(event);
    if (i < 0) return;
    set(state.pinned && state.token === i ? { pinned: false } : { token: i, cursor: i, pinned: true });
    this.focus();
  }

  pressed(event) {
    const isBracket = event.key === "[" || event.key === "]"; // which some keyboards have behind AltGr
    if ((event.ctrlKey || event.metaKey || event.altKey) && !isBracket) return;
    const move = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const change = { ArrowUp: { layer: state.layer + 1 }, ArrowDown: { layer: state.layer - 1 },
      "]": { head: state.head + 1 }, "[": { head: state.head - 1 } }[event.key];
    if (move !== undefined) {
      const to = clamp(state.cursor + move, 0, this.run.length - 1);
      set(state.pinned ? { cursor: to } : { token: to });
    } else if (change) set(change);
    else if (event.key === "Enter" || event.key === " ") togglePin();
    else if (event.key === "Escape") set({ token: state.cursor, pinned: false });
    else return;
    event.preventDefault();
    this.focus();
  }

  focus() {
    this.tokens[Math.min(state.cursor, this.run.length - 1)].focus();
  }

  /** Shows values from 0 to 1 as colours; only tokens whose colour changes are touched. */
  paint(values, name) {
    const key = `${name} ${theme()}`;
    if (key !== this.key) this.levels.fill(-2);
    this.key = key;
    for (let i = 0; i < this.tokens.length; i++) {
      const level = levelOf(values[i]);
      if (level === this.levels[i]) continue;
      this.levels[i] = level;
      painted(this.tokens[i], name, values[i]);
      // Where there are no colours, an underline grows with the value, or with its distance from the middle.
      const strength = name === "diverging" ? Math.abs(2 * values[i] - 1) : values[i];
      this.tokens[i].dataset.level = level < 0 ? 0 : Math.ceil(4 * clamp(strength, 0, 1));
    }
  }

  /** Scrolls the text, not the page, so that the cursor can be seen. */
  reveal() {
    if (this.root.hidden) return;
    const token = this.tokens[this.current];
    for (const box of [this.list, $("strips")]) {
      if (box.scrollHeight <= box.clientHeight) continue;
      const [inner, outer] = [token.getBoundingClientRect(), box.getBoundingClientRect()];
      if (inner.top < outer.top) box.scrollTop += inner.top - outer.top - 40;
      else if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom + 40;
    }
  }

  /** Marks the token that is shown, and the one under the cursor. */
  select() {
    const last = this.run.length - 1;
    const [shown, cursor] = [Math.min(state.token, last), Math.min(state.cursor, last)];
    if (this.shown >= 0) {
      this.tokens[this.shown].classList.remove("shown");
      this.tokens[this.shown].setAttribute("aria-selected", "false");
    }
    if (this.current >= 0) {
      this.tokens[this.current].classList.remove("cursor");
      this.tokens[this.current].tabIndex = -1;
    }
    [this.shown, this.current] = [shown, cursor];
    this.tokens[shown].classList.add("shown");
    this.tokens[shown].setAttribute("aria-selected", "true");
    this.tokens[cursor].classList.toggle("cursor", cursor !== shown);
    this.tokens[cursor].tabIndex = 0;
  }
}

function togglePin() {
  set(state.pinned && state.cursor === state.token ? { pinned: false } : { token: state.cursor, pinned: true });
}

