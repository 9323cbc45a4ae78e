// A text that is typed over its chunks: what play.js and live.js share. A pane is {block, shown}: where chunks are drawn, and of which text.
const editor = (() => {
  const put = (pane, shown, lists) => {
    pane.shown = shown;
    pane.block.dispatchEvent(new CustomEvent("redraw", { bubbles: true, detail: { lists, text: shown } }));
  };
  const leaves = (pane) => pane.block.querySelectorAll("span:not(.outer)");

  // What is under the cursor, for the keyboard.
  const tell = (pane, text, here) => {
    const { known, describe } = pane.block, at = text.selectionStart;
    if (!known || !describe || pane.shown !== text.value) return;
    let place = 0, last = null;
    for (const span of leaves(pane)) {
      if (place > at) break;
      last = span;
      for (let i = span.first; i <= span.last; i++) place += known.u[i];
    }
    here.textContent = last ? `At the cursor: ${describe(last).join("; ")}` : "";
  };

  // The choice of the stage that is drawn, where there are several.
  const choose = (stages, chosen = "all") => {
    const place = document.querySelector("#stages"), group = place.querySelector(".choice");
    place.hidden = stages < 2;
    if (group.childElementCount === (stages > 1 ? stages + 1 : 0)) return;
    const options = stages > 1 ? [["all", "nested"], ...Array.from({ length: stages }, (_, s) => [`${s}`, `stage ${s}`])] : [];
    group.replaceChildren(...options.map(([value, title]) => {
      const label = document.createElement("label"), input = document.createElement("input");
      Object.assign(input, { type: "radio", name: "stage", value, checked: value === chosen });
      label.append(input, title);
      return label;
    }));
  };
  // Puts `value` in place of a part of the text as typing does, so that undo brings back what was there.
  const type = (text, value, from = 0, to = text.value.length) => {
    const before = document.activeElement;
    text.focus({ preventScroll: true });
    text.setSelectionRange(from, to);
    const typed = value ? document.execCommand("insertText", false, value) : from === to || document.execCommand("delete");
    if (!typed) text.setRangeText(value, from, to, "end");
    before?.focus({ preventScroll: true });
  };
  return { put, tell, choose, type };
})();
