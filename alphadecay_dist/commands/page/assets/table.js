// A page of a table: means over seeds, differences between methods seed by seed, every cell.

const data = JSON.parse(document.getElementById("data").textContent);
const methods = [...new Set(data.cells.map((cell) => methodOf(cell.place)))];
const view = { number: Object.keys(data.numbers)[0], base: methods.includes("uniform") ? "uniform" : methods[0] };
const SEED = "train.seed", parts = {};

function methodOf(place) {  // a table may have seeds alone
  return place[data.methods] ?? "all";
}

function bare(axis) {
  return axis.split(".").at(-1);
}

function rest(place) {  // of a place without its method, as text
  return data.axes.filter((axis) => axis !== data.methods).map((axis) => `${bare(axis)} ${place[axis]}`).join(", ");
}

function methodColour(place) {
  return seriesColour(methods.indexOf(methodOf(place)));
}

function fixed(value) {
  return value === null || value === undefined ? null : value.toFixed(3);
}

function spreadText(own) {
  return own ? [own.mean, own.deviation].map(fixed).filter(Boolean).join(" ± ") : null;
}

function signed(value) {
  return value > 0 ? `+${fixed(value)}` : fixed(value);
}

function seedsOf(row) {  // the number of each finished cell of a row
  return data.cells.filter((cell) => data.axes.every((axis) => cell.place[axis] === row.place[axis]))
    .map((cell) => [cell.place[SEED], cell.numbers[view.number]]).filter(([, value]) => value !== undefined);
}

function drawMeans() {
  const groups = [...new Set(data.rows.map((row) => rest(row.place)))];
  const traces = methods.flatMap((method) => {
    const rows = data.rows.filter((row) => methodOf(row.place) === method && row.numbers[view.number]);
    if (!rows.length) return [];
    const colour = seriesColour(methods.indexOf(method)), numbers = rows.map((row) => row.numbers[view.number]);
    const shift = 0.6 * (methods.indexOf(method) + 0.5) / methods.length - 0.3;
    const at = rows.map((row) => groups.indexOf(rest(row.place)) + shift);
    const seeds = rows.flatMap((row, place) => seedsOf(row).map(([seed, value]) => ({ seed, value, x: at[place] })));
    return [{
      type: "scatter", mode: "markers", x: seeds.map((own) => own.x), y: seeds.map((own) => own.value), marker: { color: colour, size: 5, opacity: 0.45 },
      text: seeds.map((own) => `${plain(method)}, seed ${own.seed ?? "–"}`), hovertemplate: "%{text}: %{y:.5~g}<extra></extra>",
    }, {
      type: "scatter", mode: "markers", x: at, y: numbers.map((own) => own.mean), marker: { color: colour, size: 13, symbol: "line-ew-open", line: { width: 2.5 } },
      error_y: { type: "data", array: numbers.map((own) => own.deviation ?? 0), color: colour, thickness: 1.4, width: 4 },
      text: numbers.map((own) => `${plain(method)}: ${spreadText(own)} (${counted(own.runs, "run", "runs")})`), hovertemplate: "%{text}<extra></extra>",
    }];
  });
  draw(parts.figures, "figure-means", data.numbers[view.number], traces, {
    height: 320, hovermode: "closest", yaxis: { title: data.numbers[view.number] },
    xaxis: { tickvals: groups.map((_, place) => place), ticktext: groups.map(plain), range: [-0.5, groups.length - 0.5], showgrid: false },
  }, "dots: seeds; bars: mean ± standard deviation");
}

function drawPaired(found) {
  const names = found.map((own) => `${plain(methodOf(own.place))}<br>${plain(rest(own.place))}`), y = found.map((_, place) => place);
  const colour = found.map((own) => methodColour(own.place));
  const dots = found.flatMap((own, place) => Object.entries(own.differences).map(([seed, value]) => ({ seed, value, place })));
  draw(parts.figures, "figure-paired", `difference to ${view.base}`, [
    {
      type: "scatter", mode: "markers", x: dots.map((own) => own.value), y: dots.map((own) => own.place),
      marker: { size: 5, opacity: 0.45, color: dots.map((own) => colour[own.place]) },
      text: dots.map((own) => `seed ${own.seed || "–"}`), hovertemplate: "%{text}: %{x:+.4~g}<extra></extra>",
    },
    ...found.map((own, place) => ({  // a bar has one colour
      type: "scatter", mode: "markers", x: [own.mean], y: [place], marker: { size: 9, color: colour[place] },
      error_x: own.interval ? { type: "data", array: [own.interval[1] - own.mean], color: colour[place], thickness: 1.8, width: 5 } : {},
      text: [`${plain(methodOf(own.place))}: ${signed(own.mean)}`], hovertemplate: "%{text}<extra></extra>",
    })),
  ], {
    height: Math.max(320, 70 + 40 * found.length), hovermode: "closest",
    xaxis: { title: `${data.numbers[view.number]}, difference`, zeroline: true, zerolinecolor: cssColour("quiet"), zerolinewidth: 1 },
    yaxis: { tickvals: y, ticktext: names, autorange: "reversed", automargin: true, showgrid: false, nticks: 0 },
  }, "seed by seed; bars: 95 % interval of the mean");
}

function render() {
  const names = Object.keys(data.numbers);
  options(parts.number, Object.values(data.numbers), names.indexOf(view.number));
  options(parts.base, methods, methods.indexOf(view.base));
  const found = data.paired.filter((own) => own.base === view.base && own.number === view.number);
  parts.keys.replaceChildren(keys(methods.map((method, place) => [method, seriesColour(place)])));
  if (names.length) drawMeans();
  if (found.length) drawPaired(found); else hide("figure-paired");
  parts.rows.replaceChildren(rowTable());
  parts.paired.replaceChildren(found.length ? pairedTable(found)
    : element("p", { className: "note", textContent: `No seed is finished both with ${view.base} and with another.` }));
  parts.cells.replaceChildren(cellTable(names));
  drawNear();
}

function rowTable() {
  const { number } = view, compared = data.rows.some((row) => row.published[number]);
  const head = [...data.axes.map(bare), data.numbers[number], ...(compared ? ["published", "difference"] : []), "finished", "missing"];
  return table(head, data.rows.map((row) => [
    ...data.axes.map((axis) => row.place[axis]), spreadText(row.numbers[number]),
    ...(compared ? [spreadText(row.published[number]), signed(row.difference[number])] : []),
    `${row.cells - row.missing.length} of ${row.cells}`, row.missing.join("; "),
  ]), data.axes.length);
}

function pairedTable(found) {
  const head = [...data.axes.map(bare), "difference", "deviation", "95 % interval", "seeds"];
  return table(head, found.map((own) => [
    ...data.axes.map((axis) => own.place[axis]), signed(own.mean), fixed(own.deviation),
    own.interval ? `${signed(own.interval[0])} to ${signed(own.interval[1])}` : null, Object.keys(own.differences).length,
  ]), data.axes.length);
}

function cellTable(names) {
  const axes = Object.keys(data.cells[0].place);
  return table([...axes.map(bare), "cell", "state", "update", ...names.map((name) => data.numbers[name])], data.cells.map((cell) => [
    ...axes.map((axis) => cell.place[axis]), cell.cell, cell.state + (cell.reason && cell.state === "failed" ? `: ${cell.reason}` : ""), cell.step,
    ...names.map((name) => fixed(cell.numbers[name])),
  ]), axes.length);
}

start(() => {
  const results = section("results", "Results");
  parts.number = element("select", { id: "number", onchange: () => { view.number = Object.keys(data.numbers)[parts.number.selectedIndex]; render(); } });
  parts.base = element("select", { id: "base", onchange: () => { view.base = methods[parts.base.selectedIndex]; render(); } });
  results.tools.append(element("label", {}, "number", parts.number), element("label", { hidden: methods.length < 2 }, "against", parts.base));
  for (const name of ["keys", "rows", "paired", "cells"]) parts[name] = element("div", { id: name });
  parts.figures = element("div", { className: "grid wide" });
  results.own.append(parts.keys, parts.figures, parts.rows);
  section("differences", "Differences, seed by seed").own.append(parts.paired);
  section("all", "Cells").own.append(parts.cells);
  section("notes", "Notes").own.append(...(data.notes.length ? data.notes : ["None."]).map((text) => element("p", { className: "note", textContent: text })));
  document.getElementById("page").append(element("footer", { textContent: data.made }));
}, render);
