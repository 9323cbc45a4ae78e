// Values under the pointer are read back from the curves themselves, whose points are thousandths of their box; those that
// are FURTHEST out lie still further.
const FURTHEST = 1e5, MOST_TOLD = 12;
addEventListener("DOMContentLoaded", () => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  const bytes = (v) => {
    const unit = ["bytes", "kB", "MB", "GB", "TB"];
    let n = 0;
    while (v >= 1000 && n < 4) { v /= 1000; n++; }
    return `${+v.toPrecision(3)} ${unit[n]}`;
  };
  const time = (v) => v < 100 ? `${Math.round(v)} s` : v < 6000 ? `${(v / 60).toFixed(1)} min` : `${(v / 3600).toFixed(2)} h`;
  const number = (v) => Math.abs(v) >= 1e4 || (v && Math.abs(v) < 1e-3) ? v.toExponential(2) : `${+v.toPrecision(4)}`;

  const show = (event, text) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = event.clientX + 14 + box.width > innerWidth ? event.clientX - 14 - box.width : event.clientX + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4))}px`;
  };

  for (const plot of document.querySelectorAll(".plot")) {
    const data = JSON.parse(plot.querySelector("script").textContent);
    const [x0, x1, y0, y1] = data.range;
    const value = (y) => {
      const v = y0 + (1 - y / 1000) * (y1 - y0);
      return data.log ? 10 ** v : v;
    };
    const format = data.unit === "bytes" ? bytes : number;
    const lines = [...plot.querySelectorAll("path.curve")].map((path, n) => ({
      label: data.labels[n],
      points: [...path.getAttribute("d").matchAll(/([-\d.]+),([-\d.]+)/g)].map(([, x, y]) => [+x, +y]),
    }));
    const heat = data.heat;
    const hair = document.createElement("div");
    hair.className = "hair";
    hair.hidden = true;
    plot.append(hair);
    plot.addEventListener("pointerleave", () => { tip.hidden = hair.hidden = true; });
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * 1000;
      let found = null;
      const nearest = lines.map(({ label, points }) => {
        let best = null;
        for (const p of points) if (!best || Math.abs(p[0] - at) < Math.abs(best[0] - at)) best = p;
        if (best && (found === null || Math.abs(best[0] - at) < Math.abs(found - at))) found = best[0];
        return { label, best };
      });
      if (heat) {
        const column = heat.findLast(([x]) => x <= at);
        tip.hidden = !column;
        if (!column) return;
        const bin = Math.floor((1 - (event.clientY - box.top) / box.height) * (column.length - 1));
        const share = column[1 + Math.min(column.length - 2, Math.max(0, bin))];
        const width = 1 / (column.length - 1);
        hair.hidden = true;
        show(event, `p from ${(bin * width).toFixed(2)} to ${((bin + 1) * width).toFixed(2)}\n${(100 * share).toFixed(1)}% of the positions`);
        return;
      }
      if (found === null) return;
      hair.hidden = false;
      hair.style.left = `${found / 10}%`;
      const x = x0 + (found / 1000) * (x1 - x0);
      const rows = [plot.classList.contains("by-time") ? time(x) : bytes(x)];
      for (const mark of plot.querySelectorAll(".mark:not(.over, .under)"))
        if (Math.abs(parseFloat(mark.style.left) * 10 - at) < 6) rows.push(`▾ ${mark.title}`);
      const height = ((event.clientY - box.top) / box.height) * 1000;
      const near = nearest.filter(({ best }) => best && Math.abs(best[0] - found) < 40)
        .sort((a, b) => Math.abs(a.best[1] - height) - Math.abs(b.best[1] - height));
      for (const { label, best: [, y] } of near.slice(0, MOST_TOLD).sort((a, b) => a.best[1] - b.best[1]))
        rows.push(`${label}: ${y <= -FURTHEST ? "over " : y >= FURTHEST ? "under " : ""}${format(value(y))}`);
      if (near.length > MOST_TOLD) rows.push(`and ${near.length - MOST_TOLD} further away`);
      show(event, rows.join("\n"));
    });
  }

  // The slider over evaluations; without a script the last one is shown.
  for (const film of document.querySelectorAll(".film")) {
    const frames = [...film.querySelectorAll(".frame")];
    const slider = film.querySelector("input[type=range]");
    const play = film.querySelector("button");
    if (!slider) continue;
    const turn = () => frames.forEach((frame, n) => { frame.hidden = n !== +slider.value; });
    slider.addEventListener("input", turn);
    let timer = 0;
    play.addEventListener("click", () => {
      if (timer) { clearInterval(timer); timer = 0; play.textContent = "Play"; return; }
      if (+slider.value === frames.length - 1) slider.value = 0;
      turn();
      play.textContent = "Stop";
      timer = setInterval(() => {
        if (+slider.value === frames.length - 1) { clearInterval(timer); timer = 0; play.textContent = "Play"; return; }
        slider.value = +slider.value + 1;
        turn();
      }, 600);
    });
  }
});
