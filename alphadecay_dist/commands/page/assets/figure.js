// Pieces of the page, and figures in them.

function element(tag, given = {}, ...children) {
  const made = Object.assign(document.createElement(tag), given);
  made.append(...children);
  return made;
}

function section(id, title) {
  const tools = element("div", { className: "head" }, element("h2", { textContent: title }));
  const own = element("section", { id }, tools);
  document.getElementById("page").append(own);
  return { own, tools };
}

const waiting = new Map();  // figures to be drawn, by id: what is on the screen goes first, the rest in turn
let working = false;

// A figure with its title, made at its first drawing and then changed in place.
function draw(parent, id, title, traces, layout = {}, note = "", onClick = null) {
  let place = document.getElementById(id);
  if (!place) {
    place = element("div", { id, className: "figure" });
    parent.append(element("div", { className: "panel" }, element("h3"), place));
  }
  const panel = place.parentElement;
  panel.hidden = false;
  panel.firstChild.replaceChildren(title, element("small", { textContent: note }));
  if (layout.height) place.style.height = `${layout.height}px`;
  waiting.delete(id);
  waiting.set(id, { place, traces, layout: { ...basicLayout(), ...layout, ...axes(layout) }, onClick });
}

function drawNow(id) {
  const { place, traces, layout, onClick } = waiting.get(id), first = !place.data;
  waiting.delete(id);
  Plotly.react(place, traces, layout, { displayModeBar: false, responsive: true });
  if (first && onClick) place.on("plotly_click", onClick);
}

function onScreen({ place }) {
  const { top, bottom } = place.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}

function drawScreen() {
  for (const [id, own] of [...waiting]) if (onScreen(own)) drawNow(id);
  document.documentElement.dataset.drawn = !waiting.size;
  if (waiting.size && !working) {
    working = true;
    setTimeout(drawRest, 0);
  }
}

function drawRest() {
  working = false;
  const [id] = [...waiting].find(([, own]) => onScreen(own)) || [...waiting][0] || [];
  if (id) drawNow(id);
  drawScreen();
}

function hide(id) {
  waiting.delete(id);
  const place = document.getElementById(id);
  if (place) place.parentElement.hidden = true;
}

function basicLayout() {
  const text = cssColour("text");
  return {
    margin: { l: 56, r: 12, t: 8, b: 38 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: cssColour("quiet") },
    hovermode: "x unified",
    hoverlabel: { bgcolor: cssColour("raised"), bordercolor: cssColour("line"), font: { color: text, size: 12 } },
    showlegend: false,
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 12 } },
    bargap: 0.25,
    uirevision: "kept",  // what the reader zoomed to stays when data come
  };
}

function axes(layout) {
  const common = {
    gridcolor: cssColour("grid"), linecolor: cssColour("line"), zeroline: false,
    title: { standoff: 6, font: { size: 12 } }, exponentformat: "power", minexponent: 5, separatethousands: true, nticks: 6,
  };
  const merged = {};
  for (const name of ["xaxis", "yaxis"]) {
    const { title, ...own } = layout[name] || {};
    merged[name] = { ...common, ...own, title: { ...common.title, text: title || "" } };
  }
  return merged;
}

function line(x, y, colour, given = {}) {
  return { type: "scatter", mode: "lines", x, y, line: { color: colour, width: 1.6 }, ...given };
}

function keys(entries) {  // a legend in HTML: it wraps as text does
  return element("ul", { className: "keys" }, ...entries.map(([name, colour]) => {
    const swatch = element("i");
    swatch.style.background = colour;
    return element("li", {}, swatch, name);
  }));
}

function table(head, rows, lefts = 1) {
  const cell = (tag) => (value, place) => {
    const made = element(tag, { className: place < lefts ? "left" : "" });
    made.append(value instanceof Node ? value : shown(value));
    return made;
  };
  return element("div", { className: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, ...head.map(cell("th")))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map(cell("td")))))));
}

function facts(pairs) {
  return element("dl", {}, ...pairs.flatMap(([name, value]) => [
    element("dt", { textContent: name }), element("dd", { textContent: shown(value, 5) }),
  ]));
}

function options(select, names, chosen) {  // only where they changed: an open list is not closed
  if ([...select.options].map((own) => own.text).join("\n") !== names.join("\n")) {
    select.replaceChildren(...names.map((name) => element("option", { textContent: name })));
  }
  select.selectedIndex = chosen;
}

function mean(values) {
  const defined = values.filter((value) => value !== null && value !== undefined);
  return defined.length ? defined.reduce((sum, value) => sum + value, 0) / defined.length : null;
}

// Unpacks plotly.js, which the page carries, and runs it.
async function loadPlotly() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser is too old for the page (it has no DecompressionStream)");
  }
  const packed = await fetch(`data:application/gzip;base64,${document.getElementById("plotly").textContent}`);
  const unpacked = packed.body.pipeThrough(new DecompressionStream("gzip"));
  const source = URL.createObjectURL(await new Response(unpacked).blob());  // compiled beside the page's thread
  await new Promise((resolve, reject) => {
    document.head.append(element("script", { src: source, onload: resolve, onerror: () => reject(new Error("plotly does not load")) }));
  });
  URL.revokeObjectURL(source);
  document.getElementById("plotly").remove();
}

function start(build, render) {
  startTheme(() => window.Plotly && render());
  loadPlotly().then(() => {
    document.getElementById("wait").remove();
    build();
    render();
    addEventListener("beforeprint", () => [...waiting.keys()].forEach(drawNow));
    document.documentElement.dataset.ready = "true";
  }).catch((error) => {
    document.getElementById("page").replaceChildren(`The page cannot be drawn: ${error.message}`);
    throw error;
  });
}
