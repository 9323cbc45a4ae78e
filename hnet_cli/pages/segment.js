// A block's lists: data-at its offset, data-n bytes and data-u characters per chunk, data-p0.. percent where a chunk of a
// stage begins, data-s surprisal per byte, data-y runs of syntax (characters, kind), data-h chunks before it per stage, data-cut
// bytes of its first and last chunk outside, data-l number of its first line, data-f features [start, end, kind, strand, name],
// data-b bytes before each line but the first, where some are drawn as escapes.
addEventListener("DOMContentLoaded", () => {
  const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const { unit = "byte", margin = "", full = 5 } = document.body.dataset;
  const edited = document.body.classList.contains("play"); // a field lies over the chunks
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const stages = () => all("[name=stage]").length - 1 || 1;
  const chosen = (name) => find(`[name=${name}]:checked`)?.value;
  const least = find("[name=least]");
  const numbers = (text) => text.split(",").map(Number);
  const number = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const make = (name, kind, words = "") => {
    const element = document.createElement(name);
    if (kind) element.className = kind;
    element.textContent = words;
    return element;
  };
  const bytesOf = (text) => {
    let sum = 0;
    for (const char of text) { const code = char.codePointAt(0); sum += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4; }
    return sum;
  };
  const visible = (text) => text.replaceAll("\r", "␍").replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "␣");

  const parsed = (data, text) => {
    const n = numbers(data.n);
    return {
      text, at: +data.at, n, u: data.u ? numbers(data.u) : n, s: data.s || "", h: numbers(data.h), line: +data.l,
      p: Array.from({ length: data.h.split(",").length }, (_, s) => data[`p${s}`].split(",").map((p) => p === "" ? NaN : p / 100)),
      cut: data.cut ? numbers(data.cut) : [0, 0], y: data.y ? numbers(data.y) : null, f: data.f ? JSON.parse(data.f) : [],
      b: data.b ? numbers(data.b) : null,
    };
  };
  const read = (block) => (block.known ??= parsed(block.dataset, block.textContent));
  const bits = (known, from, to) => {
    let sum = 0;
    for (let i = from; i < to; i++) sum += DIGITS.indexOf(known.s[i]) / 4;
    return sum;
  };
  // A chunk of a stage begins where p is known for it and large enough in it and in all stages before.
  const limit = () => (+least.value <= +least.min ? 0 : least.value / 100);
  const begins = (known, s, i, from) => { for (let k = 0; k <= s; k++) if (!(known.p[k][i] >= from)) return false; return true; };
  const shown = (known) => {
    const stage = chosen("stage") ?? "all";
    return stage === "all" ? known.p.map((_, s) => s) : [Math.min(+stage, known.p.length - 1)];
  };

  // -- the margin, and rows where there are no lines
  let row = 60;
  const column = (c) => `calc(${c}ch + ${Math.floor(c / 10)} * var(--ten))`;
  const fitting = () => {
    const block = find(".chunks[data-n]");
    const probe = make("span", "probe", "0".repeat(100));
    block.append(probe);
    const letter = probe.getBoundingClientRect().width / 100, style = getComputedStyle(block);
    probe.remove();
    const room = (block.clientWidth - parseFloat(style.paddingLeft)) / letter;
    return [60, 30, 20].find((each) => each + each / 10 - 1 <= room) ?? 10;
  };
  const mark = (words) => {
    const place = make("i", "at");
    place.dataset.at = words;
    place.ariaHidden = "true";
    return place;
  };
  const track = (known, from, to, place) => {
    const lanes = [1, -1].map((strand) => known.f.filter((f) => f[0] < to && f[1] > from && (f[3] || 1) === strand));
    lanes.filter((lane) => lane.length).forEach((lane, n) => {
      let free = 0;
      for (const [start, end, kind, strand, name] of lane) {
        const low = Math.max(start, from) - from, high = Math.min(end, to) - from;
        const bar = make("i", `f ${kind}${strand < 0 ? " minus" : ""}`);
        const first = from % row;
        bar.style.cssText = `left:calc(var(--margin) + ${column(first + low)});width:calc(${column(first + high - 1)} - ${column(first + low)} + 1ch);--lane:${n}`;
        place.append(bar);
        if (kind !== "gene" || low < free) continue;
        const told = make("b", strand < 0 ? "minus" : "plus");
        told.append(make("small", "", strand < 0 ? `← ${name}` : strand > 0 ? `${name} →` : name));
        told.style.cssText = `left:calc(var(--margin) + ${column(first + low)});--lane:${n}`;
        if (told.textContent.length * 0.75 <= row - first - low + 1) { place.append(told); free = low + told.textContent.length; }
      }
    });
    return lanes.filter((lane) => lane.length).length;
  };
  // The margin of a block while it is drawn: `before` is called where a letter comes next, at `byte` of the block.
  const margins = (known, size) => {
    let line = known.line, done = -1, lines = 0;
    if (margin === "row") {
      const room = (into, lanes) => { if (lanes) { const strut = make("i", "strut"); strut.style.setProperty("--lanes", lanes); into.append(strut); } };
      return (into, byte) => {
        const at = known.at + byte, c = at % row;
        if (done === at) return;
        done = at;
        if (c && byte) { if (c % 10 === 0) into.append(make("i", "ten")); return; }
        if (byte) into.append(make("br"));
        const place = mark(number(at + 1));
        into.append(place);
        room(into, track(known, at, Math.min(at - c + row, known.at + size), place));
        if (c) { const indent = make("i"); indent.style.cssText = `padding-left:${column(c)}`; into.append(indent); }
      };
    }
    return (into, byte) => {
      if (byte && known.b) byte = known.b[lines++];
      if (margin && byte < size) into.append(mark(margin === "line" ? number(line++) : number(known.at + byte)));
    };
  };

  // -- drawing
  const words = (span, text, byte, next) => {
    if (margin === "row") {
      for (let at = 0; at < text.length;) {
        next(span, byte + at);
        const to = at + 10 - (span.known.at + byte + at) % 10;
        span.append(text.slice(at, to));
        at = to;
      }
      return;
    }
    for (const part of text.split(/(\r\n|[\r\n\t])/)) {
      if (/^[\r\n\t]/.test(part)) {
        span.append(make("u", "", part === "\t" ? "→" : visible(part)), part === "\r\n" ? "\n" : part);
        byte += part.length;
        if (part.endsWith("\n")) next(span, byte);
      } else if (part) { span.append(part); byte += bytesOf(part); }
    }
  };

  // The text from character `at` on, where `run` is the run of syntax that it begins in; tells where the next one does.
  const coloured = (span, text, known, at, run, byte, next) => {
    if (!known.y) { words(span, text, byte, next); return run; }
    let from = 0;
    while (from < text.length) {
      while (run.end <= at + from) run = { i: run.i + 2, end: run.end + known.y[run.i + 2] };
      const to = Math.min(text.length, run.end - at);
      const kind = known.y[run.i + 1];
      let into = span;
      if (kind) span.append((into = make("em", `y${kind}`)));
      words(into, text.slice(from, to), byte, next);
      byte += bytesOf(text.slice(from, to));
      from = to;
    }
    return run;
  };

  const strengthOf = (known, { s, first, byte, bytes }) => {
    const p = known.p[s][first], strength = chosen("strength");
    const by = strength === "p" ? (Number.isNaN(p) ? 0.5 : Math.max(0, p - 0.5) * 2)
      : strength === "s" && known.s ? Math.min(1, bits(known, byte, byte + bytes) / bytes / full) : 0.6;
    return by.toFixed(2);
  };

  // Drawn chunks of the outermost level, with those inside.
  const treeOf = (block, known) => {
    const levels = shown(known).reverse(), from = limit(), tree = [], open = [];
    let letter = 0, byte = 0;
    for (let i = 0; i < known.n.length; i++) {
      for (const [depth, s] of levels.entries()) {
        const own = begins(known, s, i, from); // the first may have begun in the block before
        if (i && !own) continue;
        const inside = depth + 1 < levels.length ? [] : null;
        const chunk = { block, known, s, own, level: levels.length - 1 - depth, first: i, letter, byte, inside, text: "" };
        (depth ? open[depth - 1].inside : tree).push(chunk);
        open[depth] = chunk;
      }
      letter += known.u[i];
      byte += known.n[i];
      for (const chunk of open) Object.assign(chunk, { last: i, units: letter - chunk.letter, bytes: byte - chunk.byte });
    }
    const name = (chunk) => {
      chunk.inside?.forEach(name);
      chunk.text = chunk.inside ? chunk.inside.map((each) => each.text).join("\0") : known.text.slice(chunk.letter, chunk.letter + chunk.units);
    };
    tree.forEach(name);
    return tree;
  };
  const about = (span, { block, known, s, first, last, letter, byte, units, bytes }) => Object.assign(span, { block, known, s, first, last, letter, byte, units, bytes });

  // -- drawing a text that is edited: chunks with the same words keep their elements and their colours
  // Gives chunks the elements of those before, in `place`, and makes elements for the rest.
  const settle = (place, before, now) => {
    let start = 0, end = 0;
    const most = Math.min(before.length, now.length), same = (a, b) => a.text === b.text && a.level === b.level;
    while (start < most && same(before[start], now[start])) start++;
    while (end < most - start && same(before.at(-1 - end), now.at(-1 - end))) end++;
    const gone = before.slice(start, before.length - end), fresh = now.slice(start, now.length - end);
    if (gone.length === 1 && fresh.length === 1 && gone[0].inside && fresh[0].inside) { gone.pop(); fresh.pop(); start++; }
    for (const { span } of gone) span.remove();
    const behind = before[before.length - end]?.span ?? null;
    now.forEach((chunk, i) => {
      const old = i < start ? before[i] : i >= now.length - end ? before[i + before.length - now.length] : null;
      if (old) Object.assign(chunk, { span: old.span, hue: old.hue, by: old.by });
      else place.insertBefore((chunk.span = make("span")), behind);
      if (chunk.inside) settle(chunk.span, old?.inside ?? [], chunk.inside);
      else if (!old) chunk.span.textContent = chunk.text;
    });
  };
  const repaint = (block, known) => {
    const tree = treeOf(block, known);
    if (!block.tree) block.replaceChildren();
    settle(block, block.tree ?? [], tree);
    block.tree = tree;
    for (let row = tree; row.length; row = row.flatMap(({ inside }) => inside ?? [])) {
      let last = 3 + 2 * row[0].level;
      for (const [i, chunk] of row.entries()) {
        const { span, level } = chunk, next = row[i + 1]?.hue, was = chunk.hue;
        if (was === undefined || was === last) chunk.hue = [1, 2].map((step) => (last + step) % 4).find((hue) => hue !== next);
        last = chunk.hue;
        if (was !== last) span.className = `c${last}${level ? " outer" : ""}`;
        if (level) { if (was === undefined) span.style.setProperty("--n", level); continue; }
        const by = strengthOf(known, chunk);
        about(span, chunk);
        if (by !== chunk.by) span.style.setProperty("--p", (chunk.by = by));
      }
    }
    block.painted = true;
    block.classList.add("drawn");
    if (block.beside) compare(block, block.beside);
  };

  const leaves = (block) => block.querySelectorAll("span:not(.outer)");
  const paint = (block) => {
    const known = read(block);
    if (edited) { repaint(block, known); return; }
    const hue = known.h.slice();
    const root = document.createDocumentFragment();
    const next = margins(known, known.n.reduce((sum, n) => sum + n, 0));
    let run = known.y && { i: 0, end: known.y[0] };
    const draw = (into, chunk) => {
      const { s, own, level, inside, text, letter, byte } = chunk;
      if (own) hue[s]++;
      if (margin === "row") next(into, byte);
      const span = make("span", `c${(hue[s] + 3 + 2 * level) % 4}${level ? " outer" : ""}`);
      into.append(span);
      if (level) {
        span.style.setProperty("--n", level);
        for (const each of inside) draw(span, each);
        return;
      }
      about(span, chunk).style.setProperty("--p", strengthOf(known, chunk));
      run = coloured(span, text, known, letter, run, byte, next);
    };
    if (margin !== "row") next(root, 0);
    for (const chunk of treeOf(block, known)) draw(root, chunk);
    block.replaceChildren(root);
    block.classList.add("drawn");
    block.painted = true;
    if (block.beside) compare(block, block.beside);
    if (current?.block === block) point(current.byte);
  };
  const plain = (block) => {
    if (block.painted) block.textContent = block.known.text;
    block.classList.remove("drawn");
    block.painted = false;
  };

  // -- two models
  const starts = (block) => {
    const known = read(block), s = shown(known)[0], from = limit(), found = new Set();
    let at = known.at;
    known.n.forEach((n, i) => { if (begins(known, s, i, from)) found.add(at); at += n; });
    return found;
  };
  // Marks the chunks of a block that begin where none of the other does; tells boundaries that both have, and its own alone.
  const compare = (block, other) => {
    const mine = starts(block), theirs = starts(other);
    if (block.painted) for (const span of leaves(block)) { const at = block.known.at + span.byte; span.classList.toggle("apart", mine.has(at) && !theirs.has(at)); }
    const alone = [...mine].filter((at) => !theirs.has(at)).sort((a, b) => a - b);
    return { both: mine.size - alone.length, alone };
  };
  const blocks = all(".chunks[data-n]"), main = blocks.filter((block) => !block.classList.contains("other"));
  for (const pair of all(".pair")) {
    const [a, b] = pair.children;
    a.beside = b;
    b.beside = a;
  }

  const inView = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) { inView.add(target); target.painted || paint(target); }
      else { inView.delete(target); target === current?.block || plain(target); }
    }
  }, { rootMargin: "1500px" });

  // -- the figures, which follow the slider
  const bars = (lengths) => {
    const sizes = [...lengths.keys()].sort((a, b) => a - b), total = [...lengths.values()].reduce((a, b) => a + b, 0);
    if (!total) return [[], ""];
    let most = 1, seen = 0;
    for (const size of sizes) { seen += lengths.get(size); most = size; if (seen >= 0.995 * total) break; }
    most = Math.min(most, 32);
    const counts = Array.from({ length: most }, (_, n) => lengths.get(n + 1) ?? 0);
    counts[most - 1] = sizes.reduce((sum, size) => sum + (size >= most ? lengths.get(size) : 0), 0);
    const longest = `${most}${sizes.at(-1) === most ? "" : " or more"}`, highest = Math.max(...counts);
    return [counts.map((count, n) => {
      const bar = make("i"), name = n + 1 < most ? `${n + 1}` : longest;
      bar.style.height = `${(100 * count / highest).toFixed(1)}%`;
      bar.title = `${name} ${unit}${name === "1" ? "" : "s"}: ${number(count)} (${(100 * count / total).toFixed(1)}%)`;
      return bar;
    }), longest];
  };
  const tell = (cards, stage) => {
    for (const [s, each] of stage.entries()) {
      const card = cards[s];
      card.querySelector(".chunks-of").textContent = number(each.chunks);
      card.querySelector(".mean").textContent = (each.total / Math.max(1, each.chunks)).toFixed(2);
      const [drawn, longest] = bars(each.lengths);
      card.querySelector(".bars")?.replaceChildren(...drawn);
      if (card.querySelector(".longest")) card.querySelector(".longest").textContent = longest;
      const top = [...each.texts].sort((a, b) => b[1] - a[1]).slice(0, 40);
      card.querySelector(".top").replaceChildren(...top.map(([text, count], n) => {
        const item = make("li");
        item.append(make("code", `c${n % 4}`, visible(text)), ` ${number(count)}`);
        return item;
      }));
    }
  };
  const figures = async (cards, stopped) => {
    const from = limit();
    const stage = cards.map(() => ({ chunks: 0, total: 0, length: 0, text: "", lengths: new Map(), texts: new Map() }));
    const sum = { both: 0, alone: 0, there: 0, chunks: 0, total: 0 };
    const add = (map, key) => map.set(key, (map.get(key) ?? 0) + 1);
    const close = (each) => {
      if (each.length) { add(each.lengths, each.length); if (each.text && each.text.length <= 48) add(each.texts, each.text); }
      each.length = 0;
      each.text = "";
    };
    for (const [b, block] of main.entries()) {
      if (b % 16 === 15) { await new Promise((ready) => setTimeout(ready)); if (stopped()) return; }
      const known = read(block);
      let letter = 0;
      for (let i = 0; i < known.n.length; i++) {
        const text = known.text.slice(letter, letter + known.u[i]);
        letter += known.u[i];
        for (const [s, each] of stage.entries()) {
          if (begins(known, s, i, from)) { close(each); each.chunks++; }
          each.length += known.n[i];
          each.total += known.n[i];
          if (each.text.length <= 48) each.text += text;
        }
      }
      if (!block.beside) continue;
      const [here, there] = [compare(block, block.beside), compare(block.beside, block)];
      sum.both += here.both;
      sum.alone += here.alone.length;
      sum.there += there.alone.length;
      sum.total += known.n.reduce((a, n) => a + n, 0);
    }
    stage.forEach(close);
    tell(cards, stage);
    const first = stage[chosen("stage") > 0 ? chosen("stage") : 0];
    find("#mean").textContent = `${(first.total / Math.max(1, first.chunks)).toFixed(2)} ${unit}s a chunk`;
    if (!sum.total) return;
    const put = { ".both": sum.both, ".alone": sum.alone, ".there": sum.there, ".other-chunks": sum.both + sum.there };
    for (const [name, value] of Object.entries(put)) find(`#beside ${name}`).textContent = number(value);
    find("#beside .other-mean").textContent = (sum.total / Math.max(1, sum.both + sum.there)).toFixed(2);
  };
  let turn = 0;
  const updated = () => {
    const mine = ++turn;
    setTimeout(() => mine === turn && figures(all(".told"), () => mine !== turn), 60);
  };

  // -- what is said of a chunk
  const describe = (span) => {
    const known = span.block.known;
    const start = known.at + span.byte - (span.byte ? 0 : known.cut[0]);
    const end = known.at + span.byte + span.bytes + (span.last === known.n.length - 1 ? known.cut[1] : 0);
    const from = unit === "base" ? start + 1 : start;
    const lines = [`${unit}s ${number(from)} to ${number(end)} (${number(end - start)})`];
    known.p.forEach((p, s) => { if (!Number.isNaN(p[span.first])) lines.push(`${stages() > 1 ? `stage ${s}: ` : ""}p ${p[span.first].toFixed(2)}`); });
    if (known.s) {
      const sum = bits(known, span.byte, span.byte + span.bytes);
      lines.push(`${sum.toFixed(1)} bits, ${(sum / span.bytes).toFixed(2)} per ${unit}`);
    }
    const inner = known.u.slice(span.first, span.last + 1).filter((u) => u === 0).length;
    if (inner) lines.push(`${inner} more chunk${inner > 1 ? "s" : ""} inside a character`);
    for (const [, , kind, strand, name] of known.f.filter((f) => f[0] < end && f[1] > start && f[2] === "gene")) lines.push(`${kind} ${name}${strand ? (strand > 0 ? " →" : " ←") : ""}`);
    return lines;
  };
  // Bars of surprisal, one a character with the letter below; one a byte where characters are not known.
  const spectrum = (span) => {
    const known = span.block.known, text = [...known.text.slice(span.letter, span.letter + span.units)];
    const exact = text.reduce((sum, char) => sum + bytesOf(char), 0) === span.bytes;
    const box = make("div", "bytes");
    let byte = span.byte;
    for (let i = 0; i < Math.min(40, exact ? text.length : span.bytes); i++) {
      const size = exact ? bytesOf(text[i]) : 1, column = make("span"), bar = make("i");
      bar.style.height = `${2 + 24 * Math.min(1, bits(known, byte, byte + size) / full / 2.4)}px`;
      column.append(bar, exact ? visible(text[i]) : "·");
      box.append(column);
      byte += size;
    }
    return box;
  };
  const tip = make("div", "tip");
  tip.hidden = true;
  tip.role = "status";
  document.body.append(tip);
  const show = (span, x, y, above) => {
    tip.hidden = !span;
    if (!span) return;
    tip.textContent = describe(span).join("\n");
    if (span.block.known.s) tip.append(spectrum(span));
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x, innerWidth - box.width - 4))}px`;
    tip.style.top = `${y + box.height > innerHeight ? above - box.height : y}px`;
  };
  const LEAF = ".chunks span:not(.outer)";
  const pointed = (event) => {
    // Where the text is edited, a field lies over its chunks.
    const under = () => document.elementsFromPoint(event.clientX, event.clientY).map((each) => each.closest(LEAF)).find(Boolean);
    const span = event.target.closest?.(LEAF) ?? (event.target.matches?.("textarea") ? under() : null);
    show(span, event.clientX + 12, event.clientY + 18, event.clientY - 10);
    return span;
  };
  find("main").addEventListener("pointermove", pointed);
  find("main").addEventListener("pointerdown", (event) => {
    const span = pointed(event);
    if (span && main.includes(span.block)) current = { block: span.block, byte: span.byte };
  });
  find("main").addEventListener("pointerleave", () => { tip.hidden = true; });

  // -- from chunk to chunk, without a pointer
  let current = null;
  const point = (byte) => {
    let found = null;
    for (const span of leaves(current.block)) {
      span.classList.remove("here");
      if (span.byte <= byte) found = span;
    }
    found?.classList.add("here");
    return found;
  };
  const leave = () => {
    current?.block.querySelector(".here")?.classList.remove("here");
    current = null;
    tip.hidden = true;
  };
  const goTo = (block, byte) => {
    if (current && current.block !== block) leave();
    current = { block, byte };
    if (!block.painted) paint(block);
    const span = point(byte);
    if (!span) return;
    current.byte = span.byte;
    span.scrollIntoView({ block: "nearest" });
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    show(span, box.left, box.bottom + 8, box.top - 8);
    tip.prepend(`“${visible([...span.block.known.text.slice(span.letter, span.letter + span.units)].slice(0, 80).join(""))}”\n`);
  };
  const inSight = () => main.find((block) => block.getBoundingClientRect().bottom > (find("header")?.offsetHeight ?? 0)) ?? main[0];
  const step = (by) => {
    if (!current) { const block = inSight(); if (block) goTo(block, 0); return; }
    const spans = [...leaves(current.block)], at = spans.findIndex((span) => span.classList.contains("here")) + by;
    if (spans[at]) { goTo(current.block, spans[at].byte); return; }
    const block = main[main.indexOf(current.block) + by];
    if (!block) return;
    if (!block.painted) paint(block);
    goTo(block, by > 0 ? 0 : [...leaves(block)].at(-1).byte);
  };
  const difference = (by) => {
    const from = current ? main.indexOf(current.block) : main.indexOf(inSight()), place = current ? current.block.known.at + current.byte : -1;
    for (let b = from; b >= 0 && b < main.length; b += by) {
      const block = main[b];
      if (!block.beside) continue;
      const known = read(block), ends = [...compare(block, block.beside).alone, ...compare(block.beside, block).alone].sort((x, y) => by * (x - y));
      const at = ends.find((each) => b !== from || (by > 0 ? each > Math.max(place, current?.last ?? -1) : each < Math.min(place, current?.last ?? place)));
      if (at === undefined) continue;
      goTo(block, at - known.at);
      current.last = at;
      return;
    }
  };
  for (const button of all("[data-go]")) button.addEventListener("click", () => difference(+button.dataset.go));
  find("#reader")?.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const act = { ArrowRight: () => step(1), ArrowLeft: () => step(-1), n: () => difference(1), p: () => difference(-1), Escape: leave }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  addEventListener("keydown", (event) => event.key === "Escape" && (tip.hidden = true));
  find("#reader")?.addEventListener("blur", leave);

  // -- beginning
  const rulers = () => {
    if (margin !== "row") return;
    for (const old of all(".ruler")) old.remove();
    const ruler = make("div", "ruler");
    ruler.ariaHidden = "true";
    for (let c = 10; c <= row; c += 10) {
      const tick = make("b");
      tick.append(make("small", "", `${c}`));
      tick.style.left = `calc(var(--margin) + ${column(c - 1)} + 1ch)`;
      ruler.append(tick);
    }
    const first = find("#reader > .chunks, #reader > .pair");
    first?.before(ruler);
  };
  const fit = () => {
    const fits = margin === "row" && blocks.length ? fitting() : row;
    document.documentElement.style.setProperty("--head", `${getComputedStyle(find("header")).position === "sticky" ? find("header").offsetHeight : 0}px`);
    if (fits === row && (find(".ruler") || margin !== "row")) return;
    row = fits;
    rulers();
    blocks.forEach((block) => block.painted && paint(block));
  };
  if (find("#reader")) {
    new ResizeObserver(fit).observe(find("#reader"));
    fit();
    updated();
  }
  for (const block of blocks) watcher.observe(block);
  if (blocks.length) paint(blocks[0]);
  addEventListener("beforeprint", () => blocks.forEach((block) => block.painted || paint(block)));
  addEventListener("afterprint", () => blocks.forEach((block) => inView.has(block) || plain(block)));
  find(".choices").addEventListener("input", () => {
    const value = least.closest("label")?.querySelector("output");
    if (value) { value.textContent = (least.value / 100).toFixed(2); updated(); }
    inView.forEach(paint);
  });
  // A page whose text changes has another text for a block, and its lists where they are known.
  addEventListener("redraw", ({ target, detail: { lists, text } }) => {
    if (!lists.n) {
      Object.assign(target, { known: null, tree: null, textContent: text });
      inView.delete(target);
      return;
    }
    Object.assign(target, { known: parsed(lists, text), describe, compare: (other) => compare(target, other) });
    inView.add(target);
    paint(target);
  });
});
