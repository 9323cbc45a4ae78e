// A block's lists: data-at its offset, data-n bytes and data-u characters per chunk, data-p0.. percent where a chunk of a
// stage begins, data-s surprisal per byte, data-y runs of syntax (characters, kind), data-h chunks before it per stage, data-cut bytes of its first and last chunk outside.
addEventListener("DOMContentLoaded", () => {
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const stages = () => document.querySelectorAll("[name=stage]").length - 1 || 1;
  const chosen = (name) => document.querySelector(`[name=${name}]:checked`)?.value;
  const least = document.querySelector("[name=least]");
  const numbers = (text) => text.split(",").map(Number);

  const read = (block) => {
    if (block.known) return block.known;
    const data = block.dataset;
    const n = numbers(data.n);
    const known = {
      text: block.textContent, at: +data.at, n, u: data.u ? numbers(data.u) : n, s: data.s || "", h: numbers(data.h),
      p: Array.from({ length: data.h.split(",").length }, (_, s) => data[`p${s}`].split(",").map((p) => p === "" ? NaN : p / 100)),
      cut: data.cut ? numbers(data.cut) : [0, 0], y: data.y ? numbers(data.y) : null,
    };
    return (block.known = known);
  };
  const bits = (known, from, to) => {
    let sum = 0;
    for (let i = from; i < to; i++) sum += DIGITS.indexOf(known.s[i]) / 4;
    return sum;
  };

  const words = (span, text) => {
    for (const part of text.split(/(\n|\t)/)) {
      if (part === "\n" || part === "\t") {
        const mark = document.createElement("u");
        mark.textContent = part === "\n" ? "↵" : "→";
        span.append(mark, part);
      } else if (part) span.append(part);
    }
  };

  // The text from character `at` on, where `run` is the run of syntax that it begins in; tells where the next one does.
  const coloured = (span, text, known, at, run) => {
    if (!known.y) { words(span, text); return run; }
    let from = 0;
    while (from < text.length) {
      while (run.end <= at + from) run = { i: run.i + 2, end: run.end + known.y[run.i + 2] };
      const to = Math.min(text.length, run.end - at);
      const kind = known.y[run.i + 1];
      let into = span;
      if (kind) {
        into = document.createElement("em");
        into.className = `y${kind}`;
        span.append(into);
      }
      words(into, text.slice(from, to));
      from = to;
    }
    return run;
  };

  const paint = (block) => {
    const known = read(block);
    const stage = chosen("stage") ?? "all";
    const shown = stage === "all" ? known.p.map((_, s) => s) : [+stage];
    const strength = chosen("strength");
    const limit = least.value / 100;
    // A chunk of a stage begins where p is known for it and large enough in it and in all stages before.
    const begins = (s, i) => { for (let k = 0; k <= s; k++) if (!(known.p[k][i] >= limit)) return false; return true; };
    const hue = known.h.slice();
    const root = document.createDocumentFragment();
    const open = [];
    let byte = 0, letter = 0, span = null, run = known.y && { i: 0, end: known.y[0] };
    for (let i = 0; i < known.n.length; i++) {
      for (let level = shown.length - 1; level >= 0; level--) {
        const s = shown[level];
        const starts = begins(s, i);
        if (!starts && i > 0) continue;
        if (starts) hue[s]++;
        open.length = Math.min(open.length, shown.length - 1 - level);
        const next = document.createElement("span");
        next.className = `c${(hue[s] + 3 + 2 * level) % 4}${level ? " outer" : ""}`;
        if (level) next.style.setProperty("--n", level);
        (open.at(-1) ?? root).append(next);
        open.push(next);
        if (!level) Object.assign((span = next), { block, first: i, byte, bytes: 0, s });
      }
      run = coloured(span, known.text.slice(letter, letter + known.u[i]), known, letter, run);
      letter += known.u[i];
      byte += known.n[i];
      span.bytes += known.n[i];
      span.last = i;
    }
    for (const each of root.querySelectorAll("span:not(.outer)")) {
      const p = known.p[each.s][each.first];
      const by = strength === "p" ? (Number.isNaN(p) ? 0.5 : Math.max(0, p - 0.5) * 2)
        : strength === "s" && known.s ? Math.min(1, bits(known, each.byte, each.byte + each.bytes) / each.bytes / 5) : 0.6;
      each.style.setProperty("--p", by.toFixed(2));
    }
    block.replaceChildren(root);
    block.painted = true;
  };
  const plain = (block) => {
    if (block.painted) block.textContent = block.known.text;
    block.painted = false;
  };

  const inView = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { inView.add(target); paint(target); }
      else { inView.delete(target); plain(target); }
    }
  }, { rootMargin: "1500px" });
  const blocks = document.querySelectorAll(".chunks[data-n]");
  for (const block of blocks) watcher.observe(block);
  if (blocks.length) paint(blocks[0]);
  addEventListener("beforeprint", () => blocks.forEach((block) => block.painted || paint(block)));
  addEventListener("afterprint", () => blocks.forEach((block) => inView.has(block) || plain(block)));
  document.querySelector(".choices").addEventListener("input", () => {
    const value = least.closest("label")?.querySelector("output");
    if (value) value.textContent = (least.value / 100).toFixed(2);
    inView.forEach(paint);
  });
  // A page whose text changes has put another text and its lists into a block.
  addEventListener("redraw", ({ target }) => {
    target.known = null;
    target.describe = describe;
    inView.add(target);
    paint(target);
  });

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const describe = (span) => {
    const known = span.block.known;
    const start = known.at + span.byte - (span.byte ? 0 : known.cut[0]);
    const end = known.at + span.byte + span.bytes + (span.last === known.n.length - 1 ? known.cut[1] : 0);
    const lines = [`bytes ${start.toLocaleString("en")} to ${end.toLocaleString("en")} (${end - start})`];
    known.p.forEach((p, s) => { if (!Number.isNaN(p[span.first])) lines.push(`${stages() > 1 ? `stage ${s}: ` : ""}p ${p[span.first].toFixed(2)}`); });
    if (known.s) {
      const sum = bits(known, span.byte, span.byte + span.bytes);
      lines.push(`${sum.toFixed(1)} bits, ${(sum / span.bytes).toFixed(2)} per byte`);
    }
    const inner = known.u.slice(span.first, span.last + 1).filter((u) => u === 0).length;
    if (inner) lines.push(`${inner} more chunk${inner > 1 ? "s" : ""} inside a character`);
    return lines;
  };
  const LEAF = ".chunks span:not(.outer)";
  const tell = (event) => {
    // Where the text is edited, a field lies over its chunks.
    const under = () => document.elementsFromPoint(event.clientX, event.clientY).map((each) => each.closest(LEAF)).find(Boolean);
    const span = event.target.closest?.(LEAF) ?? (event.target.matches?.("textarea") ? under() : null);
    tip.hidden = !span;
    if (!span) return;
    const known = span.block.known;
    tip.textContent = describe(span).join("\n");
    if (known.s) {
      const bars = document.createElement("div");
      bars.className = "bytes";
      for (let i = span.byte; i < Math.min(span.byte + span.bytes, span.byte + 40); i++) {
        const bar = document.createElement("i");
        bar.style.height = `${2 + 2 * Math.min(12, bits(known, i, i + 1))}px`;
        bars.append(bar);
      }
      tip.append(bars);
    }
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - box.width - 4))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - 10 - box.height : event.clientY + 18}px`;
  };
  document.querySelector("main").addEventListener("pointermove", tell);
  document.querySelector("main").addEventListener("pointerdown", tell);
  document.querySelector("main").addEventListener("pointerleave", () => { tip.hidden = true; });
});
