const BAR_HEIGHT = 26;
const GOLDEN_ANGLE = 137.5;

function stackedOf(data) {
  const numbers = new Map(data.sources.map((source, at) => [source.key, at + 1]));
  const hue = (key) => Math.round(210 + GOLDEN_ANGLE * (numbers.get(key) - 1)) % 360;
  const legend = data.sources.map((source) => {
    const swatch = element("span", { class: "swatch part", "--hue": hue(source.key) }, String(numbers.get(source.key)));
    return element("li", {}, swatch, source.words);
  });
  const most = d3.max(data.groups, (group) => d3.max(group.bars, (bar) => bar.high)) || 1;
  const scale = d3.scaleLinear([0, most], [0, 98]);
  const groups = data.groups.map((group) => {
    const bars = group.bars.map((bar) => stackOf(bar, scale, numbers, hue, data));
    return element("section", { class: "stacked" }, element("h3", {}, group.name), element("ul", { class: "bars" }, bars));
  });
  const whisker = "The line across is the interval of the whole; the numbers are those of the list.";
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
  const [low, high] = [Math.max(0, scale(bar.low)), scale(bar.high)];
  const y = BAR_HEIGHT + 6;
  const end = (x) => drawn("line", { class: "whisker", x1: `${x}%`, x2: `${x}%`, y1: y - 4, y2: y + 4 });
  const whisker = high > low ? [drawn("line", { class: "whisker", x1: `${low}%`, x2: `${high}%`, y1: y, y2: y }), end(low), end(high)] : [];
  const svg = drawn("svg", { height: BAR_HEIGHT + 12, "aria-hidden": "true" }, drawn("rect", { class: "ground", width: "100%", height: BAR_HEIGHT }), parts, whisker);
  const what = element("div", { class: "what" }, element("span", {}, bar.label), element("span", {}, bar.shown));
  return element("li", {}, what, svg);
}
