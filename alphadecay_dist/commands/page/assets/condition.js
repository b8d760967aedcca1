// Telemetry of gradients and momenta, where a run has it: means by type over updates.

const CONDITION_NUMBERS = {
  nr: ["nr", "nuclear rank"], nr_over_rank: ["nr / rank", ""], st: ["st", ""], ratio: ["ratio", ""],
  grad_norm: ["gradient norm", ""], stable_rank: ["stable rank", ""], spectral_norm: ["spectral norm", "of the weights"],
};

const conditionSection = {
  build() {
    const made = section("condition", "Condition");
    this.own = made.own;
    this.keys = element("div");
    made.tools.append(this.keys);
    this.grid = element("div", { className: "grid" });
    this.own.append(this.grid);
  },

  render(data, view) {
    const { condition } = data.runs[view.run];
    this.own.hidden = !condition;
    if (!condition) return;
    const types = Object.keys(condition.types);
    this.keys.replaceChildren(keys(types.map((type, place) => [type, seriesColour(place)])));
    for (const [key, [title, note]] of Object.entries(CONDITION_NUMBERS)) {
      if (!condition.numbers.includes(key)) { hide(`condition-${key}`); continue; }
      const traces = types.map((type, place) => line(condition.types[type].step, condition.types[type][key], seriesColour(place), { name: plain(type), hovertemplate: "%{y:.4~g}" }));
      draw(this.grid, `condition-${key}`, title, traces, { xaxis: { title: "update" } }, note);
    }
  },
};
