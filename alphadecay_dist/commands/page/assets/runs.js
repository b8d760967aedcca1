// Runs side by side: what they are, their curves, and marks where they were stopped and resumed.

const CURVES = [  // column of metrics, title, unit
  ["loss", "loss", "nats"],
  ["shown", "", ""],
  ["lr", "learning rate", ""],
  ["grad_norm", "gradient norm", ""],
  ["speed", "", ""],
  ["decay", "mean weight decay", "over the tuned matrices"],
];
const MOST_DOTS = 60;
const SKIPPED = "skipped";
const QUIET_EVENTS = ["started", "finished"];

function runTable(runs) {
  const facts = [...new Set(runs.flatMap((run) => Object.keys(run.facts)))];
  const numbers = [...new Set(runs.map((run) => run.shown))];
  const timed = runs.some((run) => run.metrics.seconds);
  const head = ["run", "state", "update", ...numbers, "training loss", ...(timed ? ["time"] : []), ...facts];
  return table(head, runs.map((run, place) => {
    const swatch = element("i", { className: "swatch" });
    swatch.style.background = seriesColour(place);
    const last = run.eval.step.length - 1;
    const evaluated = numbers.map((name) => (name === run.shown && last >= 0 ? run.eval[name][last] : null));
    return [
      element("span", {}, swatch, run.name),
      run.status ? run.status.state : null,
      run.metrics.last.step ?? run.status?.step ?? null,
      ...evaluated, run.metrics.last.loss,
      ...(timed ? [run.metrics.seconds ? duration(run.metrics.seconds) : null] : []),
      ...facts.map((name) => run.facts[name]),
    ];
  }), 2);
}

function curvesOf(run, name, colour) {
  const { metrics } = run, about = { name: plain(run.name), hovertemplate: "%{y:.5~g}" };
  const dots = { mode: "lines+markers", marker: { size: 5 }, ...about };
  if (name === "loss") {
    return [
      metrics.loss && line(metrics.step, metrics.loss, colour, { ...about, opacity: 0.45, name: `${about.name} training` }),
      run.eval.step.length && line(run.eval.step, run.eval.loss, colour, { ...dots, name: `${about.name} validation` }),
    ].filter(Boolean);
  }
  if (name === "shown") return run.eval.step.length ? [line(run.eval.step, run.eval[run.shown], colour, dots)] : [];
  if (name === "decay") return meanDecay(run, colour, dots, about);
  return metrics[name] ? [line(metrics.step, metrics[name], colour, about)] : [];
}

function meanDecay(run, colour, dots, about) {
  if (run.metrics.mean_decay) return [line(run.metrics.step, run.metrics.mean_decay, colour, about)];
  const decays = run.refreshes && run.refreshes.numbers.weight_decay;
  if (decays) return [line(run.refreshes.written_at, decays.map(mean), colour, { ...dots, line: { color: colour, width: 1.6, shape: "hv" }, ...(decays.length > MOST_DOTS ? { mode: "lines" } : {}) })];
  const base = run.facts["weight decay"], { step } = run.metrics;
  const fixed = run.facts.policy === "none" ? 0 : base;
  return typeof fixed === "number" && step.length ? [line([step[0], step.at(-1)], [fixed, fixed], colour, about)] : [];
}

function marks(runs) {
  const found = runs.flatMap((run, place) => run.events
    .filter((own) => !QUIET_EVENTS.includes(own.event))
    .map((own) => ({ ...own, run: run.name, colour: seriesColour(place) })));
  const skipped = runs.flatMap((run, place) => run.metrics.skipped
    .map((step) => ({ step, event: SKIPPED, run: run.name, colour: seriesColour(place) })));
  return [...found, ...skipped];
}

function markLines(found) {
  return [...new Map(found.map((own) => [`${own.step} ${own.colour}`, own])).values()].map((own) => ({
    type: "line", x0: own.step, x1: own.step, y0: 0, y1: 1, yref: "paper", layer: "below",
    line: { color: own.colour, width: 1, dash: "dot" },
  }));
}

function markTexts(found) {
  return found.map((own) => {
    if (own.event === SKIPPED) return `${own.run}: update ${shown(own.step)} was skipped`;
    const when = own.time ? new Date(own.time * 1000).toLocaleString() : "";
    const reason = own.reason ? ` (${own.reason})` : "";
    return `${own.run}: ${own.event.replace("_", " ")} after update ${shown(own.step)}${reason}${when && `, ${when}`}`;
  });
}

const runsSection = {
  build() {
    const what = section("runs", "Runs");
    this.list = element("div");
    what.own.append(this.list);
    const curves = section("training", "Training");
    this.keys = element("div");
    curves.tools.append(this.keys);
    this.grid = element("div", { className: "grid" });
    this.notes = element("div", { id: "marks" });
    curves.own.append(this.grid, this.notes);
  },

  render(data) {
    const { runs } = data, found = marks(runs), shapes = markLines(found);
    this.list.replaceChildren(runTable(runs));
    this.keys.replaceChildren(keys(runs.map((run, place) => [run.name, seriesColour(place)])));
    for (const [name, title, unit] of CURVES) {
      const traces = runs.flatMap((run, place) => curvesOf(run, name, seriesColour(place)));
      const own = { shown: [...new Set(runs.filter((run) => run.eval.step.length).map((run) => run.shown))].join(", "), speed: `${[...new Set(runs.map((run) => run.metrics.targets))].join(", ")} per second` };
      if (!traces.length) { hide(`curve-${name}`); continue; }
      draw(this.grid, `curve-${name}`, own[name] || title, traces, {
        shapes, xaxis: { title: "update", rangemode: "tozero" }, yaxis: wideRange(traces) ? { type: "log", dtick: "D2", tickformat: ",.4~g" } : {},
      }, { loss: "nats; pale: training, dots: validation", shown: "of the evaluations" }[name] || unit);
    }
    const every = Math.max(...runs.map((run) => run.metrics.every));
    const lines = [...markTexts(found), ...(every > 1 ? [`Each point of a curve is the mean of up to ${every} updates.`] : [])];
    this.notes.replaceChildren(...lines.map((text) => element("p", { className: "note", textContent: text })));
  },
};

function wideRange(traces) {  // a curve whose start would hide the rest
  const values = traces.flatMap((trace) => trace.y).filter((value) => value > 0).sort((a, b) => a - b);
  return values.length > 4 && values.at(-1) > 8 * values[Math.floor(values.length / 2)];
}
