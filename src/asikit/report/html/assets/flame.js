const FRAME_HEIGHT = 22;
const LEAST_PIXELS = 2;
const NARROW_PIXELS = 14;

function hueOf(name) {
  let hash = 7;
  for (const char of name) hash = (hash * 31 + char.codePointAt(0)) % 9973;
  return 20 + (hash % 50);
}

function flameOf(data) {
  const chosen = { measure: "exits", side: 0, other: data.sides.length > 1 ? 1 : -1, task: -1, phase: -1, differs: false };
  const state = { root: null, zoom: null, focus: null, wanted: "" };
  const field = element("div", { class: "flame", role: "tree", "aria-label": data.title });
  const readout = element("output", { class: "readout", "aria-live": "polite" });
  const status = element("span", { role: "status" });
  const redraw = () => drawFlame(data, chosen, state, field, readout, status);
  const regrow = () => {
    const path = state.zoom ? pathOf(state.zoom) : [];
    state.root = grown(data, chosen);
    state.zoom = path.reduce((node, key) => (node.children || []).find((child) => child.data === key) || node, state.root);
    state.focus = state.zoom;
    redraw();
  };
  state.redraw = redraw;
  const controls = flameControls(data, chosen, state, regrow, redraw, status);
  field.addEventListener("keydown", (event) => flameKey(event, data, chosen, state, field, readout));
  state.root = grown(data, chosen);
  state.zoom = state.focus = state.root;
  new ResizeObserver(redraw).observe(field);
  window.addEventListener("beforeprint", redraw);
  const help = "Click or Enter zooms in, Escape out; arrows move: up and down along a stack, left and right beside it.";
  return [controls, readout, field, element("p", { class: "faint" }, help), flameLegend(data)];
}

function flameControls(data, chosen, state, regrow, redraw, status) {
  const made = [];
  const add = (title, options, set) => made.push(chooser(title, options, (at) => { set(at); regrow(); }));
  if (data.cycles) add("wide as", ["exits", `cycles on ${data.cycles}`], (at) => { chosen.measure = at ? "cycles" : "exits"; });
  if (data.sides.length > 1) {
    const shown = data.sides.map((side) => `only ${side}`);
    const pairs = data.sides.slice(1).map((side) => `difference: ${data.sides[0]} to ${side}`);
    add("of", [...shown, ...pairs], (at) => {
      chosen.differs = at >= shown.length;
      chosen.side = chosen.differs ? 0 : at;
      chosen.other = chosen.differs ? at - shown.length + 1 : -1;
    });
  }
  if (data.tasks.length > 1) add("task", ["all", ...data.tasks], (at) => { chosen.task = at - 1; });
  if (data.phases.length > 1) add("phase", ["all", ...data.phases], (at) => { chosen.phase = at - 1; });
  const search = element("input", { type: "search", "aria-label": "find a function" });
  search.addEventListener("input", () => { state.wanted = search.value.toLowerCase(); redraw(); });
  made.push(element("label", {}, "find a function", search));
  const out = element("button", { type: "button" }, "Zoom out");
  out.addEventListener("click", () => { state.zoom = state.focus = state.root; redraw(); });
  return element("div", { class: "controls" }, made, out, status);
}

function flameLegend(data) {
  if (data.sides.length < 2) return null;
  const swatch = (kind, sign) => {
    const made = element("span", { class: `swatch frame ${kind}`, "--by": 0.8 }, sign);
    made.style.position = "static";
    return made;
  };
  return element(
    "ul",
    { class: "legend" },
    element("li", {}, swatch("more", "+"), "more in the second"),
    element("li", {}, swatch("less", "\u2212"), "fewer in the second"),
    element("li", {}, swatch("same", "="), "as many in both"),
  );
}

// Sums up what is chosen from the leaves to the root; a node's number is greater than its parent's.
function grown(data, chosen) {
  const size = data.parent.length;
  const [first, second] = [new Float64Array(size), new Float64Array(size)];
  const rows = data.rows;
  for (let at = 0; at < rows.node.length; at += 1) {
    if (chosen.task >= 0 && rows.task[at] !== chosen.task) continue;
    if (chosen.phase >= 0 && rows.phase[at] !== chosen.phase) continue;
    if (rows.side[at] === chosen.side) first[rows.node[at]] += rows[chosen.measure][at];
    else if (chosen.differs && rows.side[at] === chosen.other) second[rows.node[at]] += rows[chosen.measure][at];
  }
  const own = Float64Array.from(first, (value, at) => value + second[at]);
  const children = Array.from({ length: size }, () => []);
  const below = own.slice();
  for (let at = size - 1; at > 0; at -= 1) {
    first[data.parent[at]] += first[at];
    second[data.parent[at]] += second[at];
    below[data.parent[at]] += below[at];
    if (below[at] > 0) children[data.parent[at]].push(at);
  }
  const root = d3.hierarchy(0, (node) => children[node]).sum((node) => own[node]);
  root.sort((one, other) => other.value - one.value || one.data - other.data);
  d3.partition()(root);
  root.each((node) => {
    node.name = data.names[data.name[node.data]];
    node.first = first[node.data];
    node.second = second[node.data];
  });
  return root;
}

const pathOf = (node) => node.ancestors().reverse().slice(1).map((each) => each.data);

function drawFlame(data, chosen, state, field, readout, status) {
  const width = field.clientWidth || 1000;
  const zoom = state.zoom;
  const across = d3.scaleLinear([zoom.x0, zoom.x1], [0, 100]);
  const above = zoom.ancestors().slice(1);
  const visible = zoom.descendants().filter((node) => ((across(node.x1) - across(node.x0)) / 100) * width >= LEAST_PIXELS);
  const shown = [...above.reverse(), ...visible];
  if (!shown.includes(state.focus)) state.focus = zoom;
  const depth = Math.max(...shown.map((node) => node.depth));
  field.style.height = `${(depth + 1) * FRAME_HEIGHT}px`;
  const found = new Set(state.wanted ? state.root.descendants().filter((node) => node.name.toLowerCase().includes(state.wanted)) : []);
  d3.select(field)
    .selectAll("div")
    .data(shown, (node) => node.data)
    .join("div")
    .attr("role", "treeitem")
    .attr("aria-level", (node) => node.depth + 1)
    .attr("aria-selected", (node) => String(node === zoom))
    .attr("tabindex", (node) => (node === state.focus ? 0 : -1))
    .attr("aria-label", (node) => told(node, chosen, state))
    .attr("title", (node) => told(node, chosen, state))
    .attr("data-node", (node) => node.data)
    .attr("class", (node) => frameClass(node, chosen, found, ((across(node.x1) - across(node.x0)) / 100) * width))
    .style("--hue", (node) => hueOf(node.name))
    .style("--by", (node) => Math.min(1, (2 * Math.abs(node.second - node.first)) / Math.max(1, node.value)))
    .style("left", (node) => `${Math.max(0, across(node.x0))}%`)
    .style("width", (node) => `${Math.min(100, across(node.x1)) - Math.max(0, across(node.x0))}%`)
    .style("top", (node) => `${node.depth * FRAME_HEIGHT}px`)
    .text((node) => labelOf(node, chosen))
    .on("click", (event, node) => { state.zoom = state.focus = node; state.redraw(); focusOn(field, node); })
    .on("pointerenter focus", (event, node) => { state.focus = node; readout.textContent = told(node, chosen, state); });
  readout.textContent = told(zoom, chosen, state);
  status.textContent = state.wanted ? foundText(found, state, chosen) : "";
}

function frameClass(node, chosen, found, pixels) {
  const names = ["frame"];
  if (pixels < NARROW_PIXELS) names.push("narrow");
  if (chosen.differs) names.push(node.second > node.first ? "more" : node.second < node.first ? "less" : "same");
  if (found.size) names.push(found.has(node) ? "found" : "other");
  return names.join(" ");
}

function labelOf(node, chosen) {
  if (!chosen.differs) return node.name;
  const change = node.second - node.first;
  const sign = change > 0 ? `+${short(change)}` : change < 0 ? `\u2212${short(-change)}` : "=";
  return `${sign} ${node.name}`;
}

function told(node, chosen, state) {
  const where = chosen.measure;
  if (chosen.differs) {
    const change = node.second - node.first;
    const sign = change >= 0 ? "+" : "\u2212";
    return `${node.name}: ${count(node.first)}, then ${count(node.second)} ${where} (${sign}${count(Math.abs(change))})`;
  }
  return `${node.name}: ${counted(node.value, where)}, ${share(node.value, state.root.value)} of all shown`;
}

function foundText(found, state, chosen) {
  const outermost = [...found].filter((node) => !node.ancestors().slice(1).some((each) => found.has(each)));
  const sum = d3.sum(outermost, (node) => node.value);
  return `${count(found.size)} found: ${counted(sum, chosen.measure)}, ${share(sum, state.root.value)}`;
}

function focusOn(field, node) {
  const frame = field.querySelector(`[data-node="${node.data}"]`);
  if (frame) frame.focus({ preventScroll: true });
}

function flameKey(event, data, chosen, state, field) {
  const node = state.focus;
  const beside = node.parent ? node.parent.children : [node];
  const at = beside.indexOf(node);
  const next = {
    ArrowUp: node.parent,
    ArrowDown: node.children && node.children[0],
    ArrowLeft: beside[at - 1],
    ArrowRight: beside[at + 1],
    Home: state.root,
  };
  if (event.key === "Enter" || event.key === " ") state.zoom = node;
  else if (event.key === "Escape") state.zoom = state.focus = state.zoom.parent || state.root;
  else if (event.key in next) state.focus = next[event.key] || node;
  else return;
  event.preventDefault();
  const wanted = state.focus;
  state.redraw();
  // A frame too narrow to be drawn is reached by zooming in on its parent.
  if (state.focus !== wanted) {
    state.zoom = wanted.parent.data === state.zoom.data ? wanted : wanted.parent;
    state.focus = wanted;
    state.redraw();
  }
  focusOn(field, state.focus);
}
