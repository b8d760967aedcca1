// One module: its spectrum with the fitted tail at several refreshes, and its numbers over the run.

const MOST_SPECTRA = 5;

function spectrumNames(run) {  // modules, then the parts of those that are cut
  const names = run.refreshes ? run.refreshes.modules.map((own) => own.name) : [];
  const parts = run.spectra ? Object.keys(run.spectra.modules).filter((name) => !names.includes(name)) : [];
  return [...names, ...parts];
}

function density(histogram) {  // of the middles of bins, empty ones left out
  const { low, high, counts, eigenvalues } = histogram, width = (high - low) / counts.length;
  const x = [], y = [];
  counts.forEach((count, bin) => {
    const from = 10 ** (low + bin * width), to = 10 ** (low + (bin + 1) * width);
    if (count && to > from) { x.push(Math.sqrt(from * to)); y.push(count / eigenvalues / (to - from)); }
  });
  return { x, y };
}

function tail({ alpha, xmin, tail: size, high, eigenvalues }) {  // the fitted law from xmin on
  const share = (size / eigenvalues) * (alpha - 1) / xmin;
  const x = [0, 0.25, 0.5, 0.75, 1].map((part) => xmin * (10 ** high / xmin) ** part);
  return { x, y: x.map((value) => share * (value / xmin) ** -alpha) };
}

function nearest(steps, step) {
  return steps.reduce((best, own, place) => (Math.abs(own - step) < Math.abs(steps[best] - step) ? place : best), 0);
}

function chosenSpectra(steps, current) {  // first, last, the current one, and some between
  const most = Math.min(MOST_SPECTRA, steps.length);
  const some = Array.from({ length: most }, (_, place) => Math.round(place * (steps.length - 1) / Math.max(most - 1, 1)));
  if (!some.includes(current)) {
    const inner = some.slice(1, -1), replaced = inner.length ? inner.reduce((a, b) => (Math.abs(b - current) < Math.abs(a - current) ? b : a)) : null;
    some.splice(replaced === null ? 0 : some.indexOf(replaced), 1, current);
  }
  return [...new Set(some)].sort((a, b) => a - b);
}

const spectrumSection = {
  build(choose) {
    const made = section("spectrum", "A module's spectrum");
    this.own = made.own;
    this.module = element("select", { id: "module", onchange: () => choose({ module: this.module.selectedIndex }) });
    made.tools.append(element("label", {}, "module", this.module));
    this.grid = element("div", { className: "grid" });
    this.note = element("p", { className: "note" });
    this.numbers = element("div", { id: "numbers", className: "panel" });
    this.own.append(this.note, this.grid);
  },

  render(data, view) {
    const run = data.runs[view.run], names = spectrumNames(run);
    this.own.hidden = !names.length;
    if (!names.length) return;
    options(this.module, names, view.module);
    const name = names[view.module], { refreshes, spectra } = run;
    const step = refreshes.step[view.place], all = spectra && (spectra.modules[name] || []);
    this.note.textContent = spectra ? "" : "Spectra are kept by --logging.spectra=N, every N-th refresh; this run has none.";
    const current = spectra ? nearest(spectra.step, step) : 0;
    if (all && all.some(Boolean)) this.drawSpectra(spectra.step, all, current);
    else hide("density");
    const density = document.getElementById("density")?.parentElement;  // first, though another run had none
    if (density && this.grid.firstChild !== density) this.grid.prepend(density);
    this.drawHistory(refreshes, view.module, step);
    this.grid.append(this.numbers);
    this.numbers.replaceChildren(element("h3", {}, "the chosen refresh"), facts([
      ["module", name], ...numbersOf(refreshes, view), ...tailNumbers(all && all[current], spectra && spectra.step[current]),
    ]));
  },

  drawSpectra(steps, all, current) {
    const places = chosenSpectra(steps, current).filter((place) => all[place]);
    const shapes = [], last = Math.max(steps.length - 1, 1);
    const traces = places.flatMap((place) => {
      const own = all[place], now = place === current, colour = now ? SERIES[theme()][1] : shade(place / last);
      const group = { legendgroup: steps[place], opacity: now ? 1 : 0.75 };
      const points = { type: "scatter", mode: "markers", marker: { color: colour, size: now ? 6 : 4.5 }, hovertemplate: "%{x:.3~g}: %{y:.3~g}", ...group };
      const made = [{ ...density(own), ...points, name: `${shown(steps[place])}: ${shown(own.alpha, 4)}` }];
      if (own.alpha === null) return made;
      shapes.push({ type: "line", x0: own.xmin, x1: own.xmin, y0: 0, y1: 1, yref: "paper", layer: "below", line: { color: colour, width: 1, dash: "dot" } });
      return [...made, { ...tail(own), type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, line: { color: colour, width: now ? 2.4 : 1.4 }, ...group }];
    });
    draw(this.grid, "density", "density of eigenvalues", traces, {
      height: 340, margin: { l: 66, r: 12, t: 8, b: 38 }, shapes, hovermode: "closest", showlegend: true,
      legend: { ...basicLayout().legend, title: { text: "update: alpha", side: "top", font: { size: 11 } }, font: { size: 11 } },
      xaxis: { type: "log", title: "eigenvalue", dtick: 1 }, yaxis: { type: "log", title: "density", dtick: 1 },
    }, "lines: fitted tails; dotted: xmin");
  },

  drawHistory(refreshes, module, step) {
    const at = [{ type: "line", x0: step, x1: step, y0: 0, y1: 1, yref: "paper", layer: "below", line: { color: cssColour("quiet"), width: 1 } }];
    const found = module < refreshes.modules.length ? mappedAndMoved(refreshes.numbers) : [];
    if (!found.length) { hide("history"); return; }
    const [first, second] = found;
    const traces = found.map(([key, title], place) => line(
      refreshes.step, refreshes.numbers[key].map((row) => row[module]), seriesColour(place),
      { name: title, hovertemplate: "%{y:.4~g}", mode: "lines+markers", marker: { size: 4 }, ...(place ? { yaxis: "y2" } : {}) },
    ));
    const right = { overlaying: "y", side: "right", showgrid: false, zeroline: false, tickmode: "auto", tickformat: ".3~g", nticks: 6, title: { text: second?.[1], standoff: 6, font: { size: 12 } } };
    draw(this.grid, "history", "over the run", traces, {
      height: 340, margin: { l: 66, r: 66, t: 8, b: 38 }, shapes: at, showlegend: true, xaxis: { title: "update" }, yaxis: { title: first[1] },
      ...(second ? { yaxis2: right } : {}),
    });
  },
};

function mappedAndMoved(numbers) {  // what the policy reads and what it changes
  return [["value", "alpha"], ["lr_ratio", "weight_decay"]].map((keys) => keys.find((key) => numbers[key]))
    .filter(Boolean).map((key) => [key, QUANTITIES[key]]);
}

function numbersOf(refreshes, { module, place }) {
  if (module >= refreshes.modules.length) return [];
  const owner = refreshes.owner[place][module];
  const numbers = Object.entries(QUANTITIES).filter(([key]) => refreshes.numbers[key])
    .map(([key, title]) => [title, refreshes.numbers[key][place][module]]);
  return [
    ["refresh", `at update ${shown(refreshes.step[place])}, written at ${shown(refreshes.written_at[place])}`],
    ...numbers, ["status", refreshes.statuses[refreshes.status[place][module]]], ["owner", owner === null ? null : `rank ${owner}`],
  ];
}

function tailNumbers(histogram, step) {
  if (!histogram) return [];
  const size = histogram.alpha === null ? "none" : `${histogram.tail} of ${histogram.eigenvalues} eigenvalues`;
  return [
    ["spectrum", `of update ${shown(step)}`], ["alpha of the tail", histogram.alpha], ["tail", size], ["xmin", histogram.xmin],
    ["largest eigenvalue", 10 ** histogram.high],
  ];
}
