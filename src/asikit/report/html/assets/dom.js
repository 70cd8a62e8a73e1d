// Everything that is shown becomes an element's text here: names come from a recording, and are never markup.
const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("--")) made.style.setProperty(key, value);
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const grouped = d3.format(",");
const count = (value) => grouped(Math.round(value));
const short = (value) => d3.format(".3~s")(value).replace("G", " G").replace("M", " M").replace("k", " k");

// So many of what is called so: "1 exit", "2 flushes".
function counted(value, words) {
  return `${count(value)} ${Math.round(value) === 1 ? words.replace(/(?<=sh)es$|s$/, "") : words}`;
}

function share(part, whole) {
  if (!whole) return "-";
  const percent = (100 * part) / whole;
  return `${percent.toFixed(percent >= 10 || percent === 0 ? 1 : 2)}%`;
}

function chooser(title, options, changed) {
  const select = element("select", { "aria-label": title }, options.map((option, at) => element("option", { value: at }, option)));
  select.addEventListener("change", () => changed(Number(select.value)));
  return element("label", {}, title, select);
}
