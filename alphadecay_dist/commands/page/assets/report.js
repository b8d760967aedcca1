// A page of runs: what is chosen, and new data of a run that goes on.

const POLL_MS = 2000, SHARE = 10;  // a long answer is asked for less often: its machine may train
const SECTIONS = [runsSection, depthSection, spectrumSection, workSection, conditionSection];
let data = JSON.parse(document.getElementById("data").textContent);
const view = { run: Math.max(0, data.runs.findIndex((run) => run.refreshes)), place: null, module: 0 };

function choose(change) {
  if (change.cell) {
    const { types, depths } = byCell(data.runs[view.run]), [type, depth] = [types[change.cell[0]], depths[change.cell[1]]];
    const found = data.runs[view.run].refreshes.modules.findIndex((own) => own.type === type && own.depth === depth);
    if (found >= 0) view.module = found;
  } else {
    Object.assign(view, change);
  }
  settle();
  for (const own of SECTIONS.slice(1)) own.render(data, view);
  drawNear();
}

function settle() {  // null stands for the last refresh, whatever comes
  if (view.module >= spectrumNames(data.runs[view.run]).length) view.module = 0;
  const last = (data.runs[view.run].refreshes?.step.length ?? 0) - 1;
  if (view.place === null || view.place >= last) view.place = last;
}

function render() {
  settle();
  for (const own of SECTIONS) own.render(data, view);
  drawNear();
}

function tell(live, state, why) {
  Object.assign(live, { textContent: state, title: why });
  live.dataset.state = state;
}

async function follow(token) {
  const live = document.getElementById("live"), asked = performance.now();
  try {
    const answer = await fetch(`data?after=${token}`, { cache: "no-store" });
    if (answer.status === 200) {
      const last = (data.runs[view.run].refreshes?.step.length ?? 0) - 1, atEnd = view.place >= last;
      token = answer.headers.get("X-Token");
      data = await answer.json();
      if (atEnd) view.place = null;
      render();
    }
    if (answer.status >= 400) throw new Error(await answer.text());
    tell(live, "following", "");
  } catch (error) {
    tell(live, "lost", error.message);
  }
  setTimeout(() => follow(token), Math.max(POLL_MS, SHARE * (performance.now() - asked)));
}

start(() => {
  for (const own of SECTIONS) own.build(choose);
  document.getElementById("page").append(element("footer", { textContent: data.made }));
  if (data.token) {
    document.getElementById("live").hidden = false;
    setTimeout(() => follow(data.token), POLL_MS);
  }
}, render);
