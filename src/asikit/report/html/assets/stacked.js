const BAR_HEIGHT = 26;
const ROOM = 2.2;
const GOLDEN_ANGLE = 137.5;

function stackedOf(data) {
  const numbers = new Map(data.sources.map((source, at) => [source.key, at + 1]));
  const hue = (key) => Math.round(210 + GOLDEN_ANGLE * (numbers.get(key) - 1)) % 360;
  const legend = data.sources.map((source) => {
    const swatch = element("span", { class: "swatch part", "--hue": hue(source.key) }, String(numbers.get(source.key)));
    return element("li", {}, swatch, source.words);
  });
  // A far end of an interval would leave no room for the bars: it is cut off, with an arrow.
  const [longest, highest] = ["mid", "high"].map((end) => d3.max(data.groups, (group) => d3.max(group.bars, (bar) => bar[end])));
  const scale = d3.scaleLinear([0, Math.min(highest, ROOM * longest) || 1], [0, 98]);
  const groups = data.groups.map((group) => {
    const bars = group.bars.map((bar) => stackOf(bar, scale, numbers, hue, data));
    return element("section", { class: "stacked" }, element("h3", {}, group.name), element("ul", { class: "bars" }, bars));
  });
  const whisker = "The line below a bar is the interval of the whole, an arrow where it goes on; the numbers are those of the list.";
  return [...groups, element("ol", { class: "legend" }, legend), element("p", { class: "faint" }, whisker)];
}

function stackOf(bar, scale, numbers, hue, data) {
  const words = new Map(data.sources.map((source) => [source.key, source.words]));
  let at = 0;
  const parts = bar.parts.filter((part) => part.mid > 0).flatMap((part) => {
    const [x, width] = [scale(at), scale(part.mid)];
    at += part.mid;
    const title = drawn("title", {}, `${words.get(part.source)}: ${part.shown}`);
    const rect = drawn("rect", { class: "part", "--hue": hue(part.source), x: `${x}%`, width: `${width}%`, height: BAR_HEIGHT }, title);
    if (width < 2.5) return [rect];
    return [rect, drawn("text", { x: `${x + width / 2}%`, y: BAR_HEIGHT - 8, "text-anchor": "middle" }, String(numbers.get(part.source)))];
  });
  const cut = scale(bar.high) > 100;
  const [low, high] = [Math.max(0, scale(bar.low)), cut ? 100 : scale(bar.high)];
  const y = BAR_HEIGHT + 6;
  const end = (x) => drawn("line", { class: "whisker", x1: `${x}%`, x2: `${x}%`, y1: y - 4, y2: y + 4 });
  const whisker = high > low ? [drawn("line", { class: "whisker", x1: `${low}%`, x2: `${high}%`, y1: y, y2: y }), end(low), cut ? arrow(y) : end(high)] : [];
  const svg = drawn("svg", { height: BAR_HEIGHT + 12, "aria-hidden": "true" }, drawn("rect", { class: "ground", width: "100%", height: BAR_HEIGHT }), parts, whisker);
  const what = element("div", { class: "what" }, element("span", {}, bar.label), element("span", {}, bar.shown));
  return element("li", {}, what, svg);
}

function arrow(y) {
  return drawn("svg", { x: "100%", y: y - 5, width: 1, height: 10, overflow: "visible" }, drawn("path", { class: "whisker", d: "M-7,0 L0,5 L-7,10", fill: "none" }));
}
