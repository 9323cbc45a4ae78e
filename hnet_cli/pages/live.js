// Cuts the text as it changes, some bytes at a time so that keys are never kept waiting, and hands the chunks to their drawing.
addEventListener("DOMContentLoaded", async () => {
  const setup = JSON.parse(document.body.dataset.setup);
  delete document.body.dataset.setup;
  const find = (selector) => document.querySelector(selector);
  const text = find("#text"), figures = find("#figures"), lengths = find("#lengths"), slider = find("[name=threshold]");
  const pane = { block: find("#chunks"), shown: "" }, stages = setup.levels.length;
  const FIRST = 1, SLICE = 12, REST = 150; // milliseconds of work before the first colours, at once later, and of rest
  const FEW = 8, BARS = 24, TOP = 12; // positions before the first colours; figures that are shown
  const formats = [0, 1, 2].map((digits) => new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  const number = (value, digits = 0) => formats[digits].format(value);
  text.maxLength = setup.most;

  const decoded = (value) => Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0));
  const open = async () => {
    const [weights, stepped] = JSON.parse(find("#weights").textContent);
    const packed = new Blob([network.decoded(weights)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const reader = await network.open(setup, new Uint8Array(await new Response(packed).arrayBuffer()), decoded(setup.program), stepped);
    find("#weights").remove();
    return reader;
  };
  let reader;
  try {
    reader = await open();
  } catch (error) {
    figures.textContent = `This browser cannot run the page: ${error.message}`;
    return;
  }

  // -- drawing
  let bytes = new Uint8Array(0), shown = { places: [], p: [] }, took = 0;
  // Until all is computed: the chunks that are known, and behind them those of the text before, moved with it.
  const merged = () => {
    const now = reader.chunks(), { known } = reader;
    if (known < bytes.length) {
      shown.places.forEach((place, i) => {
        if (place < known) return;
        now.places.push(place);
        now.p.forEach((row, s) => row.push(shown.p[s][i]));
      });
    }
    return now;
  };
  const moved = (next) => {
    let same = 0, end = 0;
    const most = Math.min(bytes.length, next.length);
    while (same < most && bytes[same] === next[same]) same++;
    while (end < most - same && bytes[bytes.length - 1 - end] === next[next.length - 1 - end]) end++;
    const kept = shown.places.map((place) => (place <= same ? place : place >= bytes.length - end ? place + next.length - bytes.length : -1));
    const well = (_, i) => kept[i] >= 0 && kept[i] < next.length && !(i && kept[i] <= kept[i - 1]);
    shown = { places: kept.filter(well), p: shown.p.map((row) => row.filter(well)) };
    bytes = next;
  };
  const draw = () => {
    const { places, p } = (shown = merged()), ends = [...places.slice(1), bytes.length];
    // UTF-16 units of the characters that begin in each chunk.
    const units = places.map((place, i) => {
      let count = 0;
      for (let at = place; at < ends[i]; at++) count += (bytes[at] & 0xc0) === 0x80 ? 0 : bytes[at] >= 0xf0 ? 2 : 1;
      return count;
    });
    const sizes = places.map((place, i) => ends[i] - place);
    const rows = p.map((row, s) => [`p${s}`, row.map((each) => (Number.isNaN(each) ? "" : Math.round(100 * each))).join()]);
    editor.put(pane, text.value.toWellFormed?.() ?? text.value, {
      at: "0", n: sizes.join(), u: units.join(), h: p.map(() => 0).join(), ...Object.fromEntries(rows),
    });
    editor.tell(pane, text, find("#here"));
    tell();
  };

  // -- figures
  const bars = (sizes) => {
    const counts = new Array(BARS).fill(0);
    for (const size of sizes) counts[Math.min(size, BARS) - 1]++;
    const most = Math.max(...counts), box = document.createElement("div");
    Object.assign(box, { className: "bars", role: "img", ariaLabel: "Lengths of the chunks" });
    box.append(...counts.map((count, i) => {
      const bar = document.createElement("i"), share = number((100 * count) / sizes.length, 1);
      bar.style.height = `${(100 * count) / most}%`;
      bar.title = `${i + 1}${i + 1 === BARS ? " or more" : ""} ${setup.units}: ${number(count)} (${share}%)`;
      return bar;
    }));
    const ends = document.createElement("div");
    ends.className = "ends";
    for (const name of ["1", `${BARS} ${setup.units} or more`]) ends.append(Object.assign(document.createElement("span"), { textContent: name }));
    return [box, ends];
  };
  const frequent = (sizes) => {
    const counts = new Map(), decoder = new TextDecoder();
    let at = 0;
    for (const size of sizes) {
      const chunk = decoder.decode(bytes.subarray(at, (at += size)));
      if (size <= 48) counts.set(chunk, (counts.get(chunk) ?? 0) + 1);
    }
    const top = [...counts].filter(([, count]) => count > 1).sort((a, b) => b[1] - a[1]).slice(0, TOP), list = document.createElement("ol");
    list.className = "top";
    list.append(...top.map(([chunk, count], i) => {
      const item = document.createElement("li"), code = document.createElement("code");
      Object.assign(code, { className: `c${i % 4}`, textContent: chunk.replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "␣") });
      item.append(code, ` ${number(count)}`);
      return item;
    }));
    return top.length ? [list] : [];
  };
  const lengthsOf = (row) => {
    const places = shown.places.filter((_, i) => !Number.isNaN(row[i]));
    return places.map((place, i) => (places[i + 1] ?? bytes.length) - place);
  };
  const tell = () => {
    const counts = shown.p.map((row, s) => {
      const { length } = lengthsOf(row), each = number(bytes.length / Math.max(1, length), 2);
      return `${stages > 1 ? `stage ${s}: ` : ""}${number(length)} chunk${length === 1 ? "" : "s"} of ${each} ${setup.units}`;
    });
    figures.textContent = bytes.length ? `${number(bytes.length)} ${setup.units}: ${counts.join(", ")}. Computed in ${number(took, took < 10 ? 1 : 0)} ms.` : "Nothing to cut yet.";
  };
  const detail = () => {
    const drawings = shown.p.flatMap((row, s) => {
      const sizes = lengthsOf(row), title = document.createElement("h2");
      title.textContent = stages > 1 ? `Lengths at stage ${s}` : "Lengths";
      return sizes.length ? [title, ...bars(sizes), ...frequent(sizes)] : [];
    });
    lengths.replaceChildren(...drawings);
  };

  // -- computing
  let waiting = null, resting = null, drawn = 0;
  const work = (limit, most) => {
    const began = performance.now();
    let more = true;
    while (more && performance.now() - began < limit) more = reader.step(most);
    took += performance.now() - began;
    if (more) waiting = setTimeout(work, 0, SLICE);
    if (more && performance.now() < drawn) return;
    const before = performance.now();
    draw();
    pane.block.getBoundingClientRect(); // lays the text out now, so that it counts
    drawn = performance.now() + REST + 4 * (performance.now() - before); // a long text is not drawn all the time
    if (!more) resting = setTimeout(detail, REST);
    document.body.dataset.state = more ? "computing" : "done";
  };
  const begin = () => {
    clearTimeout(waiting);
    clearTimeout(resting);
    [took, drawn] = [0, 0];
    work(FIRST, FEW);
  };
  const edited = () => {
    if (setup.records && /[\s>]/.test(text.value)) { // a record of FASTA is its sequence
      const at = text.selectionEnd - (text.value.slice(0, text.selectionEnd).match(/\s/g)?.length ?? 0);
      text.value = text.value.replace(/^>.*$/gm, "").replace(/\s/g, "");
      text.setSelectionRange(at, at);
    }
    moved(new TextEncoder().encode(text.value));
    reader.read(bytes);
    begin();
  };
  text.addEventListener("input", edited);
  document.addEventListener("selectionchange", () => document.activeElement === text && editor.tell(pane, text, find("#here")));

  // -- the controls
  const trained = find("#trained"), example = find("#example");
  const decide = (thresholds) => {
    const own = thresholds.every((threshold, s) => threshold === setup.thresholds[s]);
    const [first] = thresholds, even = thresholds.every((threshold) => threshold === first);
    slider.value = Math.log(Math.max(1e-9, first) / Math.max(1e-9, 1 - first));
    const words = even ? first.toFixed(first < 0.095 || first > 0.905 ? 3 : 2) : thresholds.map((each) => each.toFixed(2)).join(", ");
    find("#threshold").textContent = slider.ariaValueText = words;
    trained.disabled = own;
    reader.decide(thresholds);
  };
  slider.addEventListener("input", () => {
    decide(setup.thresholds.map(() => (Math.abs(slider.value) < 0.03 ? 0.5 : 1 / (1 + Math.exp(-slider.value)))));
    begin();
  });
  trained.addEventListener("click", () => { decide(setup.thresholds); begin(); text.focus(); });
  example.addEventListener("click", () => { text.value = setup.text; edited(); text.focus(); });
  example.disabled = !setup.text;
  editor.choose(stages, setup.stage);
  decide(setup.thresholds);
  text.value ||= setup.text;
  edited();
});
