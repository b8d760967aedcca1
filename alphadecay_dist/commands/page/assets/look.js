// Light and dark, colours, and numbers as text.

const SERIES = {  // the first seven are told apart by the colour-blind too (deuteranopia, protanopia)
  light: ["#316fc1", "#af2b3f", "#049884", "#9e5d0c", "#5428bd", "#359bc2", "#364271", "#fa543c", "#c837b4", "#72993f"],
  dark: ["#8591f8", "#ff9d90", "#369b56", "#e1d559", "#9c87c6", "#8adcff", "#b6e0d9", "#f68838", "#e64fb0", "#9a7b4f"],
};
const SCALES = {  // of heat maps and of what follows time: from little to much
  light: [[0, "#dfebf7"], [0.3, "#a9cdec"], [0.6, "#3f86c4"], [0.85, "#1a5a9c"], [1, "#0a2f5c"]],
  dark: [[0, "#1d2a3a"], [0.3, "#23527d"], [0.6, "#3c8cc9"], [0.85, "#8cc8f2"], [1, "#e6f4ff"]],
};
const CHOICES = ["system", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = stored("theme") || "system", printing = false;

function stored(key, value) {  // a browser may keep nothing for a file
  try {
    if (value !== undefined) localStorage.setItem(`alphadecay ${key}`, value);
    return localStorage.getItem(`alphadecay ${key}`);
  } catch {
    return null;
  }
}

function theme() {
  if (printing) return "light";
  return chosenTheme === "system" ? (system.matches ? "dark" : "light") : chosenTheme;
}

function applyTheme() {
  document.documentElement.dataset.theme = theme();
  document.getElementById("theme").textContent = `theme: ${chosenTheme}`;
}

function startTheme(redraw) {
  applyTheme();
  const change = () => { applyTheme(); redraw(); };
  system.addEventListener("change", change);
  document.getElementById("theme").addEventListener("click", () => {
    chosenTheme = CHOICES[(CHOICES.indexOf(chosenTheme) + 1) % CHOICES.length];
    stored("theme", chosenTheme);
    change();
  });
}

function onPrint(before, after) {  // dark ink on paper
  const change = (now, redraw) => () => { printing = now; applyTheme(); redraw(); };
  addEventListener("beforeprint", change(true, before));
  addEventListener("afterprint", change(false, after));
}

function cssColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function seriesColour(place) {
  return SERIES[theme()][place % SERIES[theme()].length];
}

function shade(share) {  // of the scale, without its palest part, which no line can have
  const stops = SCALES[theme()], at = 0.3 + 0.7 * share;
  const next = stops.findIndex(([place]) => place >= at), [from, to] = [stops[next - 1], stops[next]];
  const part = (at - from[0]) / (to[0] - from[0]);
  const mixed = [1, 3, 5].map((place) => {
    const [a, b] = [from, to].map(([, colour]) => parseInt(colour.slice(place, place + 2), 16));
    return Math.round(a + (b - a) * part);
  });
  return `rgb(${mixed.join(",")})`;
}

function shown(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en");
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 2).replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

function plain(text) {  // for plotly, which takes tags in its texts for its own
  return String(text).replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);
}

function duration(seconds) {
  if (seconds >= 5400) return `${(seconds / 3600).toFixed(1)} h`;
  return seconds >= 90 ? `${(seconds / 60).toFixed(1)} min` : `${shown(seconds, 3)} s`;
}

function bytes(number) {
  const place = Math.min(4, Math.floor(Math.log2(Math.max(number, 1)) / 10));
  return `${shown(number / 1024 ** place, 3)} ${["B", "KiB", "MiB", "GiB", "TiB"][place]}`;
}

function counted(number, one, many) {
  return `${shown(number)} ${number === 1 ? one : many}`;
}
