const TRACKS = [
  ["exits", "exits"],
  ["predictor", "predictor flushes"],
  ["buffer", "buffer flushes"],
  ["stuns", "stuns"],
];
const STATE_HEIGHT = 60;
const TRACK_HEIGHT = 26;
const PER_MILLE = 1000;

function timelineOf(data) {
  const view = { from: 0, to: data.bins, at: 0 };
  const readout = element("output", { class: "readout", "aria-live": "polite" });
  const ticks = element("div", { class: "ticks" });
  const cursor = element("div", { class: "cursor" });
  const field = element("div", { class: "timeline", role: "slider", tabindex: 0, "aria-label": data.title, "aria-valuemin": 0, "aria-valuemax": data.bins - 1 });
  const phases = data.phases.length ? element("div", { class: "place" }) : null;
  const drawings = [];
  const lines = data.cpus.flatMap((cpu) => cpuTracks(cpu, data, drawings));
  if (phases) lines.push(element("div", { class: "track" }, element("span", {}, "phases"), phases));
  lines.push(element("div", { class: "track" }, element("span", {}, "instructions"), ticks));
  field.append(...lines, cursor);
  const redraw = () => drawTimeline(data, view, { field, readout, ticks, cursor, phases, drawings });
  const zoom = (by) => { zoomed(data, view, by); redraw(); };
  const place = (event) => {
    const box = ticks.getBoundingClientRect();
    const inside = Math.min(0.999, Math.max(0, (event.clientX - box.left) / box.width));
    view.at = Math.floor(view.from + inside * (view.to - view.from));
  };
  field.addEventListener("pointermove", (event) => { place(event); redraw(); });
  field.addEventListener("click", (event) => { place(event); zoom(4); });
  field.addEventListener("keydown", (event) => timelineKey(event, data, view, zoom, redraw));
  const buttons = [["Closer", () => zoom(4)], ["Further", () => zoom(1 / 4)], ["Whole", () => zoom(0)]].map(([name, act]) => {
    const button = element("button", { type: "button" }, name);
    button.addEventListener("click", act);
    return button;
  });
  new ResizeObserver(redraw).observe(field);
  redraw();
  const help = "Click or + comes closer, \u2212 goes further away; the arrows move along, 0 shows the whole.";
  return [element("div", { class: "controls" }, buttons), readout, field, element("p", { class: "faint" }, help), timelineLegend()];
}

function timelineLegend() {
  const entry = (kind, words) => element("li", {}, element("span", { class: `swatch ${kind}` }, "\u00a0"), words);
  return element(
    "ul",
    { class: "legend" },
    entry("restricted", "from below: in the kernel, restricted"),
    entry("unrestricted", "from above: in the kernel, unrestricted"),
    entry("own", "between: user mode, a guest, or nothing recorded"),
  );
}

function cpuTracks(cpu, data, drawings) {
  const name = `CPU ${cpu.cpu}`;
  const whole = element("div", { class: "track" }, element("span", {}, name), stateDrawing(cpu, data, drawings));
  const counts = TRACKS.filter(([key]) => cpu[key].some((value) => value > 0)).map(([key, words]) => {
    const most = d3.max(cpu[key]);
    const label = element("span", {}, words, element("span", { class: "most" }, `most ${short(most)}`));
    return element("div", { class: "track" }, label, countDrawing(cpu[key], most, data, drawings));
  });
  return [whole, ...counts];
}

function drawing(height, data, drawings, ...shapes) {
  const made = drawn("svg", { height, viewBox: `0 0 ${data.bins} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, shapes);
  drawings.push(made);
  return made;
}

function stateDrawing(cpu, data, drawings) {
  const scale = d3.scaleLinear([0, PER_MILLE], [0, STATE_HEIGHT]);
  const below = steps(cpu.restricted, () => STATE_HEIGHT, (value) => STATE_HEIGHT - scale(value));
  const above = steps(cpu.unrestricted, () => 0, (value) => scale(value));
  return drawing(
    STATE_HEIGHT,
    data,
    drawings,
    drawn("path", { class: "restricted", d: below }),
    drawn("path", { class: "unrestricted", d: above }),
  );
}

function countDrawing(values, most, data, drawings) {
  const scale = d3.scaleLinear([0, most], [TRACK_HEIGHT, 1]);
  return drawing(TRACK_HEIGHT, data, drawings, drawn("path", { class: "count", d: steps(values, () => TRACK_HEIGHT, scale) }));
}

function steps(values, from, to) {
  const area = d3.area().curve(d3.curveStepAfter).x((value, at) => at).y0(from).y1(to);
  return area([...values, values[values.length - 1]]);
}

function drawTimeline(data, view, parts) {
  const { field, readout, ticks, cursor, phases, drawings } = parts;
  view.at = Math.min(view.to - 1, Math.max(view.from, view.at));
  for (const svg of drawings) {
    svg.setAttribute("viewBox", `${view.from} 0 ${view.to - view.from} ${svg.getAttribute("height")}`);
  }
  const moment = (bin) => (bin / data.bins) * data.instructions;
  ticks.replaceChildren(...d3.range(5).map((at) => element("span", {}, short(moment(view.from + (at / 4) * (view.to - view.from))))));
  const words = `${short(moment(view.at))} to ${short(moment(view.at + 1))} instructions: ${data.cpus.map((cpu) => binText(cpu, view.at)).join("; ")}`;
  readout.textContent = words;
  field.setAttribute("aria-valuenow", view.at);
  field.setAttribute("aria-valuetext", words);
  const box = ticks.getBoundingClientRect();
  const left = box.left - field.getBoundingClientRect().left;
  cursor.style.left = `${left + (box.width * (view.at + 0.5 - view.from)) / (view.to - view.from)}px`;
  if (phases) drawPhases(data, view, phases);
}

function binText(cpu, at) {
  const counts = TRACKS.filter(([key]) => cpu[key][at]).map(([key, words]) => counted(cpu[key][at], words));
  const states = `${(cpu.restricted[at] / 10).toFixed(1)}% restricted, ${(cpu.unrestricted[at] / 10).toFixed(1)}% unrestricted`;
  return [`CPU ${cpu.cpu} ${states}`, ...counts].join(", ");
}

function drawPhases(data, view, place) {
  const scale = d3.scaleLinear([(view.from / data.bins) * data.instructions, (view.to / data.bins) * data.instructions], [0, 100]);
  const marks = data.phases.map((phase) => {
    const [left, right] = [Math.max(0, scale(phase.begin)), Math.min(100, scale(phase.end))];
    if (right <= left) return null;
    const made = element("span", { class: "phase", title: phase.name }, phase.name);
    made.style.left = `${left}%`;
    made.style.width = `${right - left}%`;
    return made;
  });
  place.replaceChildren(...marks.filter((mark) => mark !== null));
}

function zoomed(data, view, by) {
  if (!by) {
    [view.from, view.to] = [0, data.bins];
    return;
  }
  const width = Math.min(data.bins, Math.max(8, Math.round((view.to - view.from) / by)));
  view.from = Math.min(data.bins - width, Math.max(0, Math.round(view.at - width / 2)));
  view.to = view.from + width;
}

function timelineKey(event, data, view, zoom, redraw) {
  const width = view.to - view.from;
  const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -Math.ceil(width / 10), PageDown: Math.ceil(width / 10), Home: -data.bins, End: data.bins }[event.key];
  if (event.key === "+" || event.key === "=") zoom(4);
  else if (event.key === "-") zoom(1 / 4);
  else if (event.key === "0") zoom(0);
  else if (step) {
    view.at = Math.min(data.bins - 1, Math.max(0, view.at + step));
    if (view.at < view.from || view.at >= view.to) {
      view.from = Math.min(data.bins - width, Math.max(0, view.at - Math.floor(width / 2)));
      view.to = view.from + width;
    }
    redraw();
  } else return;
  event.preventDefault();
}
