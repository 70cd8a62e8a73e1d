const DRAWS = {
  note: (part) => [noteOf(part)],
  verbatim: (part) => [verbatimOf(part)],
  table: tableOf,
  chart: chartOf,
  section: sectionOf,
  fold: (part) => [element("details", {}, element("summary", {}, part.title), within(part.parts, 4))],
  matrix: matrixOf,
  lead: (part) => [element("div", { class: "lead" }, part.notes.map(noteOf))],
  flame: flameOf,
  timeline: timelineOf,
  stacked: stackedOf,
};
const contents = [];

const within = (parts, depth) => parts.flatMap((part) => DRAWS[part.type](part, depth));

function sectionOf(section, depth) {
  const id = `s${contents.length + 1}`;
  if (depth === 2 && section.title) contents.push({ id, title: section.title });
  const title = section.title ? element(`h${Math.min(depth, 4)}`, {}, section.title) : null;
  const inner = within(section.parts, section.title ? depth + 1 : depth);
  return [element("section", { id: depth === 2 && section.title ? id : null }, title, inner)];
}

function matrixOf(part) {
  const shown = tableOf(part.table);
  const lines = shown[shown.length - 1].querySelectorAll("tbody tr");
  const stories = within(part.stories, 4);
  part.cells.forEach(([row, column], at) => {
    const cell = lines[row].children[column];
    cell.classList.add("alarm");
    if (at >= stories.length) return;
    const button = element("button", { type: "button" }, cell.textContent);
    button.addEventListener("click", () => {
      stories[at].open = true;
      stories[at].scrollIntoView();
      stories[at].querySelector("summary").focus();
    });
    cell.replaceChildren(button);
  });
  return [...shown, ...stories];
}

function provenance(rows) {
  const lines = rows.map(([name, value]) => element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, value)));
  return element("footer", {}, element("table", {}, element("tbody", {}, lines)));
}

function themeButton() {
  const names = ["as the system", "light", "dark"];
  let at = 0;
  const button = element("button", { type: "button" }, `Colours: ${names[0]}`);
  button.addEventListener("click", () => {
    at = (at + 1) % names.length;
    if (at) document.documentElement.dataset.theme = names[at];
    else delete document.documentElement.dataset.theme;
    button.textContent = `Colours: ${names[at]}`;
  });
  return button;
}

const page = JSON.parse(document.getElementById("page").textContent);
const parts = within(page.parts, 2);
const links = contents.map(({ id, title }) => element("li", {}, element("a", { href: `#${id}` }, title)));
const nav = links.length > 2 ? element("nav", { "aria-label": "Contents" }, element("ul", {}, links)) : null;
document.body.append(
  ...[
    element("header", {}, element("h1", {}, page.title), themeButton()),
    element("main", {}, nav, parts),
    provenance(page.made),
  ],
);
