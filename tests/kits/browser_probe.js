// Inside a page: what goes wrong while its controls are used, and where its layout does not hold.
const errors = [];
addEventListener("error", (event) => errors.push(`${event.message}, line ${event.lineno}`), true);
addEventListener("securitypolicyviolation", (event) => errors.push(`${event.violatedDirective}: ${event.blockedURI}`));
globalThis.alert = (text) => errors.push(`alert ${text}`);
const probe = () => {
  if (document.body.matches(".live:not([data-state=done])")) { setTimeout(probe, 100); return; }
  const all = (selector) => [...document.querySelectorAll(selector)];
  const seen = (element) => element.checkVisibility();
  const box = (element) => element.getBoundingClientRect();
  const tips = [];
  for (const place of all(".plot, .reader .chunks span:not(.outer)").filter(seen).slice(0, 60)) {
    for (const share of [0.02, 0.5, 0.98]) {
      const { left, top, width, height } = box(place);
      place.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: left + share * width, clientY: top + height / 2 }));
    }
    const tip = document.querySelector(".tip");
    tips.push(tip && !tip.hidden ? tip.textContent : "");
    place.dispatchEvent(new PointerEvent("pointerleave"));
  }
  const apart = (a, b) => !b || a.parentNode !== b.parentNode || box(a).right <= box(b).left || box(b).top >= box(a).bottom;
  const labels = all(".plot .x, .axis span span").filter(seen);
  const told = {
    page, errors, tips, width: innerWidth,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    tracks: all("li .track").map((track) => box(track).width),
    collisions: labels.filter((label, n) => !apart(label, labels[n + 1])).length,
    painted: all(".chunks span").length,
    marks: all(".plot .over").filter(seen).length,
    requests: performance.getEntriesByType("resource").length,
    sizes: document.querySelector("#chunks")?.known?.n ?? [],
  };
  for (const button of all("button")) { button.click(); button.click(); }
  for (const input of all("input")) {
    if (input.type === "radio") input.click();
    for (const value of input.type === "range" ? [input.max, input.min] : []) {
      input.value = value;
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }
  told.frames = all(".frame").filter(seen).length;
  parent.postMessage(told, "*");
};
addEventListener("load", () => setTimeout(probe, 500));
