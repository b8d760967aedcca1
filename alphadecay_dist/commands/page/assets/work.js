// What refreshes cost and who did it; what was undefined.

const workSection = {
  build() {
    const status = section("status", "Statuses");
    this.status = status.own;
    this.told = element("div");
    this.statusGrid = element("div", { className: "grid wide" });
    this.status.append(this.told, this.statusGrid);
    const made = section("work", "Work");
    this.own = made.own;
    this.note = element("p", { className: "note" });
    this.grid = element("div", { className: "grid" });
    this.own.append(this.note, this.grid);
  },

  render(data, view) {
    const { refreshes } = data.runs[view.run];
    this.own.hidden = this.status.hidden = !refreshes;
    if (!refreshes) return;
    this.renderStatuses(refreshes);
    this.renderWork(refreshes, view.place);
  },

  renderStatuses(refreshes) {
    const { undefined_ones: ones, undefined_pairs: pairs } = refreshes;
    if (!pairs) {
      hide("statuses");
      const all = `All ${shown(refreshes.modules.length)} matrices were defined at ${counted(refreshes.of, "refresh", "refreshes")}.`;
      this.told.replaceChildren(element("p", { className: "note", textContent: all }));
      return;
    }
    const head = ["module", "status", "refreshes", "first", "last"];
    const more = pairs - ones.length;
    this.told.replaceChildren(table(head, ones, 2), element("p", { className: "note", textContent: more > 0 ? `and ${more} more` : "" }));
    const traces = refreshes.statuses.map((status, code) => ({
      type: "bar", name: status, x: refreshes.step, marker: { color: refreshes.defined[code] ? shade(0.15 + 0.2 * code) : seriesColour(code + 1) },
      y: refreshes.status.map((row) => row.filter((own) => own === code).length), hovertemplate: "%{y}",
    }));
    draw(this.statusGrid, "statuses", "matrices by status", traces, { barmode: "stack", showlegend: true, xaxis: { title: "update" } });
  },

  renderWork(refreshes, place) {
    const step = refreshes.step[place], loads = counts(refreshes.owner[place]), received = refreshes.bytes[place];
    draw(this.grid, "seconds", "seconds a refresh", [
      line(refreshes.step, refreshes.seconds, seriesColour(0), { mode: "lines+markers", marker: { size: 4 }, hovertemplate: "%{y:.3~g} s" }),
    ], { xaxis: { title: "update" }, yaxis: { rangemode: "tozero" } }, `on rank 0; ${duration(refreshes.seconds_in_all)} in all`);
    const ranks = Math.max(received.length, loads.length);
    if (ranks < 2) {
      this.note.textContent = `One rank owns all ${shown(refreshes.modules.length)} matrices: nothing travels.`;
      hide("owners"); hide("received");
      return;
    }
    this.note.textContent = "";
    const x = Array.from({ length: ranks }, (_, rank) => `${rank}`);
    const bar = (y, colour, hovertemplate, text) => [{ type: "bar", x, y, marker: { color: colour }, hovertemplate, customdata: text }];
    const category = { title: "rank", type: "category" };
    draw(this.grid, "owners", "matrices by owner", bar(x.map((_, rank) => loads[rank] || 0), seriesColour(0), "rank %{x}: %{y}<extra></extra>"),
      { xaxis: category, hovermode: "closest" }, `at update ${shown(step)}`);
    draw(this.grid, "received", "weights received", bar(received.map((own) => own / 2 ** 20), seriesColour(2), "rank %{x}: %{customdata}<extra></extra>", received.map(bytes)),
      { xaxis: category, yaxis: { title: "MiB" }, hovermode: "closest" }, `${bytes(received.reduce((a, b) => a + b, 0))} at update ${shown(step)}`);
  },
};

function counts(owners) {
  const found = [];
  for (const owner of owners) if (owner !== null) found[owner] = (found[owner] || 0) + 1;
  return found;
}
