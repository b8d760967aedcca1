// Light and dark, colours, and numbers as text.

const SERIES = {
  light: ["#0b66c3", "#d1495b", "#2a8c5a", "#b7791f", "#7a4fb5", "#1797a6", "#5d6b7a", "#e07b39", "#a04668", "#8a9a2b"],
  dark: ["#6cb2ff", "#ff8b94", "#5fcf8f", "#edb458", "#b99bf0", "#5ad1de", "#a9b6c5", "#ff9f68", "#e38bb0", "#c2d15a"],
};
const SCALES = {  // of heat maps and of what follows time: from little to much
  light: [[0, "#eef4fb"], [0.3, "#a9cdec"], [0.6, "#4b93cf"], [0.85, "#1a5a9c"], [1, "#0a2f5c"]],
  dark: [[0, "#1d2a3a"], [0.3, "#23527d"], [0.6, "#3c8cc9"], [0.85, "#8cc8f2"], [1, "#e6f4ff"]],
};
const CHOICES = ["system", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = stored("theme") || "system";

function stored(key, value) {  // a browser may keep nothing for a file
  try {
    if (value !== undefined) localStorage.setItem(`alphadecay ${key}`, value);
    return localStorage.getItem(`alphadecay ${key}`);
  } catch {
    return null;
  }
}

function theme() {
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
