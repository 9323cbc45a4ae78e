// Sends the text to the server as it changes, one request a model at a time, and hands what it tells to the drawing of chunks.
addEventListener("DOMContentLoaded", () => {
  const setup = JSON.parse(document.body.dataset.setup);
  delete document.body.dataset.setup;
  history.replaceState(null, "", location.pathname);
  const find = (selector) => document.querySelector(selector);
  const text = find("#text"), here = find("#here"), own = find("[name=own]"), length = find("[name=length]");
  const panes = ["a", "b"].map((name) => ({
    name, block: find(`#${name}`), figures: find(`#figures-${name}`), select: find(`[name=${name}]`), shown: "", told: null,
  }));
  const [first, second] = panes, { put } = editor;
  const ask = (path, body, signal) => fetch(path, { method: "POST", headers: { "x-hnet-token": setup.token }, body, signal });
  const failure = async (response) => (await response.json().catch(() => ({}))).error ?? `the server answers ${response.status}`;
  const reason = (error) => (error instanceof TypeError ? "hnet play has ended; start it again and open its address" : error.message);
  const notice = (words) => Object.assign(find("#notice"), { textContent: words, hidden: !words });
  const well = (value) => value.toWellFormed?.() ?? value;
  const number = (value, digits = 0) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  text.maxLength = setup.most;

  // -- drawing
  // Until the server has told the chunks of the text as it is now: those before and behind what has changed.
  const shift = (pane, now) => {
    const { known } = pane.block, before = pane.shown;
    if (before === now) return;
    if (!known) { put(pane, now, {}); return; }
    let same = 0, end = 0;
    const most = Math.min(before.length, now.length);
    while (same < most && before[same] === now[same]) same++;
    while (end < most - same && before.at(-1 - end) === now.at(-1 - end)) end++;
    const starts = [], kept = [];
    known.u.reduce((at, units, i) => {
      const place = at <= same ? at : at >= before.length - end ? at + now.length - before.length : -1;
      if (place > (starts.at(-1) ?? -1) && place < now.length) { starts.push(place); kept.push(i); }
      return at + units;
    }, 0);
    const units = starts.map((at, i) => (starts[i + 1] ?? now.length) - at).join();
    const chances = known.p.map((row, s) => [`p${s}`, kept.map((i) => (Number.isNaN(row[i]) ? "" : Math.round(100 * row[i]))).join()]);
    put(pane, now, { at: "0", n: units, h: known.p.map(() => 0).join(), ...Object.fromEntries(chances) });
  };
  const compare = () => {
    const both = panes.every((pane) => pane.told && pane.shown === text.value && pane.shown);
    for (const [pane, other] of [[first, second], [second, first]]) {
      if (!pane.told) continue;
      const { bytes, chunks, bits, stages, ms } = pane.told;
      const parts = [`${number(bytes)} bytes`];
      chunks.forEach((count, s) => parts.push(`${stages > 1 ? `stage ${s}: ` : ""}${number(count)} chunks of ${number(bytes / Math.max(1, count), 1)} bytes`));
      if (bits && bytes) parts.push(`${number(bits / bytes, 3)} bits per byte`);
      if (both && pane.block.known && other.block.known) {
        const { both: shared, alone } = pane.block.compare(other.block);
        parts.push(`${number(shared)} boundaries as beside, ${number(alone.length)} here alone`);
      }
      pane.figures.textContent = `${parts.join(", ")}; ${number(ms)} ms`;
    }
  };

  // -- asking
  const update = async (pane) => {
    if (pane.select.value === "") return;
    pane.again = true;
    if (pane.busy) return;
    pane.busy = true;
    // Chunks come first; their bits take the whole network, so they are asked for when nothing has changed meanwhile.
    for (let later = false, ms = 0; pane.again || later;) {
      if (!pane.again) await new Promise((rested) => setTimeout(rested, 250));
      const bits = !pane.again || find("[name=strength]:checked").value === "s";
      if (pane.again) ms = 0;
      pane.again = later = false;
      const model = +pane.select.value, sent = well(text.value), began = performance.now();
      const wanted = JSON.stringify({ model, text: sent, bytes_per_chunk: own.checked ? null : +length.value, bits });
      try {
        const response = await ask("/chunks", wanted);
        if (!response.ok) throw new Error(await failure(response));
        pane.told = await response.json();
        put(pane, sent, pane.told.lists);
        pane.told.ms = ms ||= performance.now() - began;
        later = pane.told.bits === undefined;
        if (pane === first) editor.choose(pane.told.stages);
        shift(pane, text.value);
        compare();
        tell();
      } catch (error) {
        pane.told = null;
        put(pane, text.value, {});
        pane.figures.textContent = reason(error);
      }
    }
    pane.busy = false;
  };
  const updated = () => panes.forEach(update);
  let typing = false; // by the page, not by a person
  const type = (...part) => { typing = true; editor.type(text, ...part); typing = false; };
  const edited = () => {
    panes.forEach((pane) => pane.select.value !== "" && shift(pane, text.value));
    updated();
  };

  const tell = () => editor.tell(first, text, here);
  document.addEventListener("selectionchange", () => document.activeElement === text && tell());

  let going = null;
  const stop = () => { going?.abort(); going = null; find("#stop").hidden = true; };

  // -- the controls
  const names = setup.models.map(({ name }) => name);
  for (const pane of panes) for (const [i, name] of names.entries()) pane.select.append(new Option(name, i));
  let chosen = setup.a;
  const show = (example, model) => {
    stop();
    notice("");
    if (model !== undefined) first.select.value = chosen = model;
    type(example);
    edited();
  };
  const examples = new Map();
  for (const [i, { modality, example }] of setup.models.entries()) {
    if (example && (!examples.has(modality) || names[i].startsWith("starter:") && !names[examples.get(modality)].startsWith("starter:"))) examples.set(modality, i);
  }
  for (const [modality, i] of examples) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: modality });
    button.addEventListener("click", () => show(setup.models[i].example, i));
    find("#examples").append(" ", button);
  }
  first.select.addEventListener("change", () => {
    const untouched = text.value === setup.models[chosen].example;
    chosen = +first.select.value;
    if (untouched && setup.models[chosen].example) show(setup.models[chosen].example);
    else edited();
  });
  second.select.addEventListener("change", () => {
    find("#beside").hidden = second.select.value === "";
    second.told = null;
    put(second, "", {});
    updated();
    compare();
  });
  find(".choices").addEventListener("input", () => setTimeout(compare));
  own.addEventListener("input", updated);
  length.addEventListener("input", () => {
    own.checked = false;
    find("#length").textContent = length.value;
    updated();
  });

  // -- going on
  const proceed = async () => {
    going?.abort();
    notice("");
    const controller = (going = new AbortController());
    find("#stop").hidden = false;
    let place = text.selectionEnd;
    const wanted = {
      model: +first.select.value, text: well(text.value.slice(0, place)), bytes_per_chunk: own.checked ? null : +length.value,
      temperature: Math.min(10, Math.max(0, +find("[name=temperature]").value || 0)), seed: Math.floor(Math.random() * 2 ** 32),
    };
    try {
      const response = await ask("/continuation", JSON.stringify(wanted), controller.signal);
      if (!response.ok) throw new Error(await failure(response));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        if (going !== controller) break;
        if (document.activeElement === text) type(part.value, place, place);
        else text.setRangeText(part.value, place, place, "end");
        place += part.value.length;
        edited();
      }
    } catch (error) {
      if (error.name !== "AbortError") notice(reason(error));
    }
    if (going === controller) { going = null; find("#stop").hidden = true; }
  };
  find("#continue").addEventListener("click", () => { text.focus(); proceed(); });
  find("#stop").addEventListener("click", stop);
  text.addEventListener("input", () => { if (!typing) { stop(); notice(""); edited(); } });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); proceed(); }
    if (event.key === "Escape") stop();
  });

  // -- a file
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    event.preventDefault();
    let data;
    try { data = await file.slice(0, 4 << 20).arrayBuffer(); } catch { notice(`${file.name} cannot be read: it is no file`); return; }
    try {
      const response = await ask(`/file?model=${first.select.value}`, data);
      if (!response.ok) throw new Error(await failure(response));
      const { text: read, more } = await response.json();
      show(read);
      if (more) notice(`The first ${number(new TextEncoder().encode(read).length)} bytes of ${file.name}, which is longer.`);
    } catch (error) { notice(reason(error)); }
  });

  if (setup.b !== null) { second.select.value = setup.b; find("#beside").hidden = false; }
  // A tab that is loaded again finds its token and its text.
  let kept = null;
  try {
    const [token, words] = JSON.parse(sessionStorage.getItem("text") ?? "[]");
    if (token === setup.token) kept = words;
    sessionStorage.setItem("token", setup.token);
    addEventListener("pagehide", () => sessionStorage.setItem("text", JSON.stringify([setup.token, text.value])));
  } catch { /* there is no storage */ }
  first.select.value = setup.a;
  text.value = kept ?? setup.text;
  edited();
  text.focus();
});
