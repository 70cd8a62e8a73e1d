const STYLES = { plain: "", strong: "strong", faint: "faint", notable: "notable", warning: "warning" };
const MANY_ROWS = 12;
const LONG = 25;
const MOST_INDENT = 4;

function noteOf(note) {
  const blanks = note.label.length - note.label.trimStart().length;
  const label = note.label.trim();
  const line = element("p", { class: STYLES[note.style] || null }, label ? [label, " "] : [], note.text);
  if (blanks) line.style.paddingLeft = `${Math.min(blanks, MOST_INDENT) / 2}em`;
  return line;
}

const verbatimOf = (part) => element("pre", { tabindex: 0 }, part.text);

function figure(text) {
  const found = /[-+\u2212]?\d[\d,]*(\.\d+)?/.exec(text);
  return found ? Number(found[0].replaceAll(",", "").replace("\u2212", "-")) : Number.NEGATIVE_INFINITY;
}

function isSortable(table) {
  const rows = table.rows;
  return (
    table.ruled &&
    rows.length > 2 &&
    table.columns.some((column) => column.heading) &&
    rows.every((row) => row.type === "row" && !row.ends_group && !/^\s/.test(row.cells[0]))
  );
}

function rowOf(table, row) {
  if (row.type === "span") {
    const words = row.label.trim() ? `${row.label.trim()} ${row.text}` : row.text;
    return element("tr", { class: "span" }, element("td", { colspan: table.columns.length }, words));
  }
  const cells = row.cells.map((cell, at) => {
    const column = table.columns[at];
    const kind = column.number ? "number" : column.breaks ? "breaks" : null;
    const key = at < table.keys && cell.trim() && !column.number;
    const made = element(key ? "th" : "td", { class: kind, scope: key ? "row" : null }, cell.trim());
    const blanks = cell.length - cell.trimStart().length;
    if (blanks && !column.number) made.style.paddingLeft = `${0.7 + blanks / 2}rem`;
    return made;
  });
  const style = [STYLES[row.style], row.ends_group ? "ends" : ""].filter(Boolean).join(" ");
  return element("tr", { class: style || null }, cells);
}

function tableOf(table) {
  const shown = table.rows.map((row) => ({ row, line: rowOf(table, row) }));
  const body = element("tbody", {}, shown.map((each) => each.line));
  const headings = table.columns.map((column) => {
    const kind = column.number ? "number" : null;
    if (!column.heading) return element("td", { class: kind });
    return element("th", { scope: "col", class: kind }, column.heading);
  });
  const named = table.columns.some((column) => column.heading);
  const parts = [
    table.title ? element("caption", {}, table.title) : null,
    named ? element("thead", {}, element("tr", {}, headings)) : null,
    body,
  ];
  const label = table.title || table.columns.map((column) => column.heading).filter(Boolean).join(", ") || "table";
  const made = element("table", {}, parts);
  const wide = element("div", { class: shown.length > LONG ? "wide long" : "wide", tabindex: 0, role: "region", "aria-label": label }, made);
  if (!isSortable(table)) return [wide];
  headings.forEach((heading, at) => sortBy(table, heading, at, shown, body, headings));
  return shown.length > MANY_ROWS ? [finder(shown, label), wide] : [wide];
}

function sortBy(table, heading, at, shown, body, headings) {
  if (!table.columns[at].heading) return;
  const button = element("button", { type: "button" }, heading.textContent);
  heading.replaceChildren(button);
  button.addEventListener("click", () => {
    const first = table.columns[at].number ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    headings.forEach((each) => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", order);
    body.append(...sorted(shown, at, table.columns[at].number, order).map((each) => each.line));
  });
}

function sorted(shown, at, isNumber, order) {
  const sign = order === "ascending" ? 1 : -1;
  const compare = isNumber
    ? (one, other) => figure(one.row.cells[at]) - figure(other.row.cells[at])
    : (one, other) => one.row.cells[at].localeCompare(other.row.cells[at]);
  const rest = (each) => each.row.cells.some((cell) => cell.startsWith("... and "));
  const finite = (value) => (Number.isNaN(value) ? 0 : value);
  return [...shown].sort((one, other) => rest(one) - rest(other) || sign * finite(compare(one, other)));
}

function finder(shown, label) {
  const field = element("input", { type: "search", placeholder: "find a row", "aria-label": `find a row: ${label}` });
  const found = element("span", { role: "status" });
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    let left = 0;
    for (const { row, line } of shown) {
      line.hidden = !row.cells.some((cell) => cell.toLowerCase().includes(wanted));
      left += line.hidden ? 0 : 1;
    }
    found.textContent = wanted ? `${count(left)} of ${count(shown.length)} rows` : "";
  });
  return element("div", { class: "find" }, field, found);
}

function chartOf(chart) {
  const ends = chart.bars.filter((bar) => bar.value !== null).flatMap((bar) => [bar.begin, bar.value]);
  const low = Math.min(...ends, chart.ranges ? Infinity : 0);
  const scale = d3.scaleLinear([low, Math.max(...ends, chart.ranges ? -Infinity : 0)], [0, 100]);
  const bars = chart.bars.map((bar) => {
    const words = bar.note ? `${bar.label} (${bar.note})` : bar.label;
    const what = element("div", { class: "what" }, element("span", {}, words), element("span", {}, bar.shown));
    if (bar.value === null) return element("li", {}, what);
    return element("li", {}, what, barOf(scale, Math.min(bar.begin, bar.value), Math.max(bar.begin, bar.value)));
  });
  const title = chart.title ? element("p", {}, chart.title) : null;
  const label = chart.ranges ? `${chart.ranges}: ranges` : null;
  return [element("div", { class: "chart" }, title, element("ul", { class: "bars", "aria-label": label }, bars))];
}

function barOf(scale, from, to) {
  const least = 0.3;
  const width = Math.max(least, scale(to) - scale(from));
  return drawn(
    "svg",
    { height: 12, "aria-hidden": "true" },
    drawn("rect", { class: "ground", width: "100%", height: 12, rx: 2 }),
    drawn("rect", { class: "bar", x: `${Math.min(scale(from), 100 - least)}%`, width: `${width}%`, height: 12, rx: 2 }),
    scale.domain()[0] < 0 && scale.domain()[1] > 0
      ? drawn("line", { class: "zero", x1: `${scale(0)}%`, x2: `${scale(0)}%`, y1: 0, y2: 12 })
      : null,
  );
}
