// Charts: values under a cursor that all of a page share, zoom, curves to hide. Values are read back from the curves
// themselves, whose points are thousandths of their box; those that are FURTHEST out lie still further.
// Tables to sort, the film of samples, and a page that follows its run. State is kept in the history's entry, which a
// reload keeps.
const FURTHEST = 1e5, MOST_TOLD = 12, NEAR = 0.04;
addEventListener("DOMContentLoaded", () => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const make = (name, css, text = "") => Object.assign(document.createElement(name), { className: css, textContent: text });
  const kept = { windows: {}, hidden: [], ...history.state?.hnet };
  let stored = -Infinity, later = null;
  const store = () => { clearTimeout(later); later = null; stored = performance.now(); history.replaceState({ hnet: kept }, ""); };
  const keep = () => { if (performance.now() > stored + 250) store(); else later ??= setTimeout(store, 250); }; // Safari refuses a hundred in ten seconds
  addEventListener("beforeunload", () => { if (later) store(); }); // at pagehide, Chromium has taken the old state along
  const tip = make("div", "tip");
  tip.hidden = true;
  document.body.append(tip);

  // -- words ----------------------------------------------------------------------------------------------------------

  const BYTES = ["B", "kB", "MB", "GB", "TB"];
  const power = (v) => Math.min(4, Math.max(0, Math.floor(Math.log10(Math.abs(v) || 1) / 3)));
  const bytes = (v) => `${+(v / 1000 ** power(v)).toPrecision(3)} ${BYTES[power(v)]}`;
  const time = (v) => v < 100 ? `${+v.toPrecision(3)} s` : v < 6000 ? `${(v / 60).toFixed(1)} min` : `${(v / 3600).toFixed(2)} h`;
  const number = (v) => Math.abs(v) >= 1e5 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2).replace(/\.?0*e\+?/, "e") : `${+v.toPrecision(4)}`;
  const ticks = (low, high, most = 5) => {
    const rough = (high - low) / most, base = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((s) => s * base).find((s) => s >= rough * (1 - 1e-9));
    const first = Math.ceil(low / step - 1e-9), count = Math.floor(high / step + 1e-9) - first + 1;
    if (!(rough > 0) || !(count <= 2 * most + 2)) return { found: [], step: 1 };
    return { found: Array.from({ length: Math.max(0, count) }, (_, n) => (first + n) * step), step };
  };
  // As many decimals as tell the ticks apart.
  const plain = ({ found, step }, scale = 1, unit = "") => {
    const decimals = Math.min(15, Math.max(0, Math.ceil(-Math.log10(step / scale) - 1e-9)));
    return found.map((v) => [v, (Math.abs(v) >= 1e6 * scale ? (v / scale).toExponential(2) : (v / scale).toFixed(decimals)) + unit]);
  };
  const scaled = (low, high, axis) => {
    const end = Math.max(Math.abs(low), Math.abs(high));
    if (axis === "bytes") return plain(ticks(low, high), 1000 ** power(end), ` ${BYTES[power(end)]}`);
    const unit = axis !== "time" ? [1, ""] : end >= 7200 ? [3600, " h"] : end >= 120 ? [60, " min"] : [1, " s"];
    const { found, step } = ticks(low / unit[0], high / unit[0]);
    return plain({ found, step }).map(([v, word]) => [v * unit[0], word + unit[1]]);
  };

  // -- charts ---------------------------------------------------------------------------------------------------------

  const figures = all("figure").filter((figure) => figure.querySelector(".plot"));
  const plots = figures.flatMap((figure) => all(".plot", figure).map((box) => read(figure, box)));
  const steps = JSON.parse(document.querySelector("#steps")?.textContent ?? '{"steps":[]}').steps; // step, bytes, seconds; ascending
  const COLUMN = { step: 0, bytes: 1, time: 2 };
  const translated = (v, from, to) => {
    const a = COLUMN[from], b = COLUMN[to], n = steps.findIndex((row) => row[a] >= v);
    if (n <= 0) return n ? steps.at(-1)?.[b] : steps[0][b];
    const [p, q] = [steps[n - 1], steps[n]];
    return p[b] + (q[a] > p[a] ? (v - p[a]) / (q[a] - p[a]) : 0) * (q[b] - p[b]);
  };

  function read(figure, box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const axis = ["bytes", "time"].find((name) => box.classList.contains(`by-${name}`)) ?? "";
    const svg = box.querySelector("svg");
    const paths = all("path.curve", svg).map((path, n) => ({ path, n: path.dataset.n, label: data.labels[n] }));
    const hair = make("div", "hair");
    hair.hidden = true;
    box.append(hair);
    let points;
    return {
      figure, box, data, axis, svg, hair, view: [...data.range.slice(0, 2)],
      // Parsed when they are asked for: a page has many.
      get curves() {
        points ??= paths.map(({ path, ...rest }) => ({
          ...rest, path, faint: path.classList.contains("faint"),
          points: [...path.getAttribute("d").matchAll(/([-\d.]+),([-\d.]+)/g)].map(([, x, y]) => [+x, +y]),
        }));
        return points.filter(({ path }) => !path.classList.contains("off"));
      },
      words: all(".x, .y", box), rule: svg.querySelector(".rule"), rules: svg.querySelector(".rule")?.getAttribute("d"),
      marks: all(".mark", box).map((mark) => [mark, parseFloat(mark.style.left)]),
      place: (x) => 1000 * (x - data.range[0]) / (data.range[1] - data.range[0] || 1),
      x: (place) => data.range[0] + place / 1000 * (data.range[1] - data.range[0]),
      value: (y) => {
        const v = data.range[2] + (1 - y / 1000) * (data.range[3] - data.range[2]);
        return data.log ? 10 ** v : v;
      },
      word: (y) => `${y <= -FURTHEST ? "over " : y >= FURTHEST ? "under " : ""}`,
      frame: [0, 0, 1000, 1000],
    };
  }
  const format = (plot, y) => plot.word(y) + (plot.data.unit === "bytes" ? bytes : number)(plot.value(y));
  const seen = (plot) => plot.box.checkVisibility();

  // The part of a plot that is looked at: all of it as it was drawn, or a window, and then the heights of what is in it.
  const draw = (plot) => {
    const { box, data, svg } = plot, window = kept.windows[plot.axis];
    const off = svg.querySelector(".off") !== null;
    for (const word of all(".zoomed-word", box)) word.remove();
    box.classList.toggle("zoomed", !!window || off);
    plot.view = window ?? data.range.slice(0, 2);
    const [left, right] = plot.view.map(plot.place);
    let top = 0, bottom = 1000;
    if ((window || off) && !data.heat) {
      const ys = plot.curves.flatMap(({ points }) => points.filter(([x, y], n) =>
        Math.abs(y) < FURTHEST && (points[n + 1] ?? points[n])[0] >= left && (points[n - 1] ?? points[n])[0] <= right).map(([, y]) => y));
      if (ys.length) {
        [top, bottom] = [ys.reduce((a, b) => Math.min(a, b)), ys.reduce((a, b) => Math.max(a, b))];
        const pad = Math.max(0.06 * (bottom - top), 2);
        [top, bottom] = [top - pad, bottom + pad];
      }
    }
    plot.frame = [left, top, right - left, bottom - top];
    svg.setAttribute("viewBox", plot.frame.join(" "));
    for (const word of plot.words) word.hidden = plot.box.classList.contains("zoomed");
    for (const [mark, at] of plot.marks) {
      const place = 100 * (10 * at - left) / (right - left);
      mark.style.left = `${place}%`;
      mark.hidden = place < -0.1 || place > 100.1;
    }
    if (!window && !off) { plot.rule?.setAttribute("d", plot.rules); return; }
    const put = (css, side, share, text) => {
      const word = make("span", `${css} zoomed-word`, text);
      word.style[side] = `${100 * share}%`;
      box.append(word);
    };
    for (const [x, word] of scaled(...plot.view, plot.axis || "number")) {
      const share = (plot.place(x) - left) / (right - left);
      put(share > 0.93 ? "x last" : share < 0.02 ? "x first" : "x", "left", share, word);
    }
    const [low, high] = [bottom, top].map((y) => data.range[2] + (1 - y / 1000) * (data.range[3] - data.range[2]));
    let rules = "";
    for (const [v, word] of scaled(low, high, data.unit === "bytes" && !data.log ? "bytes" : "number")) {
      const y = 1000 * (1 - (v - data.range[2]) / (data.range[3] - data.range[2] || 1));
      rules += `M${left} ${y}H${right}`;
      put("y", "top", (y - top) / (bottom - top), data.log ? number(10 ** v) : word);
    }
    if (!data.heat) plot.rule?.setAttribute("d", rules);
  };

  // The point of a curve at a place: the nearest, or where none is near the last before it.
  const at = ({ points }, place, reach) => {
    let low = 0, high = points.length;
    while (low < high) { const middle = (low + high) >> 1; points[middle][0] <= place ? (low = middle + 1) : (high = middle); }
    const [before, after] = [points[low - 1], points[low]];
    const near = !before || (after && after[0] - place < place - before[0]) ? after : before;
    if (near && Math.abs(near[0] - place) <= reach) return near;
    return after ? before : null; // nothing is said of what comes after a curve's end
  };
  const told = new Map();
  for (const now of all(".now")) told.set(now, now.textContent);
  const clear = () => {
    tip.hidden = true;
    for (const { hair } of plots) hair.hidden = true;
    for (const [now, text] of told) now.textContent = text;
  };

  // Put the cursor of every chart of an axis at x; what is told of `plot`, the chart that is pointed at.
  const point = (plot, x) => {
    for (const other of plots) {
      if (other.axis !== plot.axis || !seen(other)) continue;
      const place = other.place(x), [left, , width] = other.frame;
      other.hair.hidden = place < left - 1e-6 || place > left + width + 1e-6;
      other.hair.style.left = `${100 * (place - left) / width}%`;
      for (const now of all(".now", other.figure)) {
        const n = now.closest("li").dataset.n;
        if (other.data.heat) {
          const column = other.data.heat.findLast(([start]) => start <= place);
          const over = column?.slice(1 + (column.length - 1) / 2).reduce((a, b) => a + b, 0);
          now.textContent = column ? `p > 0.5: ${(100 * over).toFixed(1)}%` : "";
          continue;
        }
        const curve = other.curves.find((curve) => curve.n === n && !curve.faint);
        const found = curve && at(curve, place, NEAR * width);
        now.textContent = found ? format(other, found[1]) : "–";
      }
    }
    const rows = [plot.axis === "time" ? time(x) : plot.axis ? bytes(x) : number(x)];
    if (steps.length && plot.axis) {
      const other = plot.axis === "time" ? "bytes" : "time";
      rows[0] = [`step ${Math.round(translated(x, plot.axis, "step")).toLocaleString("en")}`, rows[0], (other === "time" ? time : bytes)(translated(x, plot.axis, other))].join(" · ");
    }
    return rows;
  };
  // What a chart says at a place, nearest to a height first; and the place of a point there, if there is one.
  const say = (plot, place, height) => {
    const { frame: [, , width], curves } = plot;
    const found = curves.map((curve) => ({ label: curve.label, point: at(curve, place, NEAR * width) })).filter(({ point }) => point);
    const snapped = found.reduce((best, { point: [x] }) => best === null || Math.abs(x - place) < Math.abs(best - place) ? x : best, null);
    if (snapped === null) return { rows: [], snapped: place };
    const near = found.filter(({ point: [x] }) => Math.abs(x - snapped) <= NEAR * width)
      .sort((a, b) => Math.abs(a.point[1] - height) - Math.abs(b.point[1] - height));
    const rows = plot.marks.filter(([mark, left]) => !mark.matches(".over, .under") && Math.abs(10 * left - place) < 0.006 * width)
      .map(([mark]) => `▾ ${mark.title}`);
    for (const { label, point: [, y] } of near.slice(0, MOST_TOLD).sort((a, b) => a.point[1] - b.point[1]))
      rows.push(`${label}: ${format(plot, y)}`);
    if (near.length > MOST_TOLD) rows.push(`and ${near.length - MOST_TOLD} further away`);
    return { rows, snapped };
  };
  const show = (x, y, text) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(y + 14, innerHeight - box.height - 4))}px`;
  };
  const heat = (plot, place, height) => {
    const column = plot.data.heat.findLast(([start]) => start <= place);
    if (!column) return [];
    const bins = column.length - 1, bin = Math.min(bins - 1, Math.max(0, Math.floor((1 - height / 1000) * bins)));
    return [`p from ${(bin / bins).toFixed(2)} to ${((bin + 1) / bins).toFixed(2)}`, `${(100 * column[1 + bin]).toFixed(1)}% of the positions`];
  };
  let cursor = null; // of the chart that has the keys: [plot, x]
  const look = (plot, x, height, snap, where) => {
    const place = plot.place(x);
    const { rows, snapped } = plot.data.heat ? { rows: heat(plot, place, height), snapped: place } : say(plot, place, height);
    const to = snap ? plot.x(snapped) : x;
    const text = [...point(plot, to), ...rows];
    const box = plot.box.getBoundingClientRect();
    const share = (plot.place(to) - plot.frame[0]) / plot.frame[2];
    show(where?.[0] ?? box.left + share * box.width, where?.[1] ?? box.top, text.join("\n"));
    return text;
  };

  const whole = (axis) => {
    const ranges = plots.filter((plot) => plot.axis === axis).map(({ data }) => data.range);
    return [Math.min(...ranges.map(([a]) => a)), Math.max(...ranges.map(([, b]) => b))];
  };
  const zoom = (axis, window) => {
    const [start, end] = whole(axis);
    if (window) {
      const width = Math.min(end - start, window[1] - window[0]);
      const left = Math.min(Math.max(window[0], start), end - width);
      window = width >= (end - start) * 0.9999 || !(width > (end - start) * 1e-4) ? (width > (end - start) / 2 ? null : kept.windows[axis]) : [left, left + width];
    }
    kept.windows = window ? { ...kept.windows, [axis]: window } : {};
    if (window && steps.length) {
      const other = axis === "time" ? "bytes" : "time", there = window.map((x) => translated(x, axis, other));
      if (there[1] > there[0]) kept.windows[other] = there;
    }
    keep();
    clear();
    plots.forEach(draw);
    for (const button of all("[data-zoom=all], [data-zoom=out]")) button.disabled = !Object.keys(kept.windows).length;
  };
  const nearer = (axis, factor, x) => {
    const [a, b] = kept.windows[axis] ?? whole(axis), middle = x ?? (a + b) / 2;
    zoom(axis, [middle - (middle - a) * factor, middle + (b - middle) * factor]);
  };
  const axis = () => document.querySelector("[name=axis]:checked")?.value ?? plots[0]?.axis;

  for (const plot of plots) {
    const { box } = plot, band = make("div", "band");
    band.hidden = true;
    box.append(band);
    box.tabIndex = 0;
    for (const [name, value] of Object.entries({ role: "slider", "aria-valuemin": 0, "aria-valuemax": 1000, "aria-valuenow": 1000, "aria-valuetext": "the end", "aria-label": plot.svg.getAttribute("aria-label") }))
      box.setAttribute(name, value);
    const share = ({ clientX, clientY }) => {
      const { left, top, width, height } = box.getBoundingClientRect();
      return [Math.min(1, Math.max(0, (clientX - left) / width)), (clientY - top) / height];
    };
    const inside = (event) => {
      const [across, down] = share(event), [left, top, width, height] = plot.frame;
      return [plot.x(left + across * width), top + down * height];
    };
    let from = null, dragged = false;
    box.addEventListener("pointerdown", (event) => {
      if (event.button || event.pointerType === "touch") return;
      from = [share(event)[0], inside(event)[0]];
      dragged = false;
      box.setPointerCapture(event.pointerId);
    });
    box.addEventListener("pointermove", (event) => {
      if (from) {
        const [a, b] = [from[0], share(event)[0]].sort((p, q) => p - q);
        dragged ||= (b - a) * box.clientWidth > 5;
        band.hidden = !dragged;
        Object.assign(band.style, { left: `${100 * a}%`, width: `${100 * (b - a)}%` });
      }
      look(plot, ...inside(event), true, [event.clientX, event.clientY]);
    });
    box.addEventListener("pointerup", (event) => {
      if (from && dragged) zoom(plot.axis, [from[1], inside(event)[0]].sort((p, q) => p - q));
      from = null;
      band.hidden = true;
    });
    box.addEventListener("pointercancel", () => { from = null; band.hidden = true; });
    box.addEventListener("pointerleave", () => { if (!from) clear(); });
    box.addEventListener("dblclick", () => kept.windows[plot.axis] ? zoom(plot.axis, null) : nearer(plot.axis, 0.5, cursor?.[0] === plot ? cursor[1] : null));

    const middle = () => plot.frame[1] + plot.frame[3] / 2;
    const move = (x) => {
      const [start, end] = plot.data.range;
      x = Math.min(end, Math.max(start, x));
      const [a, b] = plot.view;
      if (kept.windows[plot.axis] && (x < a || x > b)) zoom(plot.axis, x < a ? [x, x + b - a] : [x - b + a, x]);
      cursor = [plot, x];
      const text = look(plot, x, middle(), false);
      box.setAttribute("aria-valuenow", Math.round(plot.place(x)));
      box.setAttribute("aria-valuetext", text.join(", "));
    };
    box.addEventListener("focus", () => { if (box.matches(":focus-visible")) move(cursor?.[0].axis === plot.axis ? cursor[1] : plot.view[1]); });
    box.addEventListener("blur", clear);
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const x = cursor?.[0].axis === plot.axis ? cursor[1] : plot.view[1];
      const width = plot.view[1] - plot.view[0], stride = width * (event.shiftKey ? 0.1 : 0.01);
      const does = {
        ArrowLeft: () => move(x - stride), ArrowRight: () => move(x + stride),
        Home: () => move(plot.data.range[0]), End: () => move(plot.data.range[1]),
        "+": () => { nearer(plot.axis, 0.5, x); move(x); }, "=": () => does["+"](),
        "-": () => { nearer(plot.axis, 2, x); move(x); },
        Escape: () => { zoom(plot.axis, null); move(x); },
      };
      if (!does[event.key]) return;
      event.preventDefault();
      does[event.key]();
    });
  }
  const FACTORS = { in: 0.5, out: 2 };
  for (const button of all("[data-zoom]"))
    button.addEventListener("click", () => button.dataset.zoom === "all" ? zoom(axis(), null) : nearer(axis(), FACTORS[button.dataset.zoom]));
  for (const group of all(".zoom")) group.hidden = false;

  // -- legends --------------------------------------------------------------------------------------------------------

  // A curve is hidden in its chart; where the curves of all charts are the same runs or models, in all of them.
  const shared = document.querySelector("main[data-shared]") !== null;
  const entries = figures.flatMap((figure) => all(".legend li[data-n]", figure).map((item) => {
    const button = make("button", "");
    button.type = "button";
    button.append(...item.childNodes);
    item.append(button);
    const name = button.querySelector(".name").textContent;
    return { figure, item, button, key: shared ? name : `${figure.querySelector("b").textContent}: ${name}` };
  }));
  const hide = () => {
    for (const { figure, item, button, key } of entries) {
      const off = kept.hidden.includes(key);
      button.setAttribute("aria-pressed", !off);
      for (const path of all(`.plot path[data-n="${item.dataset.n}"]`, figure)) path.classList.toggle("off", off);
    }
    clear();
    plots.forEach(draw);
  };
  for (const { button, key } of entries)
    button.addEventListener("click", () => {
      kept.hidden = kept.hidden.includes(key) ? kept.hidden.filter((each) => each !== key) : [...kept.hidden, key];
      keep();
      hide();
    });
  const chosen = document.querySelector(`[name=axis][value="${kept.axis === "time" ? "time" : "bytes"}"]`);
  if (chosen) chosen.checked = true;
  for (const input of all("[name=axis]")) input.addEventListener("change", () => { kept.axis = axis(); keep(); });
  if (kept.hidden.length) hide();
  zoom(axis(), kept.windows[axis()] ?? null);

  // -- tables ---------------------------------------------------------------------------------------------------------

  // A cell's number, if it has one: of 1.2k, 3 h 4 min, 5 MB/s, +0.123 [0.1, 0.2].
  const UNITS = { k: 1e3, kB: 1e3, M: 1e6, MB: 1e6, G: 1e9, GB: 1e9, T: 1e12, TB: 1e12, min: 60, h: 3600, d: 86400 };
  const weight = (text) => {
    const parts = [...text.replaceAll(",", "").matchAll(/(?<![\w.])([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*([a-zA-Z]*)/g)];
    if (!parts.length || parts[0].index > 0) return null;
    const duration = parts.filter(([, , unit]) => /^(d|h|min|s)$/.test(unit));
    return (duration.length ? duration : parts.slice(0, 1)).reduce((sum, [, v, unit]) => sum + v * (UNITS[unit] ?? 1), 0);
  };
  for (const table of all("table.sortable")) {
    const heads = all("th", table), body = table.tBodies[0], rows = [...body.rows];
    for (const head of heads) {
      const column = head.cellIndex, button = make("button", "", head.textContent);
      button.type = "button";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.ariaSort !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.ariaSort = up ? "ascending" : "descending";
        const value = (row) => row.cells[column].textContent.trim();
        const compare = (a, b) => {
          const [s, t] = [value(a), value(b)], [p, q] = [weight(s), weight(t)];
          const empty = (word) => word === "" || word === "-";
          if (empty(s) || empty(t)) return empty(s) - empty(t); // last in either order
          const order = p !== null && q !== null ? p - q : (p === null) - (q === null) || s.localeCompare(t, "en", { numeric: true });
          return up ? order : -order;
        };
        body.append(...[...rows].sort(compare));
      });
    }
  }

  // -- samples --------------------------------------------------------------------------------------------------------

  // The slider over evaluations; without a script the last one is shown.
  for (const film of all(".film")) {
    const frames = all(".frame", film), slider = film.querySelector("input[type=range]"), play = film.querySelector("button");
    if (!slider) continue;
    const turn = () => {
      frames.forEach((frame, n) => { frame.hidden = n !== +slider.value; });
      slider.setAttribute("aria-valuetext", frames[slider.value].querySelector("b").textContent);
      kept.frame = +slider.value === frames.length - 1 ? undefined : +slider.value;
      keep();
    };
    slider.value = Math.min(kept.frame ?? frames.length - 1, frames.length - 1);
    turn();
    slider.addEventListener("input", turn);
    let timer = 0;
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
    play.addEventListener("click", () => {
      if (timer) { stop(); return; }
      if (+slider.value === frames.length - 1) slider.value = 0;
      turn();
      play.textContent = "Stop";
      timer = setInterval(() => {
        if (+slider.value === frames.length - 1) { stop(); return; }
        slider.value = +slider.value + 1;
        turn();
      }, 600);
    });
  }

  // -- a run that lives -----------------------------------------------------------------------------------------------

  // Training writes the page anew, and the page loads itself anew: a file can do no more. It waits while it is used, and
  // the longer nothing new has come, the longer it waits.
  const life = document.querySelector(".life");
  if (life) {
    const written = +life.dataset.written, every = +life.dataset.every, words = life.querySelector("span"), follow = life.querySelector("button");
    life.hidden = false;
    let used = 0;
    for (const event of ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"])
      addEventListener(event, () => { used = Date.now(); }, { passive: true });
    const loaded = Date.now();
    const tick = () => {
      const age = Math.max(0, Date.now() / 1000 - written), silent = age > Math.max(10 * every, 600);
      words.textContent = silent
        ? `Nothing new for ${time(age)}: the run may have ended without a word. hnet runs tells.`
        : `Written ${time(Math.round(age))} ago.`;
      follow.textContent = kept.paused ? "Follow the run" : "Stop following";
      const wait = Math.max(every, age / 10);
      if (kept.paused || document.hidden || Date.now() - used < 5000 || Date.now() - loaded < 1000 * wait) return;
      if (all(".film button").some((button) => button.textContent === "Stop") || getSelection()?.type === "Range") return;
      kept.focus = plots.findIndex(({ box }) => box === document.activeElement);
      store();
      location.reload();
    };
    follow.addEventListener("click", () => { kept.paused = !kept.paused; keep(); tick(); });
    setInterval(tick, 1000);
    tick();
  }
  if (kept.focus >= 0) plots[kept.focus]?.box.focus();
});
