// Figures: each is drawn when the reader comes near it.

const AHEAD = "200px";  // of the screen, within which figures are drawn
const waiting = new Map();  // figures to be drawn, by id: when the reader comes near
const near = new Set(), unseen = new Set();  // their places; those of which it is not known
const observer = new IntersectionObserver((found) => {
  for (const { target, isIntersecting } of found) {
    unseen.delete(target);
    near[isIntersecting ? "add" : "delete"](target);
  }
  drawNear();
}, { rootMargin: AHEAD });

// A figure with its title, made at its first drawing and then changed in place.
function draw(parent, id, title, traces, layout = {}, note = "", onClick = null) {
  let place = document.getElementById(id);
  if (!place) {
    place = element("div", { id, className: "figure", role: "img" });
    parent.append(element("div", { className: "panel" }, element("h3"), place));
    unseen.add(place);
    observer.observe(place);
  }
  const panel = place.parentElement;
  panel.hidden = false;
  panel.firstChild.replaceChildren(`${title} `, element("small", { textContent: note }));
  place.ariaLabel = `${title} ${note}`.trim();
  if (layout.height) place.style.height = `${layout.height}px`;
  waiting.set(id, { place, traces, layout: { ...basicLayout(), ...layout, ...axes(layout) }, onClick });
}

function drawNow(id) {
  const { place, traces, layout, onClick } = waiting.get(id), first = !place.data;
  waiting.delete(id);
  Plotly.react(place, traces, layout, { displayModeBar: false, responsive: true });
  if (first && onClick) place.on("plotly_click", onClick);
}

function drawNear() {
  if (!window.Plotly) return;
  for (const [id, { place }] of [...waiting]) if (near.has(place)) drawNow(id);
  document.documentElement.dataset.drawn = !unseen.size;
}

function drawAll() {
  if (window.Plotly) [...waiting.keys()].forEach(drawNow);
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

function start(build, render) {  // what can be read is there before the figures are
  const loading = loadPlotly();
  startTheme(render);
  build();
  render();
  onPrint(() => { render(); drawAll(); }, render);
  loading.then(() => {
    document.getElementById("wait").remove();
    drawNear();
    document.documentElement.dataset.ready = "true";
  }).catch((error) => {
    document.getElementById("wait").textContent = `the figures cannot be drawn: ${error.message}`;
    throw error;
  });
}
