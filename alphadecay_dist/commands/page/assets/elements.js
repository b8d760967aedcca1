// Pieces of the page: elements, sections, tables, lists.

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
