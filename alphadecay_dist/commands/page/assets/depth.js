// Alpha and decay of every module of one run: heat maps over depth and type at a refresh, lines by type.

const QUANTITIES = {
  alpha: "alpha", value: "mapped value", weight_decay: "weight decay", lr_ratio: "learning rate, in base rates",
};

function byCell(run) {  // places of modules by type and depth, in the model's order
  const { modules } = run.refreshes, types = [...new Set(modules.map((own) => own.type))];
  const depths = [...new Set(modules.map((own) => own.depth))].sort((a, b) => a - b);
  const cells = types.map(() => depths.map(() => []));
  modules.forEach((own, place) => cells[types.indexOf(own.type)][depths.indexOf(own.depth)].push(place));
  return { types, depths, cells };
}

function valueRange(rows) {  // over all refreshes, so that colours compare as the slider moves
  let low = Infinity, high = -Infinity;
  for (const row of rows) for (const value of row) {
    if (value !== null && value < low) low = value;
    if (value !== null && value > high) high = value;
  }
  return [low, high];
}

const depthSection = {
  build(choose) {
    const made = section("depth", "Alpha and decay by depth and type");
    this.own = made.own;
    this.run = element("select", { id: "run", onchange: () => choose({ run: this.run.selectedIndex, place: null, module: 0 }) });
    this.slider = element("input", { id: "refresh", type: "range", min: 0, step: 1, oninput: () => choose({ place: Number(this.slider.value) }) });
    this.told = element("output", { id: "refresh-told" });
    this.runLabel = element("label", {}, "run", this.run);
    made.tools.append(this.runLabel, element("label", { className: "slider" }, "refresh", this.slider, this.told));
    this.note = element("p", { className: "note" });
    this.maps = element("div", { className: "grid wide" });
    this.keys = element("div", { className: "between" });
    this.lines = element("div", { className: "grid wide" });
    this.own.append(this.note, this.maps, this.keys, this.lines);
    this.choose = choose;
  },

  render(data, view) {
    const drawn = data.runs.filter((run) => run.refreshes);
    this.own.hidden = !drawn.length;
    if (!drawn.length) return;
    const run = data.runs[view.run], { refreshes } = run;
    options(this.run, data.runs.map((own) => own.name), view.run);
    this.runLabel.hidden = data.runs.length < 2;
    this.slider.disabled = !refreshes;
    this.note.textContent = thinning(run);
    if (!refreshes) {
      this.told.textContent = "no refresh";
      for (const key of Object.keys(QUANTITIES)) { hide(`map-${key}`); hide(`types-${key}`); }
      this.keys.replaceChildren();
      return;
    }
    this.slider.max = refreshes.step.length - 1;
    this.slider.value = view.place;
    this.told.textContent = `at update ${shown(refreshes.step[view.place])} (${view.place + 1} of ${refreshes.step.length})`;
    const cells = byCell(run);
    this.keys.replaceChildren(keys(cells.types.map((type, place) => [type, seriesColour(place)])));
    for (const [key, title] of Object.entries(QUANTITIES)) {
      if (!refreshes.numbers[key]) { hide(`map-${key}`); hide(`types-${key}`); continue; }
      this.drawMap(refreshes, cells, key, title, view);
      this.drawLines(refreshes, cells, key, title, view);
    }
  },

  drawMap(refreshes, { types, depths, cells }, key, title, view) {
    const row = refreshes.numbers[key][view.place], [low, high] = valueRange(refreshes.numbers[key]);
    const z = cells.map((own) => own.map((places) => mean(places.map((place) => row[place]))));
    const told = cells.map((own) => own.map((places) => places.map((place) => {
      const status = refreshes.statuses[refreshes.status[view.place][place]];
      return `${plain(refreshes.modules[place].name)}: ${shown(row[place], 5)} (${status})`;
    }).join("<br>") || "no such module"));
    const roomy = depths.length <= 12 && this.maps.clientWidth / (this.maps.clientWidth > 1100 ? 2 : 1) / depths.length > 46;
    const gaps = cells.flatMap((own, y) => own.map((places, x) => [places, x, y]))
      .filter(([places, x, y]) => places.length && z[y][x] === null);
    const chosen = refreshes.modules[view.module];
    const x = depths.indexOf(chosen?.depth), y = types.indexOf(chosen?.type);
    draw(this.maps, `map-${key}`, title, [{
      type: "heatmap", z, x: depths.map((_, at) => at), y: types.map(plain), zmin: low, zmax: high === low ? low + 1e-9 : high,
      colorscale: SCALES[theme()], xgap: 1.5, ygap: 1.5, text: told, hovertemplate: "%{text}<extra></extra>",
      texttemplate: roomy ? "%{z:.3g}" : "", textfont: { size: 11 }, hoverongaps: true, showscale: high > low,
      colorbar: { thickness: 8, outlinewidth: 0, len: 1, tickfont: { size: 11 }, nticks: 5 },
    }], {
      height: 60 + 28 * Math.max(types.length, 4), hovermode: "closest",
      plot_bgcolor: cssColour("none"), margin: { l: 56, r: 8, t: 8, b: 38 },
      xaxis: { title: "block", showgrid: false, tickvals: ticks(depths), ticktext: ticks(depths).map((at) => depths[at]) },
      yaxis: { autorange: "reversed", showgrid: false, automargin: true, type: "category", dtick: 1, nticks: 0 },
      annotations: gaps.map(([, x, y]) => ({ x, y, text: "×", showarrow: false, font: { size: 14, color: cssColour("text") } })),
      shapes: x < 0 ? [] : [{ type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line: { color: SERIES[theme()][1], width: 2 } }],
    }, `one scale for all refreshes; choose a cell${gaps.length ? "; ×: undefined" : ""}`, ({ points: [point] }) => this.choose({ cell: point.pointNumber }));
  },

  drawLines(refreshes, { types, cells }, key, title, view) {
    const traces = types.map((type, number) => {
      const places = cells[number].flat();
      const means = refreshes.numbers[key].map((row) => mean(places.map((place) => row[place])));
      return line(refreshes.step, means, seriesColour(number), { name: plain(type), hovertemplate: "%{y:.4~g}", mode: "lines+markers", marker: { size: 4 } });
    });
    const at = refreshes.step[view.place];
    draw(this.lines, `types-${key}`, `${title} by type`, traces, {
      height: 250, xaxis: { title: "update" },
      shapes: [{ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", layer: "below", line: { color: cssColour("quiet"), width: 1 } }],
    }, "means over depth");
  },
};

function thinning({ refreshes, spectra }) {  // what is left out of a long run
  const told = [[refreshes, "refreshes"], [spectra, "refreshes with spectra"]]
    .filter(([own]) => own && own.of > own.step.length)
    .map(([own, what]) => `${shown(own.step.length)} of ${shown(own.of)} ${what}`);
  return told.length ? `The page has ${told.join(", ")}, evenly spread.` : "";
}

function ticks(depths) {  // at most a dozen of them
  const every = Math.ceil(depths.length / 12);
  return depths.map((_, at) => at).filter((at) => at % every === 0);
}
