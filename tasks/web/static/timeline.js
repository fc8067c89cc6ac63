// The last 24 hours of each hypervisor: a bar for each run, a mark for each slot nothing ran for.
import { fill, h, roving, s } from "./dom.js";
import { bytes, count, duration, exact, millis } from "./format.js";
import { times } from "./plot.js";
import { explain } from "./tip.js";

const LANES = 5;
const LANE = 12;
const WORDS = { complete: "complete", running: "running", failed: "failed", cancelled: "cancelled", missed: "missed", skipped: "skipped" };

// Runs that overlap stand below one another.
function lanes(runs, to) {
  const ends = [];
  return [...runs].reverse().map((run) => {
    const begin = millis(run.started);
    const end = run.finished ? millis(run.finished) : to;
    let lane = ends.findIndex((free) => free <= begin);
    if (lane < 0) lane = ends.length < LANES ? ends.length : LANES - 1;
    ends[lane] = Math.max(ends[lane] ?? 0, end);
    return { run, begin, end, lane };
  });
}

const runTip = (run) => () => [
  [run.state, `${run.domain || run.uuid || run.kind} · ${WORDS[run.state]}`],
  ["what", [run.kind, run.sync].filter(Boolean).join(", ")],
  ["when", `${exact(run.started)}${run.finished ? ` – ${exact(run.finished)}, ${duration(run.seconds)}` : ", still at work"}`],
  ["copied", run.transferred ? `${bytes(run.transferred)}, ${bytes(run.stored)} stored` : ""],
  ["policy", run.policy],
  ["why", run.error],
  ["mend", run.mend],
];

const slotTip = (slot) => () => [
  [slot.state, `${slot.domain || slot.uuid} · ${WORDS[slot.state]}`],
  ["what", slot.kind],
  ["slot", exact(slot.slot)],
  ["policy", slot.policy],
  ["why", slot.reason],
];

function row(host, from, to, width, open) {
  const x = (time) => Math.max(0, Math.min(1, (time - from) / (to - from))) * width;
  const placed = lanes(host.runs, to);
  const height = (Math.max(0, ...placed.map((one) => one.lane)) + 1) * LANE + 8;
  const said = Object.keys(WORDS).filter((word) => host[word]).map((word) => `${host[word]} ${word}`).join(", ");
  const svg = s("svg", { class: "row", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", tabindex: 0, key: `row ${host.host}`, "aria-label": `${host.host || "no hypervisor"}: ${said}. Arrow keys go through them, Enter opens the domain.` });
  for (const [time] of times(from, to, width)) svg.append(s("line", { class: "grid", x1: x(time), x2: x(time), y1: 0, y2: height }));
  const order = { complete: 0, running: 1, cancelled: 2, failed: 3 };
  const marks = placed
    .map((one) => ({ at: one.begin, uuid: one.run.uuid, order: order[one.run.state] ?? 0, mark: explain(
      s("rect", { class: `run ${one.run.state}`, "data-mark": true, x: Math.min(x(one.begin), width - 3), y: one.lane * LANE + 4, width: Math.max(3, x(one.end) - x(one.begin)), height: LANE - 2, rx: 2 }), runTip(one.run)) }))
    .concat(host.slots.map((slot) => {
      const at = x(millis(slot.slot));
      const middle = height / 2;
      const shape = slot.state === "missed"
        ? `M${at} ${middle - 6}L${at + 6} ${middle}L${at} ${middle + 6}L${at - 6} ${middle}Z`
        : `M${at - 4} ${middle - 4}L${at + 4} ${middle + 4}M${at + 4} ${middle - 4}L${at - 4} ${middle + 4}`;
      return { at: millis(slot.slot), uuid: slot.uuid, order: 4, mark: explain(s("path", { class: `slot ${slot.state}`, "data-mark": true, d: shape }), slotTip(slot)) };
    }));
  const byTime = [...marks].sort((a, b) => a.at - b.at);
  const uuids = new Map(byTime.map((one) => [one.mark, one.uuid]));
  // What went wrong is drawn over what went well.
  svg.append(...[...marks].sort((a, b) => a.order - b.order).map((one) => one.mark));
  const act = (mark) => uuids.get(mark) && open(uuids.get(mark));
  svg.addEventListener("dblclick", (event) => act(event.target));
  roving(svg, byTime.map((one) => one.mark), act);
  const more = host.complete + host.running + host.failed + host.cancelled - host.runs.length;
  return h("div", { class: "line" },
    h("div", { class: "line-name" }, h("span", {}, host.host || "no hypervisor"),
      host.failed + host.missed ? h("span", { class: "bad" }, ` ${count(host.failed + host.missed)}`) : null,
      more > 0 ? h("span", { class: "dim" }, ` +${count(more)} older`) : null),
    svg);
}

export function timeline(place, data, { open, page }) {
  if (!data.hosts.length) {
    fill(place, h("p", { class: "dim" }, "Nothing ran, and no slot passed."));
    return;
  }
  const [from, to] = [millis(data.from), millis(data.to)];
  const narrow = place.clientWidth < 640;
  const width = Math.max(240, place.clientWidth - (narrow ? 0 : 150));
  const x = (time) => ((time - from) / (to - from)) * width;
  const axis = s("svg", { class: "hours", width, height: 18, viewBox: `0 0 ${width} 18`, "aria-hidden": "true" },
    times(from, to, width).map(([time, text]) => s("text", { class: "axis", x: x(time), y: 12, "text-anchor": x(time) < 20 ? "start" : x(time) > width - 20 ? "end" : "middle" }, text)));
  const partial = millis(data.since) > from;
  fill(place,
    h("p", { class: "legend" }, Object.keys(WORDS).filter((word) => data.totals[word]).map((word) =>
      h("span", { class: `key ${word}` }, h("i", {}), WORDS[word], " ", h("b", {}, count(data.totals[word]))))),
    partial ? h("p", { class: "dim" }, `There was more than can be shown: before ${exact(data.since)} not all of it is here.`) : null,
    h("div", { class: "lines" }, data.hosts.map((host) => row(host, from, to, width, open)),
      h("div", { class: "line" }, h("div", { class: "line-name" }), axis)),
    pager(data, page, "hypervisors"));
}

export const pager = ({ page, pages }, go, what) =>
  pages < 2 ? null : h("div", { class: "pager" },
    h("button", { class: "quiet", type: "button", key: `${what} back`, disabled: page === 0, on: { click: () => go(page - 1) } }, "← Back"),
    h("span", { class: "dim" }, `page ${count(page + 1)} of ${count(pages)}`),
    h("button", { class: "quiet", type: "button", key: `${what} on`, disabled: page + 1 >= pages, on: { click: () => go(page + 1) } }, "On →"));
