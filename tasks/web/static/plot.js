// Plots in SVG: bars or lines over time, with axes and units; drawn to the width that there is.
import { h, roving, s } from "./dom.js";
import { bytes, clock, count, day, duration } from "./format.js";
import { explain } from "./tip.js";

const HEIGHT = 190;
const EDGE = { left: 62, right: 10, top: 12, bottom: 24 };

// Steps that are round in the unit: bytes by powers of 2, seconds by the clock.
const STEPS = {
  bytes: (rough) => 2 ** Math.ceil(Math.log2(rough)),
  seconds: (rough) =>
    [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400]
      .find((step) => step >= rough) ?? 86400 * Math.ceil(rough / 86400),
  count: (rough) => {
    const ten = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
    return [1, 2, 5, 10].map((n) => n * ten).find((step) => step >= rough);
  },
};
const SAID = { bytes, seconds: duration, count };

function linear(unit, highest) {
  const step = STEPS[unit](Math.max(highest, unit === "bytes" ? 1024 : 1) / 4);
  const top = step * Math.max(1, Math.ceil(highest / step));
  const ticks = [];
  for (let at = 0; at <= top + step / 2; at += step) ticks.push(at);
  return { ticks, part: (value) => value / top };
}

// Fulls and incrementals side by side: powers of 4, so that the small ones are seen too.
function logarithmic(values) {
  const low = Math.floor(Math.log(Math.max(1024, Math.min(...values))) / Math.log(4));
  const high = Math.ceil(Math.log(Math.max(4096, Math.max(...values) * 1.05)) / Math.log(4));
  const by = Math.max(1, Math.ceil((high - low) / 4));
  const ticks = [];
  for (let power = low; power <= high; power += by) ticks.push(4 ** power);
  return {
    ticks,
    part: (value) => (value <= 0 ? 0 : Math.max(0.02, (Math.log(value) / Math.log(4) - low) / (high - low))),
  };
}

function times(from, to, width) {
  const span = (to - from) / 3.6e6;
  const steps = [1, 2, 3, 6, 12, 24, 48, 96, 168, 336, 744];
  const hours = steps.find((step) => (width / span) * step >= 58) ?? 744 * Math.ceil(span / 5000);
  const found = [];
  const at = new Date(from);
  at.setMinutes(0, 0, 0);
  at.setHours(hours >= 24 ? 0 : Math.floor(at.getHours() / hours) * hours);
  while (at.getTime() <= to) {
    if (at.getTime() >= from) found.push([at.getTime(), hours >= 24 || at.getHours() === 0 ? day(at.getTime()) : clock(at.getTime())]);
    at.setHours(at.getHours() + hours);
  }
  return found;
}
export { times };

// items: [{from, to, bars: [[class, value]], dots: [[class, value]], tip: () => lines}], oldest first.
// `line` joins the first dot of each. `since`: before it not all is known, and that is shaded.
export function plot(place, { title, note, unit, items, from, to, since, line, log, key, act }) {
  const draw = () => {
    const width = Math.max(220, place.clientWidth);
    const inner = { w: width - EDGE.left - EDGE.right, h: HEIGHT - EDGE.top - EDGE.bottom };
    const x = (time) => EDGE.left + ((time - from) / (to - from)) * inner.w;
    const values = items.flatMap((item) => [...(item.bars ?? []), ...(item.dots ?? [])].map(([, value]) => value))
      .filter((value) => value !== null && value > 0);
    const scale = log && values.length ? logarithmic(values) : linear(unit, Math.max(0, ...values));
    const y = (value) => EDGE.top + inner.h * (1 - scale.part(value));
    const marks = [];
    const svg = s("svg", {
      class: "plot", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`,
      role: "group", tabindex: items.length ? 0 : null, key, "aria-label": `${title}. ${note ?? ""} Arrow keys go through it.`,
    });
    for (const tick of scale.ticks) {
      svg.append(
        s("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(tick), y2: y(tick) }),
        s("text", { class: "axis", x: EDGE.left - 8, y: y(tick) + 4, "text-anchor": "end" }, SAID[unit](tick)),
      );
    }
    for (const [time, text] of times(from, to, inner.w)) {
      svg.append(
        s("line", { class: "tick", x1: x(time), x2: x(time), y1: EDGE.top + inner.h, y2: EDGE.top + inner.h + 4 }),
        s("text", { class: "axis", x: x(time), y: HEIGHT - 6, "text-anchor": "middle" }, text),
      );
    }
    if (since > from) {
      svg.append(
        s("rect", { class: "unknown", x: EDGE.left, y: EDGE.top, width: Math.max(0, x(Math.min(since, to)) - EDGE.left), height: inner.h }),
        s("text", { class: "axis", x: EDGE.left + 6, y: EDGE.top + 14 }, "not all known"),
      );
    }
    const path = [];
    for (const item of items) {
      const at = x(item.from);
      const wide = Math.max(3, x(item.to) - at - 2);
      for (const [kind, value] of item.bars ?? []) {
        if (value > 0) svg.append(s("rect", { class: `column ${kind}`, x: at + 1, width: wide, y: y(value), height: EDGE.top + inner.h - y(value), rx: Math.min(2, wide / 3) }));
      }
      const middle = at + wide / 2 + 1;
      for (const [place_, [kind, value]] of (item.dots ?? []).entries()) {
        if (value === null) continue;
        if (line && place_ === 0) path.push(`${path.length ? "L" : "M"}${middle.toFixed(1)} ${y(value).toFixed(1)}`);
        svg.append(s("circle", { class: `dot ${kind}`, cx: middle, cy: y(value), r: 3 }));
      }
      const hit = s("rect", { class: "hit", "data-mark": true, x: at, width: wide + 2, y: EDGE.top, height: inner.h });
      if (act) hit.addEventListener("click", () => act(item));
      marks.push(explain(hit, item.tip));
    }
    if (path.length > 1) svg.append(s("path", { class: "line", d: path.join(" ") }));
    svg.append(...marks);
    if (!values.length) svg.append(s("text", { class: "axis", x: EDGE.left + inner.w / 2, y: EDGE.top + inner.h / 2, "text-anchor": "middle" }, "No completed backups in this time"));
    roving(svg, marks, (mark) => act?.(items[marks.indexOf(mark)]));
    return svg;
  };
  const figure = h("figure", {}, h("figcaption", {}, h("strong", {}, title), note ? h("span", { class: "dim" }, ` ${note}`) : null));
  place.replaceChildren(figure);
  const show = () => {
    figure.querySelector("svg")?.remove();
    figure.append(draw());
  };
  show();
  return show;
}
